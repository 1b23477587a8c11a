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
# # 1. Which differences in reward deserve a gradient?
# *Half a minute on two CPU cores, no accelerator; 20 minutes to read.*
#
# A generator draws several images for one prompt. They form a **group**. A reward model gives each image a score, its **reward**. Higher is better. The **advantage** `A` says how far a reward is above its group. Training makes images with a positive advantage more likely, and the others less likely.
#
# Bayesian Prior-Guided Optimization (BPGO) changes this in two places. RAS gives each group a weight, and CRT transforms the rewards within a group.
#
# Afterwards you can compute BPGO in plain torch. You can say when group normalisation (dividing by the standard deviation of the group) turns noise into gradient. You can set the sharpness `k` of the trust in groups for a reward of any scale, and you can recognise rewards that the method would rank upside down.

# %% tags=["parameters"]
seed: int = 0  # seed of the noise in the rewards
group_size: int = 8  # images per prompt
noise: float = 0.03  # standard deviation of the reward among equally good images, above 0
signal: float = 0.12  # gain in reward of an image that fits its prompt
prior: float = 0.55  # reward expected of a clear, typical prompt
alpha: float = 0.5  # how far RAS can move the weight of a group from 1
kappa: float = 1.0  # sharpness of RAS, per standard deviation of the reward
lam: float = 1.0  # the lambda of the paper, the slope of CRT relative to its step
beta: float = 0.5  # weight of the CRT term; the paper does not publish it
output: str = ""  # folder for the record; if empty, it is only shown
interactive: bool = False  # live sliders, in Jupyter

# %% [markdown]
# ## A page of rewards
# Here are four invented prompts. For "a red circle" and "a rare purple cross" an image can be wrong. "a shape" and "something bright" are ambiguous: *every* image fits, and rewards differ only by noise.
#
# **Before you run:** the rewards of "a red circle" vary more than twice as much as those of "a shape". Which prompt gets the larger gradient?

# %%
import matplotlib.pyplot as plt
import torch

from bpgo.analysis import plots

prompts = ["a red circle", "a shape", "a rare purple cross", "something bright"]
mean_reward = torch.tensor([0.60, 0.50, 0.50, 0.60])[:, None]
can_be_wrong = torch.tensor([True, False, True, False])[:, None]
fits = (torch.arange(group_size) % 2 == 0) | ~can_be_wrong
quality = mean_reward + signal * can_be_wrong * (fits.float() - 0.5)
torch.manual_seed(seed)
rewards = quality + noise * torch.randn(quality.shape)  # (N prompts, G images)


def group_advantages(r):  # equation 1, protected against division by zero
    return (r - r.mean(-1, keepdim=True)) / (r.std(-1, keepdim=True) + 1e-8)


figure, [[left, right]] = plots.new_figure(1, 2, (9, 3.2), sharey=True)
plots.strips(left, rewards, fits, prompts)
plots.strips(right, group_advantages(rewards), fits, prompts)
left.axvline(prior, color="0.4", ls="--")
plots.label(left, "What the reward model says (dashed: the prior)", "reward (no unit)")
plots.label(right, "What the generator is trained on", "advantage (group standard deviations)")
plt.show()  # alt: Two strip charts of four prompts. The rewards of the clear prompts vary much, those of the ambiguous prompts little. The advantages of all four prompts vary equally.

# %% [markdown]
# Solid dots fit their prompt, hollow ones do not. On the right all groups vary equally. Dividing by the standard deviation gives every group the same size of gradient, meaningful or not. Every image of "a shape" is right, yet some are pushed down hard.
#
# How much of this lasts? We score the same images 2000 times with fresh noise, and average the advantage of each image.


# %%
def size(a):  # root mean square over a group
    return a.square().mean(-1).sqrt()


advantages = group_advantages(rewards)
fresh = quality + noise * torch.randn(2000, *quality.shape)
kept = size(group_advantages(fresh).mean(0))
for name, one, lasting in zip(prompts, size(advantages), kept, strict=True):
    print(f"{name:20} advantage in one group {one:.2f}, of which {lasting:.2f} is left on average")

