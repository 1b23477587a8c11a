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
# # 1. Which differences in reward deserve a gradient?
# *Half a minute on two CPU cores, no accelerator; 20 minutes to read.*
#
# Afterwards you can compute Bayesian Prior-Guided Optimization (BPGO: a weight for each group, RAS, and other rewards within it, CRT) in plain torch, say when group normalisation (dividing by the group's spread) turns noise into gradient, set the sharpness `k` of its trust for a reward of any scale, and spot rewards that the method would rank upside down.
#
# A generator draws several pictures for one prompt, a **group**. A reward model scores each: its **reward**, higher is better. The **advantage** `A` says how far a reward stands above its group; training makes pictures with a positive one more likely, the others less.

# %% tags=["parameters"]
seed: int = 0  # of the noise in the rewards
group_size: int = 8  # pictures per prompt
noise: float = 0.03  # standard deviation of the reward among equally good pictures, above 0
signal: float = 0.12  # what a picture that fits its prompt gains over one that does not
prior: float = 0.55  # reward expected of a clear, typical prompt
alpha: float = 0.5  # how far RAS may move a group's weight from 1
kappa: float = 1.0  # how sharply it does so, per standard deviation of the reward
lam: float = 1.0  # the paper's lambda: slope of CRT against its step
beta: float = 0.5  # weight of the CRT term; the paper does not publish it
output: str = ""  # folder for the record; empty: show it only
interactive: bool = False  # live sliders, in Jupyter

# %% [markdown]
# ## A page of rewards
# Four invented prompts. For "a red circle" and "a rare purple cross" a picture can be wrong. "a shape" and "something bright" are ambiguous: *every* picture fits, and rewards differ by noise alone.
#
# **Before you run:** the rewards of "a red circle" spread more than twice as wide as those of "a shape". Which prompt gets the larger gradient?

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
rewards = quality + noise * torch.randn(quality.shape)  # (N prompts, G pictures)


def group_advantages(r):  # equation 1, guarded against division by zero
    return (r - r.mean(-1, keepdim=True)) / (r.std(-1, keepdim=True) + 1e-8)


figure, [[left, right]] = plots.new_figure(1, 2, (9, 3.2), sharey=True)
plots.strips(left, rewards, fits, prompts)
plots.strips(right, group_advantages(rewards), fits, prompts)
plots.labelled(left, "What the reward model says (dashed: the prior)", "reward (no unit)").axvline(
    prior, color="0.4", ls="--"
)
plots.labelled(
    right, "What the generator is trained on", "advantage (standard deviations of its group)"
)
plt.show()  # alt: Two strip charts of four prompts. Rewards: clear prompts spread wide, ambiguous ones little. Advantages: all spread alike.

# %% [markdown]
# Solid dots fit their prompt, hollow ones do not. On the right all groups spread equally: dividing by the standard deviation gives each the same size of gradient, meaningful or not. Every picture of "a shape" is right, yet some are pushed down hard.
#
# What lasts? Score the same pictures 2000 times, with fresh noise, and average each one's advantage.


# %%
def size(a):  # root mean square over a group
    return a.square().mean(-1).sqrt()


advantages = group_advantages(rewards)
fresh = quality + noise * torch.randn(2000, *quality.shape)
kept = size(group_advantages(fresh).mean(0))
for name, one, lasting in zip(prompts, size(advantages), kept, strict=True):
    print(
        f"{name:20} advantage in one group {one:.2f}, what is left of it on average {lasting:.2f}"
    )

# %% [markdown]
# For the ambiguous prompts almost nothing lasts. (A *constant* taste of the reward model, say for a colour, would not average out.)
#
# ## RAS: a weight for each group
# Reliability-adaptive scaling (equations 2, 3) compares a group's mean $\bar R$ with the **prior** (dashed above), the reward expected of a clear, typical prompt. With $p$ for the prior, the weight of a group is $w = 1 + \alpha\,(2\,\mathrm{sigmoid}(k(\bar R - p)) - 1)$, within `1 ± alpha`, and multiplies the group's loss.
#
# **Before you run:** the page's standard deviation is about .07. What will `k = 1` do? Which of the *ambiguous* prompts will RAS trust?


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
# At `k = 1` every weight is 1 within .02: plain GRPO, in effect. `k` has the unit 1/reward, so we write `k = kappa / sd`, with the page's standard deviation: one `kappa` serves every scale.
#
# RAS then turns "a shape" down, but also the rare cross, whose differences are real; "something bright", pure noise, it turns *up*. The weight never looks at the noise: it assumes that a high mean goes with reliable rewards. This page breaks that half the time, by design; whether real prompts do must be measured.
#
# ## CRT: another reward inside the group
# Contrastive reward transformation (equation 4) replaces each reward by $(\lambda(R - p) + 1_{R > p})\,e^R$: a slope, and a step ($1_{R > p}$ is 1 above the prior, else 0), both times a factor that grows with the reward. The result is normalised in its group like any reward, which gives `A~`. We try it on the page as scored, and in standard deviations from the prior, where rewards below the prior are negative.
#
# **Before you run:** only the unit differs. Does the order of the pictures survive both times?


