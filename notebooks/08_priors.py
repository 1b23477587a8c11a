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
# *Seconds on one CPU core: the training was done before. Half an hour to read. Read notebooks 1 and 6 first.*
#
# RAS trusts a group of samples whose mean reward lies above a **prior**, the reward to expect of a clear prompt. The paper takes another prior for each task: a running mean, the rewards of the untrained model, the first frame. And it leaves open how sharply trust should follow the difference, the `k` of equation 2.
#
# Afterwards you can say what each prior does to training, derive a prior that needs neither a task nor a `k`, and compare them all with the **ceiling**: weights made from the truth, which this small world knows.
#
# The first picture has all runs: a dot a run, a grey line through the runs of one seed, a bar for the mean, dashed the model before training. All arms train BPGO and differ in the prior alone.

# %% tags=["parameters"]
task: str = "t2i"  # t2i, t2v or i2v
measure: str = "accuracy_specified"  # the primary measure; any other of the records
results: str = ""  # folder of the study's results; empty, those of the repository
output: str = ""  # folder for the record; empty, none is written

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from bpgo.analysis import claims, evidence, plots
from bpgo.objective import ras_weights
from bpgo.priors import EmpiricalBayes, group_moments, posterior_sharpness
from bpgo.records import record

plan, records = evidence.read(results)
ended = evidence.final(plan, records, f"priors_{task}", task, measure)
ended.insert(0, "grpo", evidence.final(plan, records, "ablation", task, measure)["grpo"])
figure, [[ax]] = plots.new_figure(size=(10, 3.4))
plots.runs_by_arm(ax, ended, evidence.before(records, task, measure))
ax.tick_params(axis="x", labelsize=8)
plots.labelled(ax, f"{task}: {measure} after training, a dot a run", "prior (GRPO uses none)", "share of samples")
plt.show()  # alt: A dot for each run by prior, lines through runs of one seed, bars for means, dashed the untrained model.
print(evidence.state(plan, records))

# %% [markdown]
# ## One prior from the groups themselves
# The paper reads its weight as a belief: how sure are we that this group is better than a typical one? Take that at its word. Each group $i$ has a true mean reward $\theta_i$, and these scatter around a population mean: $\theta_i \sim N(\mu, \tau^2)$. We see only $G$ samples, $R_{ij} \sim N(\theta_i, \sigma^2)$, with mean $\bar R_i$. Bayes' rule gives
#
# $$\theta_i \mid \bar R_i \;\sim\; N\!\left(\mu + B\,(\bar R_i - \mu),\; B\,\sigma^2/G\right), \qquad B = \frac{\tau^2}{\tau^2 + \sigma^2/G}.$$
#
# $B$ is the share of the groups' differences that is real. The belief that a group is above the population is a probability $P_i$, and the weight $w_i = 1 + \alpha\,(2P_i - 1)$. If we write the posterior as a logistic law of the same mean and variance, then $P_i = \mathrm{sigmoid}(k(\bar R_i - \mu))$ with
#
# $$k = \frac{\pi}{\sqrt 3}\,\frac{\sqrt{B\,G}}{\sigma}, \qquad R_\mathrm{prior} = \mu.$$
#
# **That is equation 2**, with nothing left to choose: $\mu$, $\tau$ and $\sigma$ come from the groups that training sees, averaged as it goes (`prior.kind=empirical_bayes`). RAS with a fixed `k` is the case in which these moments are known beforehand and never change.
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
shown = {"chance alone differs": [(12, 0.0, "-"), (12, 0.02, "--"), (12, 0.1, ":")],
         "more samples": [(4, 0.02, "-"), (12, 0.02, "--"), (48, 0.02, ":")]}  # fmt: skip
for ax, (title, settings) in zip(axes[0], shown.items(), strict=False):
    for size, tau, dashes in settings:
        means = groups(size, tau).mean(1)
        ax.plot(means.sort().values - means.mean(), weigh(groups(size, tau))[means.argsort()], dashes, color="black", label=f"G = {size}, tau = {tau}")
    plots.labelled(ax, title, "group mean - population mean", "weight w")
