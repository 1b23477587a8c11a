# ---
# jupyter:
#   bpgo:
#     smallest: {measure: accuracy}
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
# # 8. What should a reward be compared with, and can one prior serve every task?
# *Seconds on one CPU core: the training was done before. Half an hour to read. Read notebooks 1, 5 and 6 first.*
#
# RAS trusts a group of samples whose mean reward lies above a **prior**, the reward to expect of a clear prompt. The paper takes another prior for each task: a running mean, the rewards of the untrained model, the first frame. And it leaves open how sharply trust should follow the difference, the `k` of equation 2.
#
# Afterwards you can say what each prior does to training, derive a prior that needs neither a task nor a `k`, and compare them all with the **ceiling**: weights made from the truth, which this small world knows.
#
# The first picture has the runs of every prior (five seeds, three on video): a dot a run, a grey line through the runs of one seed, a bar for the mean, dashed the model before training. All arms train BPGO:
#
# | arm | what a group is compared with |
# |---|---|
# | running mean | the mean reward of recent iterations |
# | sft | the mean reward of the untrained model, which is the one that supervised fine-tuning (SFT) left |
# | sft per prompt | the same, for each prompt by itself |
# | first frame (image-to-video) | the reward of the given picture, shown as a clip that stands still |
# | too low, too high | a constant: .35, .8 (mean rewards lie between .48 and .65) |
# | empirical Bayes | a prior made in this notebook; it also sets `k` |
# | ceiling | no prior for RAS: the weight is $1 + \alpha\,\rho$, with $\rho$ the group's true reliability (notebook 5); CRT keeps the task's own prior |

# %% tags=["parameters"]
task: str = "t2i"  # t2i, t2v or i2v
measure: str = "accuracy_specified"  # the primary measure; any other of the records
results: str = ""  # folder of the study's results; empty, those of the repository
output: str = ""  # folder for the record; empty, none is written

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from bpgo.analysis import plots, statistics
from bpgo.objective import ras_weights
from bpgo.priors import EmpiricalBayes, group_moments, posterior_sharpness
from bpgo.records import record
from reproduce.analysis import claims, evidence

plan, records = evidence.read(results)
ended = evidence.final(plan, records, f"priors_{task}", task, measure)
ended.insert(0, "grpo", evidence.so_far(plan, records, "ablation", task, measure)["grpo"])
figure, [[ax]] = plots.new_figure(size=(10, 3.4))
plots.runs_by_arm(ax, ended, evidence.before(records, task, measure))
ax.tick_params(axis="x", labelsize=8)
plots.labelled(
    ax, f"{task} after training, a dot a run", "prior (GRPO uses none)", evidence.axis(measure)
)
plt.show()  # alt: A dot for each run by prior, lines through runs of one seed, bars for means, dashed the untrained model.
print(evidence.state(plan, records))

# %% [markdown]
# ## One prior from the groups themselves
# The paper reads its weight as a belief: how sure are we that this group is better than a typical one? Take that at its word, with a model of two levels, a *hierarchy*. Each group $i$ has a true mean reward $\theta_i$, and these scatter around a population mean: $\theta_i \sim N(\mu, \tau^2)$. We see only $G$ samples, $R_{ij} \sim N(\theta_i, \sigma^2)$, with mean $\bar R_i$. Bayes' rule gives
#
# $$\theta_i \mid \bar R_i \;\sim\; N\!\left(\mu + B\,(\bar R_i - \mu),\; B\,\sigma^2/G\right), \qquad B = \frac{\tau^2}{\tau^2 + \sigma^2/G}.$$
#
# $B$ is the share of the variance of the group means that is real. The belief that a group is above the population is a probability,
#
# $$P_i = P(\theta_i > \mu \mid \bar R_i) = \Phi\!\left(\frac{\sqrt{B\,G}}{\sigma}\,(\bar R_i - \mu)\right) \approx \mathrm{sigmoid}\big(k\,(\bar R_i - \mu)\big), \qquad k = \frac{\pi}{\sqrt 3}\,\frac{\sqrt{B\,G}}{\sigma}.$$
#
# On the right a logistic law takes the normal one's place, with the same mean and variance; the two differ by less than .023. The paper's weight $w_i = 1 + \alpha\,(2P_i - 1)$ **is then equation 2**, with $R_\mathrm{prior} = \mu$. Nothing is left to choose but $\alpha$. A "typical" group is now the mean of all prompts, clear or not. RAS with a fixed `k` is the case in which these moments are known beforehand and never change (and `k` is below $\pi\sqrt{G/3}/\sigma$, since $B \le 1$).
#
# We estimate $\sigma^2$ by the mean variance within groups and $\mu$ by the mean of the group means. These two and the variance of the group means are averaged as training goes: nine tenths of the past, one tenth of the new batch. $\tau^2$ is then that variance less $\sigma^2/G$, or 0 if that is negative (`prior.name=empirical_bayes`).
#
# **Before you look:** what should happen to the weights if the groups differ by no more than chance? If every reward is multiplied by ten? If $G$ grows?

