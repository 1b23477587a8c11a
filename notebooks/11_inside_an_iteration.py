# ---
# jupyter:
#   bpgo:
#     smallest: {}
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
# # 11. Which pictures does one iteration push up, and which down?
# *Half a minute on one CPU core; ten minutes to read, longer to play. Read notebooks 0 to 2 first; set `interactive = True` for the sliders.*
#
# Notebook 1 explained RAS and CRT on invented rewards. Here are real ones: one iteration of the tiny FLUX, eight prompts with twelve pictures each, and the rewards that training would use. Nothing is trained; you turn the knobs and watch what the next update would do.
#
# Afterwards you can predict, from a row of rewards, which pictures each objective makes more likely, and say what a picture looks like on its way from noise.
#
# The first picture has three of the eight groups, best reward on the left. An orange frame: this picture is made more likely by plain GRPO. No frame: less likely. The number is its reward.

# %% tags=["parameters"]
seed: int = 0  # of the prompts and the noise
iteration: int = 0  # which iteration's prompts
output: str = ""  # folder for the record; empty: show it only
interactive: bool = False  # live sliders, in Jupyter

# %%
import tempfile

import diffusers
import matplotlib.pyplot as plt
import torch
import transformers

from bpgo import objective
from bpgo.analysis import plots
from bpgo.config import read_config
from bpgo.records import record
from bpgo.trainer import Trainer

for library in (diffusers, transformers):
    library.utils.logging.disable_progress_bar()
    library.utils.logging.set_verbosity_error()
folder = tempfile.TemporaryDirectory()
trainer = Trainer(
    read_config("t2i-tiny", [f"seed={seed}", "prior.name=running_mean"]),
    folder.name,
    progress=False,
)
trainer.iteration = iteration
prompts, plan, cond, rollout = (
    trainer.collect()
)  # its steps, what the prompts are encoded to, and all that was drawn
pixels = trainer.policy.decode(rollout.latents)
G = trainer.config.group_size
rewards = trainer.reward(pixels, [p for p in prompts for _ in range(G)]).view(-1, G)
pixels = pixels.unflatten(0, (-1, G))


# %%
def group_row(
    i, advantages, axes
):  # pictures of group i by reward; framed if pushed up, the wider the more
    for ax, j in zip(axes, rewards[i].argsort(descending=True), strict=True):
        ax.imshow(pixels[i, j].clamp(0, 1).permute(1, 2, 0))
        ax.set(xticks=[], yticks=[], xlabel=f"{rewards[i, j]:.2f}")
        up = advantages[i, j].item()
        ax.spines[:].set(
            visible=up > 0, linewidth=0.5 + 3 * max(0.0, min(up, 2.0)), color="#D55E00"
        )
    axes[0].set_ylabel(prompts[i], rotation=0, ha="right", va="center", fontsize=9)