# %%
def crt_rewards(r, prior, lam):  # equation 4
    return (lam * (r - prior) + (r > prior)) * torch.exp(r)


def inverted(r, t):  # share of a group's pairs whose order turns round
    before, after = (x[:, :, None] - x[:, None, :] for x in (r, t))
    return (before * after < 0).float().mean((1, 2)) * group_size / (group_size - 1)


in_sd = (rewards - prior) / rewards.std()
turned, turned_in_sd = (
    inverted(r, crt_rewards(r, p, lam)) for r, p in ((rewards, prior), (in_sd, 0.0))
)
figure, [axes] = plots.new_figure(1, 2, (9, 3.3))
units = [
    (rewards, prior, (prior - 0.2, prior + 0.2), "as scored"),
    (in_sd, 0.0, (-4, 0), "in standard deviations"),
]
for ax, (r, p, ends, unit) in zip(axes, units, strict=True):
    line = torch.linspace(*ends, 400)
    ax.plot(line, crt_rewards(line, p, lam), color="0.5", lw=1)
    ax.scatter(
        r, crt_rewards(r, p, lam), c=["black" if f else "white" for f in fits.flatten()], ec="black"
    )
    plots.labelled(ax, f"CRT of rewards {unit}", f"reward ({unit})", "transformed reward (no unit)")
axes[1].set(xlim=(-4, 0.1), ylim=(-0.4, 0.02))  # only the rewards below the prior
axes[1].axvspan(-4, -1, color="0.9", zorder=0)
axes[1].text(-3.9, -0.03, "more than 1 below the\nprior: order reversed", va="top")
plt.show()  # alt: Transformed against plain rewards. Left: a jump at the prior. Right: a curve that falls for rewards more than 1 below the prior.

# %% [markdown]
# On the left CRT is nearly a label, above or below the prior: the step dwarfs the slope. On the right (only rewards below the prior shown) the worst no longer come last. There the slope is `lam * exp(R) * (1 + R - prior)`, negative once a reward is more than **1.0** below the prior, whatever the reward's unit: `exp(R)` shrinks faster than the bracket grows. With rewards and prior in [0, 1] that cannot happen; with rewards well below zero it can.
#
# ## BPGO: both, in one update
# Equation 5 adds the weighted loss and `beta` times the loss on transformed rewards. Both are clipped in the **ratio**, a step's probability now over that when it was drawn (here one number a picture): 1 in the first update. Clipping takes the worse of the plain and the clipped term, so nothing is gained by moving the ratio more than `clip` from 1.
#
# **Before you run:** two losses, a clip in each. In the first update, does GRPO with some other advantages have the same gradient?


# %% tags=["nbval-check-output"]
def surrogate(ratio, a, clip=1e-4):
    return torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))


transformed = group_advantages(crt_rewards(rewards, prior, lam))
log_ratio = torch.zeros_like(rewards, requires_grad=True)
loss = w[:, None] * surrogate(log_ratio.exp(), advantages) + beta * surrogate(
    log_ratio.exp(), transformed
)
loss.mean().backward()  # equation 5
effective = w[:, None] * advantages + beta * transformed
torch.testing.assert_close(log_ratio.grad, -effective / rewards.numel())
print("gradient of BPGO = gradient of GRPO with w * A + beta * A~")

# %% [markdown]
# At ratio 1, yes. Later, no: `A` and `A~` may differ in sign, and then one term is clipped while the other is not.
#
# The package computes the same:

# %% tags=["nbval-check-output"]
from bpgo import objective
from bpgo.records import record

same, settings = torch.testing.assert_close, dict(alpha=alpha, k=k, lam=lam, beta=beta)
same(objective.group_advantages(rewards), advantages)
same(objective.ras_weights(rewards, prior, alpha, k), w)
same(objective.crt_rewards(rewards, prior, lam), crt_rewards(rewards, prior, lam))
same(objective.k_from_kappa(kappa, rewards), k)
same(objective.rank_inversions(in_sd, crt_rewards(in_sd, 0.0, lam)), turned_in_sd)
same(objective.bpgo(rewards, prior, **settings).effective, effective)

columns = {"lasting": kept, "w_k1": w_plain, "w": w, "turned": turned, "turned_in_sd": turned_in_sd}
for name in ("grpo", "ras", "crt", "bpgo"):
    columns[name] = size(objective.OBJECTIVES[name](rewards, prior, **settings).effective)