rewards = groups(12, 0.05)
for scale, colour, size in ((1, "black", 30), (10, "white", 3)):
    axes[0, 2].scatter(rewards.mean(1) - rewards.mean(), weigh(scale * rewards), s=size, color=colour, label=f"rewards x {scale} ({colour})")
plots.labelled(axes[0, 2], "another scale", "group mean - population mean", "weight w")
for ax in axes[0]:
    ax.legend(frameon=False, fontsize=8)
plt.show()  # alt: Weight against the group mean's distance from the population mean: flat without real differences, steeper with more samples, the same for rewards of any scale.
mean, spread, within = group_moments(rewards)
print(f"k = {posterior_sharpness(spread - within / 12, within, 12):.1f} for rewards as they are, a tenth of it for ten times the rewards")

# %% [markdown]
# Where only chance differs, all weights are 1: this prior falls back to GRPO by itself. With more samples it becomes surer, up to a step. And the scale of the reward does not matter, which a fixed `k` cannot say.
#
# ## Is one prior enough? Is any? (H9, H10)
# Each line compares an arm with GRPO, paired by seed, with its 95 % interval; `p` is corrected for the number of lines. The ceiling weighs each group by how well its reward agrees with the truth. If even the ceiling is not above GRPO, little can be hoped of a prior that only guesses at the same.

# %%
table = evidence.compare(ended, "grpo")
print(table.round(3).to_string())
own = evidence.compare(ended.drop(columns="grpo"), claims.OWN_PRIOR[task])
print("\nempirical Bayes less the paper's own prior:", own.loc["empirical_bayes"].iloc[4:7].round(3).to_dict(), "n =", int(own.loc["empirical_bayes", "n"]))

# %% [markdown]
# ## What did the weights do?
# The largest and smallest weight of each iteration, means over seeds. A prior set too high weighs every group down, which only makes the steps smaller; one set too low weighs all of them up. Neither tells groups apart.

# %%
low, high = (evidence.curves(plan, records, f"priors_{task}", task, f"weight_{end}") for end in ("min", "max"))
figure, axes = plots.new_figure(1, max(1, len(low)), (1.9 * max(2, len(low)), 2.6), sharey=True)
for ax, arm in zip(axes[0], low, strict=False):
    at = np.arange(1, low[arm].shape[1] + 1)
    ax.fill_between(at, low[arm].mean(0), high[arm].mean(0), color="0.6", linewidth=0)
    ax.axhline(1, color="black", lw=1, ls="--")
    plots.labelled(ax, arm.replace("_", " "), "iteration", "weight w" if ax is axes[0, 0] else "")
plt.show()  # alt: Range of weights against iterations, a panel a prior.

# %% tags=["nbval-check-output"]
values = {arm: {"n": int(row["n"]), "mean": row["mean"], "difference": row["- grpo"]} for arm, row in table.iterrows()}
values = {arm: {k: None if np.isnan(v) else v for k, v in row.items()} for arm, row in values.items()}
whole = record("priors", values, output, context={"task": task, "measure": measure, "runs": len(records)})

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
# Nothing: every group is weighed down to zero, and training stands still. With alpha = 0.5 half of it would be left, the same for all.

# %% [markdown]
# ## Summary
# - The paper's own reading of its weight, taken at its word, gives equation 2 *and* its two free quantities.
# - The prior of the hierarchy has the right limits: no differences, no trust; any scale, the same trust; more samples, surer trust.
# - Whether any of it helps training is what the table says, for this task and as far as the runs go that are there. Look at the ceiling first.
#
# **Vary** `task`, `measure`. **Where it breaks:** the hierarchy asks whether a group's reward is *high*, as RAS does. That a high reward is also a *reliable* one is an assumption, which H5 of `reproduce/PLAN.md` is to test. Groups of very unequal spread share one $\sigma$ here.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): RAS (2, 3).
# - Efron and Morris, Stein's estimation rule and its competitors, an empirical Bayes approach, JASA 68 (1973): shrinkage by B.
