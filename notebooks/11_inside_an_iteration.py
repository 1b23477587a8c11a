# ---
# jupyter:
#   bpgo:
#     quick: true
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11. Which images does one iteration push up, and which down?
# *Half a minute on one CPU core; ten minutes to read, longer if you play with the sliders. Read notebooks 0 to 2 first. Set `interactive = True` for the sliders.*
#
# Notebook 1 explained RAS and CRT with invented rewards. Here the rewards are real. We run one iteration of the tiny FLUX, with eight prompts and twelve images of each, and the rewards that training would use. We stop before the update, so nothing is trained. You turn the knobs and watch what the next update would do.
#
# Afterwards you can predict from a row of rewards which images each objective makes more likely. You can also say what an image looks like on its way from noise, and name the call behind each arrow of the training loop.
#
# The first figure shows three of the eight groups, with the best reward on the left. The number is the reward. An orange frame means that plain GRPO makes this image more likely. No frame means less likely.

# %% tags=["parameters"]
seed: int = 0  # seed of the prompts and the noise
iteration: int = 0  # the iteration whose prompts are drawn
output: str = ""  # folder for the record; if empty, it is only shown
interactive: bool = False  # live sliders, in Jupyter

# %%
import tempfile

import diffusers
import matplotlib.pyplot as plt
import torch
import transformers

from bpgo import Trainer, objective, read_config
from bpgo.analysis import figures, plots
from bpgo.records import record
from bpgo.rewards import collect, submit
from bpgo.rollout import sample_groups, select
from bpgo.update import log_ratio_of

for library in (diffusers, transformers):
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()
folder = tempfile.TemporaryDirectory()
config = read_config("t2i-tiny", [f"seed={seed}", "prior.name=running_mean"])
trainer = Trainer(config, folder.name, progress=False)
trainer.iteration = iteration

# %%
batch, parts, pixels, answers = trainer.draw_batch(), [], [], []
for part in sample_groups(trainer.policy, batch, trainer.micro_batch):
    parts.append(part)
    pixels.append(trainer.policy.decode(part.latents))
    answers.append(submit(trainer.rewards, pixels[-1], batch.prompts_of(part.rows)))
scores = collect(answers)
advantages, logged = trainer.compute_advantages(batch, scores)