# %% [markdown]
# For the ambiguous prompts almost nothing lasts. (A *constant* taste of the reward model, for example for a colour, would not average out.)
#
# ## RAS: a weight for each group
# Reliability-adaptive scaling (equations 2 and 3) compares the mean of a group, $\bar R$, with the **prior** (dashed above). The prior is the reward expected of a clear, typical prompt. With $p$ for the prior, the weight of a group is $w = 1 + \alpha\,(2\,\mathrm{sigmoid}(k(\bar R - p)) - 1)$. It is between `1 - alpha` and `1 + alpha`, and it multiplies the loss of the group.
#
# **Before you run:** the standard deviation of all rewards above is about .07. What will `k = 1` do? Which of the *ambiguous* prompts will RAS trust?


# %% tags=["nbval-check-output"]
def ras_weights(r, prior, alpha, k):  # equation 2
    deviation = r.mean(-1) - prior
    return 1 + alpha * (2 * torch.sigmoid(k * deviation) - 1)


w_plain = ras_weights(rewards, prior, alpha, k=1.0)
k = kappa / rewards.std().item()
w = ras_weights(rewards, prior, alpha, k)
for name, a, b in zip(prompts, w_plain, w, strict=True):
    print(f"{name:20} w at k = 1: {a:.2f}   w at kappa = {kappa:g} (k = {k:.1f}): {b:.2f}")

# %% [markdown]
# At `k = 1` every weight is within .02 of 1, so this is GRPO in effect. `k` has the unit 1/reward. So we write `k = kappa / sd`, where `sd` is the standard deviation of all rewards. One `kappa` then works for every scale.
#
# Now RAS turns "a shape" down, but also the rare cross, whose differences are real. And it turns "something bright" *up*, which is pure noise. The weight never looks at the noise. It assumes that a high mean goes together with reliable rewards. Our four prompts violate this assumption half of the time, by design. Whether real prompts do must be measured.
#
# ## CRT: another reward inside the group
# Contrastive reward transformation (equation 4) replaces each reward by $(\lambda(R - p) + 1_{R > p})\,e^R$. This is a slope plus a step, both times a factor that grows with the reward. The step $1_{R > p}$ is 1 above the prior and 0 elsewhere. The result is normalised within its group like any reward, which gives `A~`. We try CRT on the rewards as scored, and on rewards in standard deviations from the prior, where rewards below the prior are negative.
#
# **Before you run:** only the unit differs. Does the order of the images survive both times?


# %%
def crt_rewards(r, prior, lam):  # equation 4
    return (lam * (r - prior) + (r > prior)) * torch.exp(r)


def inverted(r, t):  # share of the pairs of a group whose order is reversed
    before, after = (x[:, :, None] - x[:, None, :] for x in (r, t))
    return (before * after < 0).float().mean((1, 2)) * group_size / (group_size - 1)


in_sd = (rewards - prior) / rewards.std()
reversed_pairs = inverted(rewards, crt_rewards(rewards, prior, lam))
reversed_in_sd = inverted(in_sd, crt_rewards(in_sd, 0.0, lam))

# %%
figure, [axes] = plots.new_figure(1, 2, (9, 3.3))
units = [
    (rewards, prior, (prior - 0.2, prior + 0.2), "as scored"),
    (in_sd, 0.0, (-4, 0), "in standard deviations"),
]
colours = ["black" if f else "white" for f in fits.flatten()]
for ax, (r, p, ends, unit) in zip(axes, units, strict=True):
    line = torch.linspace(*ends, 400)
    ax.plot(line, crt_rewards(line, p, lam), color="0.5", lw=1)
    ax.scatter(r, crt_rewards(r, p, lam), c=colours, ec="black")
    plots.label(ax, f"CRT of rewards {unit}", f"reward ({unit})", "transformed reward (no unit)")
axes[1].set(xlim=(-4, 0.1), ylim=(-0.4, 0.02))  # only the rewards below the prior
axes[1].axvspan(-4, -1, color="0.9", zorder=0)
axes[1].text(-3.9, -0.03, "more than 1 below the\nprior: order reversed", va="top")
plt.show()  # alt: Transformed against original rewards. Left: a jump at the prior. Right: the curve falls for rewards more than 1 below the prior.