table = {p: {c: v[i].item() for c, v in columns.items()} for i, p in enumerate(prompts)}
context = settings | {"seed": seed, "noise": noise, "signal": signal, "prior": prior}
_ = record("ras_and_crt", table, output, context=context)

# %% [markdown]
# `lasting` is what averaging left above, `w_k1` the weight at `k = 1`, `turned` the share of pairs that CRT reverses, as scored and in standard deviations; the last four columns are the size of each group's gradient (of `crt`: `A + beta * A~`). RAS sets "a shape" and "a red circle" further apart than BPGO: the CRT term is normalised anew, and `w` does not multiply it.
#
# ## Turn the knobs
# A panel shows the effective advantages, `w * A + beta * A~`, a line per prompt (solid: real differences, dashed: noise).


# %%
def explore(alpha=alpha, kappa=kappa, lam=lam, prior=prior, beta=beta, ax=None, title=""):
    ax = ax or plots.new_figure(1, 1, (6, 4))[1][0, 0]
    k = kappa / rewards.std().item()
    a = objective.bpgo(rewards, prior, alpha=alpha, k=k, lam=lam, beta=beta).effective
    for name, r, y, real, marker in zip(prompts, rewards, a, can_be_wrong, "o^sD", strict=True):
        order = r.argsort()
        ax.plot(r[order], y[order], "k-" if real else "k--", marker=marker, ms=4, lw=1, label=name)
    ax.axvline(prior, color="0.6", ls=":")
    plots.labelled(ax, title)


if not interactive:
    figure, axes = plots.new_figure(2, 4, (10, 4.8), sharex=True, sharey=True)
    top = [dict(alpha=0.0, beta=0.0), dict(beta=0.0), dict(alpha=0.0), {}]
    for ax, change, name in zip(axes[0], top, ("GRPO", "RAS", "CRT", "BPGO"), strict=True):
        explore(ax=ax, title=name, **change)
    for ax, (name, value) in zip(
        axes[1], dict(alpha=0.9, kappa=5.0, lam=50.0, prior=0.65).items(), strict=True
    ):
        explore(ax=ax, title=f"BPGO, {name} = {value:g}", **{name: value})
    figure.supxlabel("reward (no unit); dotted: the prior")
    figure.supylabel("effective advantage")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False
    )
    plt.show()  # alt: Eight panels of effective advantage against reward, a line a prompt: GRPO, RAS, CRT, BPGO, and BPGO with one knob changed in each.

# %% [markdown]
# For sliders, set `interactive = True`.

# %% tags=["nbval-skip"]
if interactive:
    from ipywidgets import interact

    knobs = dict(
        alpha=(0.0, 1.0, 0.1), kappa=(0.0, 10.0, 0.5), lam=(0.0, 50.0, 1.0), prior=(0.4, 0.8, 0.01)
    )
    interact(lambda **chosen: explore(**chosen), **knobs)

# %% [markdown]
# A larger `alpha` sets the groups apart; the prior moves the jump. A large `kappa` drives weights to `1 ± alpha`; a large `lam` drowns the step in the slope, and CRT adds little but size.

# %% [markdown]
# ## Exercises
# **1.** Leave the division out of the advantages, as Dr. GRPO proposes. What size of gradient does each group have then, and what has become of the noise?

# %% tags=["solution", "hide-cell"]
for name, a in zip(prompts, size(rewards - rewards.mean(-1, keepdim=True)), strict=True):
    print(f"{name:20} {a:.3f}")
# Each gradient has the size of its group's spread: noise counts for about a third of a signal, without any prior.
# But updates now depend on the reward's unit, and wide groups dominate.

# %% [markdown]
# **2.** Set the prior to .8. What happens to the weights, and to the step of CRT?

# %% tags=["solution", "hide-cell"]
print("weights", *(f"{w:.2f}" for w in ras_weights(rewards, 0.8, alpha, k)))
print("rewards above the prior:", (rewards > 0.8).sum().item())
# All weights are below 1 and nearly alike: RAS hardly tells groups apart. No reward passes the prior, so the step is gone.

# %% [markdown]
# ## Summary
# - Group normalisation gives pure noise as much gradient as a signal.
# - RAS weights groups by mean reward, which *stands for* reliability.
# - CRT labels pictures above or below the prior, and reverses the order of rewards more than 1 below it.
# - At ratio 1, BPGO is GRPO with advantages `w * A + beta * A~`.
#
# **Vary** `noise`, `group_size` and `seed`. **Where it breaks:** rewards are invented and nothing is trained. To see which method is better takes training, several seeds, and rewards that training never saw.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): group advantage (1), RAS (2, 3), CRT (4), objective (5).
# - [GRPO](https://arxiv.org/abs/2402.03300); the clipped loss, [PPO](https://arxiv.org/abs/1707.06347); no division, [Dr. GRPO](https://arxiv.org/abs/2503.20783).