order = rewards.std(1).argsort(descending=True).tolist()
figure, axes = plots.new_figure(3, G, (11, 3.4))
for row, i in zip(axes, (order[0], order[len(order) // 2], order[-1]), strict=True):
    group_row(i, objective.group_advantages(rewards), row)
plt.show()  # alt: Three groups of twelve pictures, best reward first; those that GRPO pushes up are framed, the harder the wider.

# %% [markdown]
# The wider the frame, the harder the push. The last row spreads a third as wide as the first, yet its frames are as wide: group normalisation (equation 1).
#
# ## Turn the knobs
# **Before you look:** take the group in the last row. Which knob could make its frames thinner: $\alpha$, $\kappa$, $\lambda$, $\beta$ or the prior?
#
# Below, frames show the *effective* advantage, $wA + \beta \tilde A$ (equation 5). On the left the weight of each group by RAS (equation 2); on the right a line a group, its effective advantages against the rewards. Black is the group above. (The prior is the mean of these rewards, what a running mean begins with.)


# %%
def panel(alpha=0.5, kappa=1.0, lam=5.0, beta=0.5, prior=0.57, group=0):
    k = objective.k_from_kappa(kappa, rewards)
    found = objective.bpgo(rewards, prior, alpha=alpha, k=k, lam=lam, beta=beta)
    figure = plt.figure(figsize=(11, 5), dpi=plots.DPI, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 2])
    group_row(group, found.effective, top.subplots(1, G))
    left, right = bottom.subplots(1, 2)
    shown = ["black" if i == group else "0.75" for i in range(len(prompts))]
    (
        left.barh(range(len(prompts)), found.weights, color=shown),
        left.axvline(1, color="black", linestyle=":"),
    )
    left.set_yticks(range(len(prompts)), prompts, fontsize=8)
    for i, colour in enumerate(shown):
        by = rewards[i].argsort()
        right.plot(
            rewards[i, by],
            found.effective[i, by],
            "o-",
            color=colour,
            markersize=3,
            zorder=3 if i == group else 1,
        )
    right.axvline(prior, color="black", linestyle="--", linewidth=1)
    plots.labelled(left.set(xlim=(0, 2)) and left, "RAS", "weight of the group")
    plots.labelled(right, "dashed: the prior", "reward (no unit)", "effective advantage")
    plt.show()
    return found


if not interactive:
    settings = {
        "as in training: alpha 0.5, kappa 1, lambda 5, beta 0.5": {},
        "alpha = 0.9, kappa = 5, beta = 0": dict(alpha=0.9, kappa=5.0, beta=0.0),
    }
    for name, knobs in settings.items():
        print(
            name
        )  # alt: Pictures of one group framed by effective advantage; weights of eight groups; effective advantage against reward.
        panel(
            group=order[-1], prior=rewards.mean().item(), **knobs
        )  # alt: The same with stronger, sharper RAS and without CRT: weights from 0.1 to 1.8, thinner frames.

# %% tags=["nbval-skip"]
if interactive:
    from ipywidgets import FloatSlider, IntSlider, interact

    ends = dict(
        alpha=(0, 1, 0.5),
        kappa=(0, 10, 1),
        lam=(0, 50, 5),
        beta=(0, 2, 0.5),
        prior=(0.3, 0.9, 0.57),
    )
    sliders = {
        k: FloatSlider(v, min=a, max=b, step=(b - a) / 50, continuous_update=False)
        for k, (a, b, v) in ends.items()
    }
    interact(
        lambda **knobs: panel(**knobs) and None,
        **sliders,
        group=IntSlider(order[-1], 0, len(prompts) - 1, continuous_update=False),
    )

# %% [markdown]
# RAS hardly thins the frames of this group, however strong it is made: its mean is almost the prior. Without CRT ($\beta = 0$) they are thinner. Two other groups are nearly silenced; are they the meaningless ones?
#
# ## One group, stage by stage
# The same for a single prompt, as training does it: pictures, rewards, advantages, weight, and what is left for the update. With sliders you step through the stages; without, all stand below each other.

# %%
prior, o = rewards.mean().item(), trainer.config.objective
k = objective.k_from_kappa(o.kappa, rewards)
made = objective.bpgo(rewards, prior, alpha=o.alpha, k=k, lam=o.lam, beta=o.beta)
STAGES = {
    "1. rewards": rewards,
    "2. advantages in the group": objective.group_advantages(rewards),
    "3. times the group's weight (RAS)": made.main,
    "4. plus beta times CRT's": made.effective,
}


def stages(group=0, upto=4):
    figure, axes = plots.new_figure(1, 4, (11, 2.3))
    by = rewards[group].argsort(descending=True)
    ends = made.effective[group].abs().max().item() * 1.1
    for ax, (name, values) in zip(axes[0], list(STAGES.items())[:upto], strict=False):
        ax.bar(range(G), values[group, by], color="0.3")
        ax.axhline(0, color="black", linewidth=1)
        plots.labelled(
            ax, name, "picture, best reward first", "reward" if values is rewards else "advantage"
        )
        if values is not rewards:
            ax.set_ylim(-ends, ends)
    figure.suptitle(
        f"{prompts[group]}: prior {prior:.2f}, group mean {rewards[group].mean():.2f}, weight {made.weights[group]:.2f}",
        fontsize=10,
    )
    for ax in axes[0, upto:]:
        ax.set_axis_off()
    plt.show()


if not interactive:  # alt: Bars of one group's rewards, advantages, weighted advantages and effective advantages; here the weight shrinks them.
    (
        stages(made.weights.argmin().item()),
        stages(order[-1]),
    )  # alt: The same for a group whose weight is about 1: CRT pushes down pictures that lie between group mean and prior.

# %% tags=["nbval-skip"]
if interactive:
    interact(stages, group=IntSlider(order[0], 0, len(prompts) - 1), upto=IntSlider(1, 1, 4))

# %% [markdown]
# ## From noise to picture
# Pictures are drawn small, as *latents*, which a decoder turns into pixels. Eight steps walk from noise to latents (here without fresh noise). The decoder shows what each of the nine states holds (above), and what the model expects in the end (below): since $x = (1-\sigma)x_0 + \sigma\varepsilon$ and $v = \varepsilon - x_0$, that is $x_0 = x - \sigma v$. **Before you look:** at which step is the shape settled, at which the colour?


# %%
@torch.no_grad()
def walk(group):
    one = {name: value[group : group + 1] for name, value in cond.items()}
    x, seen = (
        torch.randn(
            1, *trainer.policy.latent_shape(), generator=torch.Generator().manual_seed(seed)
        ),
        [],
    )
    for now, then in zip(plan.sigmas, [*plan.sigmas[1:], 0.0], strict=True):
        v = trainer.policy.velocity(x, now, one) if now else torch.zeros_like(x)
        seen.append(torch.cat([trainer.policy.decode(latents) for latents in (x, x - now * v)]))
        x = x + (then - now) * v  # at sigma = 0, the last state, nothing moves
    return torch.stack(seen, 1).clamp(0, 1)  # (2, steps + 1, 3, H, W)


def steps(group=0, first=0, last=8):
    figure = plots.show_pictures(
        list(walk(group)[:, first : last + 1]), ["what it holds", "what is expected"], 1.0, 0.15
    )
    for ax, sigma in zip(figure.axes, plan.sigmas[first : last + 1], strict=False):
        ax.set_title(f"sigma {sigma:.2f}", fontsize=8)
    figure.suptitle(str(prompts[group]), fontsize=10)
    plt.show()


if not interactive:
    steps(
        order[0]
    )  # alt: Nine states from noise to picture, and above each what the model expects in the end.

# %% tags=["nbval-skip"]
if interactive:
    interact(
        lambda group, step: steps(group, step, step),
        group=IntSlider(order[0], 0, len(prompts) - 1),
        step=IntSlider(0, 0, 8),
    )

# %% tags=["nbval-check-output"]
values = {
    str(p): {
        "mean": rewards[i].mean().item(),
        "spread": rewards[i].std().item(),
        "weight": made.weights[i].item(),
    }
    for i, p in enumerate(prompts)
}
whole = record(
    "inside_an_iteration", values, output, context={"seed": seed, "iteration": iteration}, rtol=0.05
)

# %% [markdown]
# ## Summary
# - RAS changes only how hard a group is pushed. CRT can also push down a picture that stands above its group's mean, where it lies below the prior.
# - RAS cannot tell a group without differences from one with: it looks at the mean only.
# - What the model expects is settled in the first steps, at high noise, right or wrong (this one was asked for white); what a state holds looks like nothing until late.
#
# **Vary** `seed`, `iteration`. **Where it breaks:** an update moves all prompts at once, since they share weights; a picture pushed up here can still become rarer.
#
# ## Exercises
# **1.** Find knobs with which CRT turns the order of two pictures of one group round. (Equation 4 decreases only more than 1.0 below the prior.)

# %% tags=["solution", "hide-cell"]
for scale, at in ((1, prior), (1, 0.9), (10, 10 * prior)):
    turned = objective.rank_inversions(
        scale * rewards, objective.crt_rewards(scale * rewards, at, 1.0)
    )
    print(
        f"rewards times {scale}, prior {at:.2f}: {turned.mean():.3f} of the pairs are turned round"
    )
# A prior of 0.9 turns the two worst pictures of the white box: one of them lies 1.1 below it. Ten times the scale turns many.

# %% [markdown] tags=["exercise"]
# **2.** Set the prior so that exactly half of the groups are weighed up. How does it compare with the mean of all rewards?

# %% tags=["solution", "hide-cell"]
middle = rewards.mean(1).median().item()
print(f"between {middle:.3f} and the next group's mean; the mean of all rewards is {prior:.3f}")
# The median of the group means. A running mean is near it, so roughly half of the groups are trusted, whatever their quality.

# %% [markdown]
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): advantage (1), RAS (2, 3), CRT (4), objective (5).