# %% [markdown]
# On the left CRT is nearly a label, above or below the prior, because the step is much larger than the slope. The right panel shows only rewards below the prior. There the worst images no longer come last. The slope is `lam * exp(R) * (1 + R - prior)`. It is negative if a reward is more than **1.0** below the prior, whatever the unit of the reward, because `exp(R)` shrinks faster than the bracket grows. With rewards and prior in [0, 1] this cannot happen. With rewards far below zero it can.
#
# ## BPGO: both, in one update
# Equation 5 adds the weighted loss and `beta` times the loss on transformed rewards. Both losses are clipped in the **ratio**: the probability of a step now, divided by its probability when it was drawn. Here it is one number per image, and in the first update it is 1. Clipping takes the worse of the plain and the clipped term. So nothing is gained by moving the ratio more than `clip` away from 1.
#
# **Before you run:** there are two losses, each with its own clip. In the first update, is there a set of advantages with which GRPO has the same gradient?


# %% tags=["nbval-check-output"]
def surrogate(ratio, a, clip=1e-4):
    return torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))


transformed = group_advantages(crt_rewards(rewards, prior, lam))
log_ratio = torch.zeros_like(rewards, requires_grad=True)
ratio = log_ratio.exp()
loss = w[:, None] * surrogate(ratio, advantages) + beta * surrogate(ratio, transformed)
loss.mean().backward()  # equation 5
effective = w[:, None] * advantages + beta * transformed
torch.testing.assert_close(log_ratio.grad, -effective / rewards.numel())
print("gradient of BPGO = gradient of GRPO with w * A + beta * A~")

# %% [markdown]
# At ratio 1, yes. Later, no: `A` and `A~` can differ in sign, and then one term is clipped while the other is not.
#
# The package computes the same:

# %%
from bpgo import diagnostics, objective

same = torch.testing.assert_close
same(objective.group_advantages(rewards), advantages)
same(objective.ras_weights(rewards, prior, alpha, k), w)
same(objective.crt_rewards(rewards, prior, lam), crt_rewards(rewards, prior, lam))
same(objective.k_from_kappa(kappa, rewards), k)
same(diagnostics.rank_inversions(in_sd, crt_rewards(in_sd, 0.0, lam)), reversed_in_sd)
four = {
    "grpo": objective.grpo(rewards, prior),
    "ras": objective.ras(rewards, prior, alpha=alpha, k=k),
    "crt": objective.crt(rewards, prior, lam=lam, beta=beta),
    "bpgo": objective.bpgo(rewards, prior, alpha=alpha, k=k, lam=lam, beta=beta),
}
same(four["bpgo"].effective, effective)

# %% tags=["nbval-check-output"]
from bpgo.records import record

columns = {"lasting": kept, "w_k1": w_plain, "w": w}
columns |= {"turned": reversed_pairs, "turned_in_sd": reversed_in_sd}
columns |= {name: size(found.effective) for name, found in four.items()}
table = {p: {c: v[i].item() for c, v in columns.items()} for i, p in enumerate(prompts)}
context = dict(alpha=alpha, k=k, lam=lam, beta=beta, seed=seed, noise=noise, signal=signal)
_ = record("ras_and_crt", table, output, context=context | {"prior": prior})

# %% [markdown]
# `lasting` is what was left after averaging above. `w_k1` is the weight at `k = 1`. `turned` and `turned_in_sd` are the shares of pairs that CRT reverses, for rewards as scored and in standard deviations. The last four columns are the size of the gradient of each group (for `crt`, the size of `A + beta * A~`). RAS separates "a shape" from "a red circle" more than BPGO does, because the CRT term is normalised again and is not multiplied by `w`.
#
# ## Turn the knobs
# Each panel shows the effective advantages, `w * A + beta * A~`, with one line per prompt. Solid lines are prompts with real differences, dashed lines are noise.