# %%
generator = torch.Generator().manual_seed(0)
draws = torch.randn(400, 1 + 48, generator=generator, dtype=torch.float64)


def groups(size, tau, sigma=0.08, mean=0.57):
    return mean + tau * draws[:, :1] + sigma * draws[:, 1 : 1 + size]


def weigh(rewards):  # by equation 2, with the hierarchy's mean and k
    prior = EmpiricalBayes()
    return ras_weights(rewards, prior([], rewards), 0.5, prior.sharpness(rewards))


# %%
figure, axes = plots.new_figure(1, 3, (10, 3.0), sharey=True)
shown = {
    "differences: none to large": [(12, 0.0, "-"), (12, 0.02, "--"), (12, 0.1, ":")],
    "samples: few to many": [(4, 0.02, "-"), (12, 0.02, "--"), (48, 0.02, ":")],
}
for ax, (title, settings) in zip(axes[0], shown.items(), strict=False):
    for size, tau, dashes in settings:
        means = groups(size, tau).mean(1)
        ax.plot(
            means.sort().values - means.mean(),
            weigh(groups(size, tau))[means.argsort()],
            dashes,
            color="black",
            label=f"G = {size}, tau = {tau}",
        )
    plots.labelled(ax, title, "group mean - population mean", "weight w")
rewards = groups(12, 0.05)
for scale, look in (
    (1, {"s": 40, "facecolors": "none", "edgecolors": "0.5"}),
    (10, {"s": 30, "marker": "x", "color": "black", "linewidths": 0.7}),
):
    axes[0, 2].scatter(
        (rewards.mean(1) - rewards.mean())[:60],
        weigh(scale * rewards)[:60],
        label=f"rewards x {scale}",
        **look,
    )
plots.labelled(axes[0, 2], "rewards x 1 and x 10", "group mean - population mean (x 1)", "weight w")
for ax in axes[0]:
    ax.legend(frameon=False, fontsize=8)
plt.show()  # alt: Weight against the group mean's distance from the population mean: flat without real differences, steeper with more samples, the same for rewards of any scale.
for scale in (1, 10):
    mean, spread, within = group_moments(scale * rewards)
    print(f"rewards x {scale}: k = {posterior_sharpness(spread - within / 12, within, 12):.1f}")
few = [weigh(groups(12, 0.0)[8 * i : 8 * i + 8]) for i in range(50)]
apart = np.array([(w.max() - w.min()).item() for w in few])
print(
    f"no real differences, 8 groups as in an iteration: weights all 1 in {(apart == 0).sum()} of 50 draws; in the others they lie {apart[apart > 0].mean():.2f} apart"
)

# %% [markdown]
# Where only chance differs, the weights should all be 1. In the first panel they are, since the estimate of $\tau^2$ from these 400 groups is cut off at 0. With the 8 groups of one iteration that happens in about six of ten draws; in the others chance passes for a difference, and the weights lie far apart. That is why the moments are averaged over iterations. With more samples the belief becomes surer. The scale of the reward does not matter; $\kappa$ manages that too (notebook 1), but does not follow $G$ and the share of real differences.
#
# ## Is one prior enough? Is any? (H9, H10, H11)
# Each line compares an arm with GRPO, paired by seed, with its 95 % interval; `p` is corrected for the number of lines. Beside H10 stands the ceiling less the task's own prior; beside H11, which compares with the running mean, the mean of all other priors.
#
# **Before you look:** a prior that is too high weighs every group down. Should that stop learning, if the optimiser (AdamW) rescales its gradients?

# %%
table = evidence.compare(ended, "grpo")
print(table.round(3).to_string())
print(
    "\nby the plan's measure, in all tasks:",
    claims.told(claims.verdicts(plan, records, ["H9", "H10", "H11"])),
    sep="\n",
)

# %% [markdown]
# ## Is there anything to win? (H15, H16)
# If even weights made from the truth do not beat GRPO, there is little hope for a guess. Five seeds (three on video) left that open. So GRPO, BPGO with the task's own prior and the ceiling were given ten, in one step planned before the new runs (*Changes* in `reproduce/PLAN.md`). The older seeds had been read, so the new ones are told alone as well. The ceiling is the best weight that we know how to make, not a strict bound, and CRT is part of it.
#
# **Before you look:** a grey line joins the runs of one seed. Should most of them rise from GRPO to the ceiling?

