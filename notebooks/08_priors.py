# ---
# jupyter:
#   bpgo:
#     smallest: {metric: accuracy}
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
# *Seconds on one CPU core, because the training was done before. Half an hour to read. Read notebooks 1, 5 and 6 first.*
#
# RAS trusts a group of samples if its mean reward is above a **prior**, the expected reward of a clear prompt. The paper uses a different prior for each task: a running mean, the rewards of the untrained model, or the first frame. It also leaves open how sharply trust should follow the difference. This is the `k` of equation 2.
#
# Afterwards you can say what each prior does to training, and derive a prior that needs neither a task nor a `k`. You can compare all of them with the **ceiling**: weights made from the truth, which is known in this small world.
#
# The first figure shows the runs of every prior, with five seeds (three on video). A dot is a run, a grey line connects the runs of one seed, a bar marks the mean, and the dashed line is the model before training. All arms but `grpo` train BPGO:
#
# | arm | what a group is compared with |
# |---|---|
# | running mean | the mean reward of recent iterations |
# | sft | the mean reward of the untrained model, the result of supervised fine-tuning (SFT) |
# | sft per prompt | the same, separately for each prompt |
# | first frame (image-to-video) | the reward of the given image, shown as a still clip |
# | too low, too high | a constant: .35 or .8 (mean rewards are between .48 and .65) |
# | empirical Bayes | a prior that this notebook derives; it also sets `k` |
# | ceiling | no prior for RAS: the weight is $1 + \alpha\,\rho$, where $\rho$ is the true reliability of the group (notebook 5); CRT keeps the prior of the task |

# %% tags=["parameters"]
task: str = "t2i"  # t2i, t2v or i2v
metric: str = "accuracy_specified"  # the primary metric, or any other one of the records
results: str = ""  # folder with the results of the study; if empty, those of the repository
output: str = ""  # folder for the record; if empty, none is written

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from bpgo.analysis import plots, statistics
from bpgo.objective import ras_weights
from bpgo.priors import EmpiricalBayes, group_moments, posterior_sharpness
from bpgo.records import record
from reproduce.analysis import claims, evidence
from reproduce.analysis.figures import arms

plan, records = evidence.read(results)
ended = evidence.final(plan, records, f"priors_{task}", task, metric)
ended.insert(0, "grpo", evidence.so_far(plan, records, "ablation", task, metric)["grpo"])
figure, [[ax]] = plots.new_figure(size=(10, 3.4))
plots.runs_by_arm(ax, ended, evidence.before(records, task, metric))
ax.tick_params(axis="x", labelsize=8)
plots.label(ax, f"{task} after training", "prior (GRPO uses none)", evidence.axis(metric))
plt.show()  # alt: One dot per run by prior. Lines connect the runs of one seed, bars mark the means, and a dashed line marks the untrained model.
print(evidence.state(plan, records))

# %% [markdown]
# ## One prior from the groups themselves
# The paper reads its weight as a belief: how sure are we that this group is better than a typical one? We take this literally and write down a model with two levels, a *hierarchy*. Each group $i$ has a true mean reward $\theta_i$. These means vary around a population mean: $\theta_i \sim N(\mu, \tau^2)$. We see only $G$ samples, $R_{ij} \sim N(\theta_i, \sigma^2)$, with mean $\bar R_i$. Bayes' rule gives
#
# $$\theta_i \mid \bar R_i \;\sim\; N\!\left(\mu + B\,(\bar R_i - \mu),\; B\,\sigma^2/G\right), \qquad B = \frac{\tau^2}{\tau^2 + \sigma^2/G}.$$
#
# $B$ is the share of the variance of the group means that is real. The belief that a group is above the population is a probability,
#
# $$P_i = P(\theta_i > \mu \mid \bar R_i) = \Phi\!\left(\frac{\sqrt{B\,G}}{\sigma}\,(\bar R_i - \mu)\right) \approx \mathrm{sigmoid}\big(k\,(\bar R_i - \mu)\big), \qquad k = \frac{\pi}{\sqrt 3}\,\frac{\sqrt{B\,G}}{\sigma}.$$
#
# The approximation replaces the normal distribution by the logistic one of the same mean and variance. They differ by less than .023. The paper's weight $w_i = 1 + \alpha\,(2P_i - 1)$ **is then equation 2**, with $R_\mathrm{prior} = \mu$. Only $\alpha$ is left to choose. A "typical" group is now the mean of all prompts, clear or not. RAS with a fixed `k` is the case in which these moments are known in advance and never change. (Because $B \le 1$, `k` is then below $\pi\sqrt{G/3}/\sigma$.)
#
# We estimate $\sigma^2$ by the mean variance within groups, and $\mu$ by the mean of the group means. Both, and the variance of the group means, are averaged as training proceeds: nine tenths of the past and one tenth of the new batch. $\tau^2$ is the averaged variance minus $\sigma^2/G$, or 0 if that is negative (`prior.name=empirical_bayes`).
#
# **Before you look:** what should happen to the weights if the groups differ by no more than chance? If every reward is multiplied by ten? If $G$ grows?