prompts, G = batch.prompts, batch.group_size
pixels = torch.cat(pixels).unflatten(0, (-1, G))
rewards = sum(scores.values()).view(-1, G)
order = rewards.std(1).argsort(descending=True).tolist()
grpo = objective.group_advantages(rewards)
figure, axes = plots.new_figure(3, G, (11, 3.4))
for row, i in zip(axes, (order[0], order[len(order) // 2], order[-1]), strict=True):
    figures.framed_group(row, pixels[i], rewards[i], grpo[i], prompts[i])
plt.show()  # alt: Three groups of twelve images, best reward first. Images that GRPO pushes up have a frame, and a wider frame means a harder push.

# %% [markdown]
# The wider the frame, the harder the push. The rewards of the last row vary a third as much as those of the first, yet its frames are as wide. This is group normalisation (equation 1).
#
# ## The loop, call by call
# The cell above is `Trainer.step` up to the update. These are its arrows:
#
# | arrow | call | result |
# |---|---|---|
# | prompts, encode | `trainer.draw_batch()` | a `Batch`: prompts, what they are encoded to (`cond`), denoising steps and seeds |
# | rollout | `sample_groups(policy, batch)` | one `Part` after the other: latents, and for each trained step its states and log-probability |
# | decode | `policy.decode(part.latents)` | images |
# | reward | `submit`, `collect` | scores of each reward |
# | prior, objective | `trainer.compute_advantages(batch, scores)` | `Advantages`, and numbers to log |
# | update | `trainer.update(Rollout(batch, parts), advantages)` | one optimiser step for each share of the prompts |
#
# The update evaluates every trained step again and compares its log-probability with the one from the rollout. The difference is the logarithm of the importance ratio. **Before you run:** how large is it before the first optimiser step?

# %%
part = parts[0]
cond = select(batch.cond, part.rows, G)  # one row per image
for n, i in enumerate(batch.steps.trained):
    with torch.no_grad():
        log_ratio = log_ratio_of(trainer.policy, cond, batch.steps, part, n)
    sigma, s = batch.steps.sigmas[i], batch.steps.noise_std[i]
    print(f"step {i} from sigma {sigma:.2f} with noise {s:.2f}:", end=" ")
    print(f"largest log ratio {log_ratio.abs().max():.0e}")
print(f"prior {logged['prior']:.3f}, k {logged['k']:.1f}, mean weight {logged['weight_mean']:.3f}")

# %% [markdown]
# It is exactly 0, because rollout and update compute the same numbers in the same way. Only then is the first gradient the one that notebook 1 derives.
#
# ## Turn the knobs
# Frames now show the *effective* advantage, $wA + \beta \tilde A$ (equation 5). Below them, the left panel shows the RAS weight of each group (equation 2). The right panel shows the effective advantages by reward, with one line per group. Black marks the group above. (The prior is the mean of these rewards, with which a running mean starts.)
#
# **Before you look:** take the group in the last row of the first figure. Which knob could make its frames thinner: $\alpha$, $\kappa$, $\lambda$, $\beta$ or the prior?


# %%
def panel(alpha=0.5, kappa=1.0, lam=5.0, beta=0.5, prior=0.57, group=0):
    k = objective.k_from_kappa(kappa, rewards)
    found = objective.bpgo(rewards, prior, alpha=alpha, k=k, lam=lam, beta=beta)
    figure = plt.figure(figsize=(11, 5), dpi=plots.DPI, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 2])
    shown = pixels[group], rewards[group], found.effective[group], prompts[group]
    figures.framed_group(top.subplots(1, G), *shown)
    axes = bottom.subplots(1, 2)
    figures.weights_and_advantages(axes, prompts, rewards, found, prior, group)
    plt.show()


if not interactive:
    prior = rewards.mean().item()
    print("as in training: alpha 0.5, kappa 1, lambda 5, beta 0.5")
    panel(
        group=order[-1], prior=prior
    )  # alt: Images of one group framed by effective advantage; the weights of eight groups; effective advantage by reward.
    print("alpha = 0.9, kappa = 5, beta = 0")
    panel(
        0.9, 5.0, beta=0.0, group=order[-1], prior=prior
    )  # alt: The same with stronger, sharper RAS and without CRT. Weights are between 0.1 and 1.8, and the frames are thinner.

# %% tags=["nbval-skip"]
if interactive:
    from ipywidgets import FloatSlider, IntSlider, interact

    ends = {"alpha": (0, 1, 0.5), "kappa": (0, 10, 1), "lam": (0, 50, 5), "beta": (0, 2, 0.5)}
    ends["prior"] = (0.3, 0.9, 0.57)
    knobs = {
        name: FloatSlider(start, min=low, max=high, step=(high - low) / 50, continuous_update=False)
        for name, (low, high, start) in ends.items()
    }
    groups = IntSlider(order[-1], 0, len(prompts) - 1, continuous_update=False)
    interact(panel, **knobs, group=groups)

# %% [markdown]
# However strong RAS is, it hardly thins the frames of this group, because the mean of the group is almost the prior. Without CRT ($\beta = 0$) they are thinner. Two other groups get almost no weight. Are they the meaningless ones?
#
# ## One group, stage by stage
# Here is the same for a single prompt, as training does it: rewards, advantages, weight, and what remains for the update. With sliders you step through the stages. Without, each row shows all of them.

# %%
STAGES = {
    "1. rewards": rewards,
    "2. advantages in the group": grpo,
    "3. times the weight (RAS)": advantages.main,
    "4. plus beta times CRT's": advantages.effective,
}


def stages(group=0, upto=4):
    figure, [axes] = plots.new_figure(1, 4, (11, 2.3))
    by = rewards[group].argsort(descending=True)
    limit = advantages.effective[group].abs().max().item() * 1.1
    for ax, (name, values) in zip(axes, list(STAGES.items())[:upto], strict=False):
        ax.bar(range(G), values[group, by], color="0.3")
        ax.axhline(0, color="black", linewidth=1)
        plots.label(ax, name, "image, best reward first", "advantage")
        if values is not rewards:
            ax.set_ylim(-limit, limit)
    axes[0].set_ylabel("reward")
    for ax in axes[upto:]:
        ax.set_axis_off()
    numbers = f"prior {logged['prior']:.2f}, group mean {rewards[group].mean():.2f}"
    weight = f"weight {advantages.weights[group]:.2f}"
    figure.suptitle(f"{prompts[group]}: {numbers}, {weight}", fontsize=10)
    plt.show()


# %%
if not interactive:
    stages(
        advantages.weights.argmin().item()
    )  # alt: Bars of the rewards, advantages, weighted advantages and effective advantages of one group. Its weight shrinks them.
    stages(
        order[-1]
    )  # alt: The same for a group whose weight is about 1. CRT pushes down images that are between the group mean and the prior.

# %% tags=["nbval-skip"]
if interactive:
    interact(stages, group=IntSlider(order[0], 0, len(prompts) - 1), upto=IntSlider(1, 1, 4))

# %% [markdown]
# ## From noise to image
# Images are drawn small, as *latents*, which a decoder turns into pixels. Eight steps lead from noise to latents (here without fresh noise). The upper row decodes what each of the nine states contains. The lower row decodes what the model expects in the end. Since $x = (1-\sigma)x_0 + \sigma\varepsilon$ and $v = \varepsilon - x_0$, this is $x_0 = x - \sigma v$.
#
# **Before you look:** at which step is the shape settled, and at which the colour?


# %%
@torch.no_grad()
def steps(group=0, first=0, last=8):
    policy, sigmas = trainer.policy, batch.steps.sigmas
    cond = select(batch.cond, slice(group, group + 1))
    noise = torch.Generator().manual_seed(seed)
    x, seen = torch.randn(1, *policy.latent_shape(), generator=noise), []
    for now, then in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        v = policy.velocity(x, now, cond) if now else torch.zeros_like(x)
        seen.append(torch.cat([policy.decode(x), policy.decode(x - now * v)]))
        x = x + (then - now) * v
    rows = list(torch.stack(seen, 1)[:, first : last + 1].clamp(0, 1))
    figure = plots.show_images(rows, ["what it contains", "what is expected"], 1.0, 0.15)
    for ax, sigma in zip(figure.axes, sigmas[first : last + 1], strict=False):
        ax.set_title(f"sigma {sigma:.2f}", fontsize=8)
    figure.suptitle(str(prompts[group]), fontsize=10)
    plt.show()


if not interactive:
    steps(
        order[0]
    )  # alt: Nine states from noise to image, and below each what the model expects in the end.

# %% tags=["nbval-skip"]
if interactive:
    groups = {"group": IntSlider(order[0], 0, len(prompts) - 1)}
    interact(lambda group, step: steps(group, step, step), **groups, step=IntSlider(0, 0, 8))

# %% tags=["nbval-check-output"]
values = {}
for i, prompt in enumerate(prompts):
    numbers = {"mean": rewards[i].mean(), "std": rewards[i].std(), "weight": advantages.weights[i]}
    values[str(prompt)] = {name: value.item() for name, value in numbers.items()}
context = {"seed": seed, "iteration": iteration}
whole = record("inside_an_iteration", values, output, context=context, rtol=0.05)

# %% [markdown]
# ## Summary
# - RAS changes only how hard a group is pushed. CRT can also push down an image that is above the mean of its group, if it is below the prior.
# - RAS cannot distinguish a group without differences from one with differences, because it only looks at the mean.
# - What the model expects is settled in the first steps, at high noise, right or wrong (this prompt asked for white). What a state contains looks like nothing until late.
#
# **Vary** `seed` and `iteration`. **Where it breaks:** an update moves all prompts at once, because they share the weights of the model. An image that is pushed up here can still become rarer.
#
# ## Exercises
# **1.** Find knobs with which CRT reverses the order of two images of one group. (Equation 4 decreases only more than 1.0 below the prior.)

# %% tags=["solution", "hide-cell"]
from bpgo.diagnostics import rank_inversions

mean = rewards.mean().item()
for scale, prior in ((1, mean), (1, 0.9), (10, 10 * mean)):
    transformed = objective.crt_rewards(scale * rewards, prior, 1.0)
    share = rank_inversions(scale * rewards, transformed).mean()
    print(f"rewards times {scale}, prior {prior:.2f}: {share:.3f} of the pairs are reversed")
# A prior of 0.9 reverses the two worst images of the white box. One of them is 1.1 below it. Ten times the scale reverses many pairs.

# %% [markdown] tags=["exercise"]
# **2.** Set the prior so that exactly half of the groups get a weight above 1. How does it compare with the mean of all rewards?

# %% tags=["solution", "hide-cell"]
middle = rewards.mean(1).median().item()
print(f"between {middle:.3f} and the mean of the next group; the mean of all rewards is {mean:.3f}")
# It is the median of the group means. A running mean is close to it, so about half of the groups are trusted, whatever their quality.

# %% [markdown]
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): advantage (1), RAS (2, 3), CRT (4), objective (5).