# %%
figure, axes = plots.new_figure(1, 3, (10, 3.0))
for ax, name in zip(axes[0], ("t2i", "t2v", "i2v"), strict=True):
    plots.runs_by_arm(
        ax,
        evidence.so_far(plan, records, "trust", name, measure),
        evidence.before(records, name, measure),
    )
    plots.labelled(
        ax, f"{name} after training", "weights", evidence.axis(measure) if ax is axes[0, 0] else ""
    )
    gain = statistics.bootstrap_mean(
        evidence.so_far(plan, records, "trust", name, measure)["grpo"].to_numpy()
        - evidence.before(records, name, measure)
    )
    print(f"{name}: GRPO less the untrained model {statistics.said(gain)}, n = {gain.n}")
plt.show()  # alt: Three panels, one a task: a dot for each run of GRPO, BPGO and BPGO weighted by the truth, lines through the runs of one seed.
print(
    "by the plan's measure:", claims.told(claims.verdicts(plan, records, ["H15", "H16"])), sep="\n"
)

# %% [markdown]
# ## What did the weights do?
# The largest and smallest weight of each iteration, means over seeds; dotted, $1 \pm \alpha$. A factor that all weights share hardly matters: AdamW divides it out, and only the balance with CRT, which the weight does not multiply, changes. So look at the *width* of a band: it is what tells groups apart. CRT uses the same prior: under one that is too high hardly a reward passes, and its step is nearly gone.
#
# **Before you look:** which prior gives the widest band? Does a wide band go with a good place in the table above?

# %%
low, high = (
    evidence.curves(plan, records, f"priors_{task}", task, f"weight_{end}")
    for end in ("min", "max")
)
figure, axes = plots.new_figure(1, max(1, len(low)), (1.9 * max(2, len(low)), 2.6), sharey=True)
for ax, arm in zip(axes[0], low, strict=False):
    at = np.arange(1, low[arm].shape[1] + 1)
    ax.fill_between(at, low[arm].mean(0), high[arm].mean(0), color="0.6", linewidth=0)
    for level, dashes in ((1, "--"), (0.5, ":"), (1.5, ":")):
        ax.axhline(level, color="black", lw=1, ls=dashes)
    plots.labelled(ax, arm.replace("_", " "), "iteration", "weight w" if ax is axes[0, 0] else "")
plt.show()  # alt: Range of weights against iterations, a panel a prior.

# %% [markdown]
# Empirical Bayes weighs much harder than $\kappa = 1$ does. So H9 compares two things at once, where the prior lies and how sharp it is; its prior with the same $\kappa$ was not run.

# %% tags=["nbval-check-output"]
values = {
    arm: {"n": int(row["n"]), "mean": row["mean"], "difference": round(row["- grpo"], 6)}
    for arm, row in table.iterrows()
}
values = {
    arm: {k: None if np.isnan(v) else v for k, v in row.items()} for arm, row in values.items()
}
whole = record(
    "priors", values, output, context={"task": task, "measure": measure, "runs": len(records)}
)

# %% [markdown]
# ## Exercises
# **1.** What does the hierarchy do with groups that differ by chance alone, and with groups of endless size?

# %% tags=["solution", "hide-cell"]
for tau, size in ((0.0, 12), (0.05, 12), (0.05, 10_000)):
    print(f"tau = {tau}, G = {size}: k = {posterior_sharpness(tau**2, 0.08**2, size):.1f}")
# tau = 0: k = 0, all weights are 1, plain GRPO. Endless groups: k grows without bound, and trust becomes a step at the population mean.

# %% [markdown]
# **2.** Set `alpha` to 1 and a constant prior far too high. What is left of the gradient?

# %% tags=["solution", "hide-cell"]
print("weights:", *(f"{w:.4f}" for w in ras_weights(groups(12, 0.02)[:4], 2.0, 1.0, 12.0)))
# Of RAS nothing: every group is weighed down to zero. Of BPGO the CRT term is left, since w does not multiply it; it has lost its step, as no reward passes
# the prior. With alpha = 0.5 half of RAS would be left, the same for all.

# %% [markdown]
# ## Summary
# - The paper's own reading of its weight, taken at its word, gives equation 2, and with it both of its free quantities, $k$ and the prior. $\alpha$ stays free.
# - Its limits are right: no differences, no trust; any scale, the same trust; more samples, surer trust.
# - Whether it helps training, the lines under the table say. Look at the ceiling first (H16): its interval says how much BPGO with such weights ($\alpha = 0.5$) can win here.
#
# **Vary** `task`, `measure`. **Where it breaks:** the hierarchy asks whether a group's reward is *high*, as RAS does. That a high reward is also a *reliable* one is an assumption, which notebook 5 tests. Groups of very unequal spread share one $\sigma$ here.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): RAS (2, 3).
# - Efron and Morris, Stein's estimation rule and its competitors, an empirical Bayes approach, JASA 68 (1973): shrinkage by B.