# %%
generator = torch.Generator().manual_seed(0)
draws = torch.randn(400, 1 + 48, generator=generator, dtype=torch.float64)


def groups(size, tau, sigma=0.08, mean=0.57):
    return mean + tau * draws[:, :1] + sigma * draws[:, 1 : 1 + size]


def weigh(rewards):  # equation 2, with the mean and the k of the hierarchy
    prior = EmpiricalBayes()
    return ras_weights(rewards, prior([], rewards), 0.5, prior.sharpness(rewards))


for scale in (1, 10):
    _, between, within = group_moments(scale * groups(12, 0.05))
    k = posterior_sharpness(between - within / 12, within, 12)
    print(f"rewards x {scale}: k = {k:.1f}")
few = [weigh(batch) for batch in groups(12, 0.0).split(8)]  # 50 times 8 groups, as in an iteration
ranges = np.array([(w.max() - w.min()).item() for w in few])
print("8 groups without real differences:")
print(f"  all weights are 1 in {(ranges == 0).sum()} of 50 draws")
print(f"  in the others they differ by {ranges[ranges > 0].mean():.2f}")

# %%
figure, [axes] = plots.new_figure(1, 3, (10, 3.0), sharey=True)
shown = {
    "differences: none to large": [(12, 0.0, "-"), (12, 0.02, "--"), (12, 0.1, ":")],
    "samples: few to many": [(4, 0.02, "-"), (12, 0.02, "--"), (48, 0.02, ":")],
}
for ax, (title, settings) in zip(axes, shown.items(), strict=False):
    for size, tau, dashes in settings:
        means, w = groups(size, tau).mean(1), weigh(groups(size, tau))
        by = means.argsort()
        ax.plot(
            means[by] - means.mean(), w[by], dashes, c="black", label=f"G = {size}, tau = {tau}"
        )
    plots.label(ax, title, "group mean - population mean", "weight w")
rewards = groups(12, 0.05)
x = (rewards.mean(1) - rewards.mean())[:60]
hollow = {"s": 40, "facecolors": "none", "edgecolors": "0.5"}
axes[2].scatter(x, weigh(rewards)[:60], label="rewards x 1", **hollow)
cross = {"s": 30, "c": "black", "marker": "x", "linewidths": 0.7}
axes[2].scatter(x, weigh(10 * rewards)[:60], label="rewards x 10", **cross)
plots.label(axes[2], "rewards x 1 and x 10", "group mean - population mean (x 1)", "weight w")
for ax in axes:
    ax.legend(frameon=False, fontsize=8)
plt.show()  # alt: Weight by the distance of the group mean from the population mean. The weights are all 1 without real differences, follow the mean more steeply with more samples, and are the same for rewards of any scale.

# %% [markdown]
# If only chance makes groups differ, all weights should be 1. In the first panel they are, because the estimate of $\tau^2$ from these 400 groups is negative and set to 0. With the 8 groups of one iteration that happens in about six of ten draws. In the others, chance is taken for a difference, and the weights differ widely. This is why the moments are averaged over iterations. With more samples the belief becomes surer. The scale of the reward does not matter. $\kappa$ achieves that too (notebook 1), but does not follow $G$ and the share of real differences.
#
# ## Is one prior enough? Is any? (H9, H10, H11)
# Each row compares an arm with GRPO, paired by seed, with its 95 % interval. `p` is corrected for the number of rows. In the lines below, H10 also shows the ceiling minus the task's own prior. H11 compares with the running mean, and also shows the difference from the mean of all other priors.
#
# **Before you look:** a prior that is too high lowers the weight of every group. Should that stop learning, if the optimiser (AdamW) rescales its gradients?

# %%
table = evidence.compare(ended, "grpo")
print(table.round(3).to_string())
print("\nby the metric of the plan, in all tasks:")
print(claims.told(claims.verdicts(plan, records, ["H9", "H10", "H11"])))