# %%
def explore(alpha=alpha, kappa=kappa, lam=lam, prior=prior, beta=beta, ax=None, title=""):
    ax = ax or plots.new_figure(1, 1, (6, 4))[1][0, 0]
    k = objective.k_from_kappa(kappa, rewards)
    a = objective.bpgo(rewards, prior, alpha=alpha, k=k, lam=lam, beta=beta).effective
    for name, r, y, real, marker in zip(prompts, rewards, a, can_be_wrong, "o^sD", strict=True):
        order = r.argsort()
        ax.plot(r[order], y[order], "k-" if real else "k--", marker=marker, ms=4, lw=1, label=name)
    ax.axvline(prior, color="0.6", ls=":")
    plots.label(ax, title)


if not interactive:
    figure, axes = plots.new_figure(2, 4, (10, 4.8), sharex=True, sharey=True)
    halves = {"GRPO": dict(alpha=0.0, beta=0.0), "RAS": dict(beta=0.0), "CRT": dict(alpha=0.0)}
    for ax, (title, change) in zip(axes[0], (halves | {"BPGO": {}}).items(), strict=True):
        explore(ax=ax, title=title, **change)
    larger = dict(alpha=0.9, kappa=5.0, lam=50.0, prior=0.65)
    for ax, (name, value) in zip(axes[1], larger.items(), strict=True):
        explore(ax=ax, title=f"BPGO, {name} = {value:g}", **{name: value})
    figure.supxlabel("reward (no unit); dotted: the prior")
    figure.supylabel("effective advantage")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=4, frameon=False)
    plt.show()  # alt: Eight panels of effective advantage against reward, with one line per prompt: GRPO, RAS, CRT and BPGO, and BPGO with one setting changed in each.

# %% [markdown]
# For sliders, set `interactive = True`.

# %% tags=["nbval-skip"]
if interactive:
    from ipywidgets import interact

    knobs = dict(alpha=(0.0, 1.0, 0.1), kappa=(0.0, 10.0, 0.5), lam=(0.0, 50.0, 1.0))
    interact(lambda **chosen: explore(**chosen), **knobs, prior=(0.4, 0.8, 0.01))

# %% [markdown]
# A larger `alpha` moves the groups further apart. The prior moves the jump. A large `kappa` drives the weights to `1 ± alpha`. With a large `lam` the slope dominates the step, and CRT mainly makes the advantages larger.

# %% [markdown]
# ## Exercises
# **1.** Leave the division out of the advantages, as Dr. GRPO proposes. How large is the gradient of each group now, and what happens to the noise?

# %% tags=["solution", "hide-cell"]
for name, a in zip(prompts, size(rewards - rewards.mean(-1, keepdim=True)), strict=True):
    print(f"{name:20} {a:.3f}")
# The gradient of a group is now as large as its standard deviation. Noise counts about a third of a signal, without any prior.
# But updates now depend on the unit of the reward, and groups with a large standard deviation dominate.

# %% [markdown]
# **2.** Set the prior to .8. What happens to the weights, and to the step of CRT?

# %% tags=["solution", "hide-cell"]
print("weights", *(f"{w:.2f}" for w in ras_weights(rewards, 0.8, alpha, k)))
print("rewards above the prior:", (rewards > 0.8).sum().item())
# All weights are below 1 and nearly equal, so RAS hardly distinguishes groups. No reward is above the prior, so the step is gone.

# %% [markdown]
# ## Summary
# - Group normalisation gives pure noise as much gradient as a signal.
# - RAS weights groups by their mean reward, which *stands in for* reliability.
# - CRT labels images as above or below the prior, and reverses the order of rewards that are more than 1 below it.
# - At ratio 1, BPGO is GRPO with the advantages `w * A + beta * A~`.
#
# **Vary** `noise`, `group_size` and `seed`. **Where it breaks:** the rewards are invented and nothing is trained. To find out which method is better, you need training, several seeds, and rewards that training never saw.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): group advantage (1), RAS (2, 3), CRT (4), objective (5).
# - [GRPO](https://arxiv.org/abs/2402.03300). The clipped loss: [PPO](https://arxiv.org/abs/1707.06347). No division: [Dr. GRPO](https://arxiv.org/abs/2503.20783).