# %% [markdown]
# ## Is there anything to gain? (H15, H16)
# If not even weights made from the truth beat GRPO, there is little hope for a guess. Five seeds (three on video) could not decide this. So GRPO, BPGO with the task's own prior, and the ceiling were given ten seeds, in one step that was planned before the new runs (*Changes* in `reproduce/PLAN.md`). The older seeds had already been read, so the new ones are also reported alone. The ceiling is the best weight we know how to make. It is not a strict bound, and it includes CRT.
#
# **Before you look:** a grey line connects the runs of one seed. Should most lines rise from GRPO to the ceiling?

# %%
experiments = dict.fromkeys(("t2i", "t2v", "i2v"), "trust")
for name, runs in arms.final_by_task(plan, records, experiments, metric, "weights").items():
    gain = statistics.bootstrap_mean(
        runs["grpo"].to_numpy() - evidence.before(records, name, metric)
    )
    print(
        f"{name}: GRPO minus the untrained model", statistics.format_interval(gain), "n =", gain.n
    )
plt.show()  # alt: Three panels, one per task, with one dot for each run of GRPO, BPGO, and BPGO weighted by the truth. Lines connect the runs of one seed.
print("by the metric of the plan:")
print(claims.told(claims.verdicts(plan, records, ["H15", "H16"])))

# %% [markdown]
# ## What did the weights do?
# The next figure shows the largest and the smallest weight of each iteration, as means over seeds. Dotted lines mark $1 \pm \alpha$. A factor that all weights share hardly matters. AdamW divides it out, and only the balance with CRT changes, which the weight does not multiply. So look at the *width* of a band, because only this distinguishes groups. CRT uses the same prior. If it is too high, hardly any reward is above it, and the step of CRT is nearly gone.
#
# **Before you look:** which prior gives the widest band? Do arms with a wide band do well in the table above?

# %%
arms.weight_ranges(plan, records, f"priors_{task}", task)
plt.show()  # alt: Range of the weights by iteration, one panel per prior.

# %% [markdown]
# The weights of empirical Bayes vary much more than those of $\kappa = 1$. So H9 compares two things at once: where the prior is, and how sharp it is. The same prior with $\kappa = 1$ was not run.

# %% tags=["nbval-check-output"]
values = {}
for arm, row in table.iterrows():
    row = {"n": int(row["n"]), "mean": row["mean"], "difference": round(row["- grpo"], 6)}
    values[arm] = {name: None if np.isnan(value) else value for name, value in row.items()}
context = {"task": task, "metric": metric, "runs": len(records)}
whole = record("priors", values, output, context=context)

# %% [markdown]
# ## Exercises
# **1.** What does the hierarchy do with groups that differ only by chance, and with very large groups?

# %% tags=["solution", "hide-cell"]
for tau, size in ((0.0, 12), (0.05, 12), (0.05, 10_000)):
    print(f"tau = {tau}, G = {size}: k = {posterior_sharpness(tau**2, 0.08**2, size):.1f}")
# With tau = 0, k = 0 and all weights are 1, which is plain GRPO. As groups grow, k grows without bound, and trust becomes a step at the population mean.

# %% [markdown]
# **2.** Set `alpha` to 1 and use a constant prior far too high. What is left of the gradient?

# %% tags=["solution", "hide-cell"]
print("weights:", *(f"{w:.4f}" for w in ras_weights(groups(12, 0.02)[:4], 2.0, 1.0, 12.0)))
# Of RAS nothing is left, because the weight of every group is zero. Of BPGO the CRT term is left, which w does not multiply.
# It has lost its step, because no reward is above the prior. With alpha = 0.5 half of RAS would be left, the same for all groups.

# %% [markdown]
# ## Summary
# - The paper's own reading of its weight, taken literally, gives equation 2. It also gives both of its free quantities, $k$ and the prior. $\alpha$ stays free.
# - It behaves correctly in the limits. Without differences there is no trust, trust does not depend on the scale, and more samples make it surer.
# - The lines below the table say whether it helps training. Look at the ceiling first (H16). Its interval says how much BPGO with such weights ($\alpha = 0.5$) can gain here.
#
# **Vary** `task` and `metric`. **Where it breaks:** like RAS, the hierarchy asks whether the reward of a group is *high*. That a high reward is also *reliable* is an assumption, which notebook 5 tests. Groups with very different standard deviations share one $\sigma$ here.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): RAS (2, 3).
# - Efron and Morris, Stein's estimation rule and its competitors, an empirical Bayes approach, JASA 68 (1973): shrinkage by B.
