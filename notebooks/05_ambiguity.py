# ---
# jupyter:
#   bpgo:
#     smallest: {task: t2v, descriptions: 4}
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
# # 5. Does a high reward mean a reliable one?
# *Half a minute on one CPU core. Half an hour to read. Read notebooks 1 to 4 first.*
#
# RAS gives more weight to a group whose mean reward is above a prior. Behind this is an assumption that the paper never tests: that a high reward is a *trustworthy* one. Here the truth is known. Also known is how ambiguous a prompt is, in **bits**: the logarithm (base 2) of the number of scenes that fit. For example, 20 scenes are 4.3 bits.
#
# Afterwards you can say what ambiguity does to a reward model, why group normalisation amplifies noise, and whether the deviation from a prior shows which groups to trust.
#
# First we describe one thing, from clear to open. Every image shown fits its description. Each dot is the reward of an image. A solid dot shows everything that is said. For a hollow dot, a near miss, one named attribute is wrong.

# %% tags=["parameters"]
task: str = "t2i"  # t2i, t2v or i2v; the last figure shows all three
descriptions: int = 40  # things that are described, for the intervals
seed: int = 0  # seed of the things and their images
results: str = ""  # folder with the results of the study; if empty, those of the repository
output: str = ""  # folder for the record; if empty, none is written

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from bpgo.analysis import statistics
from bpgo.objective import group_advantages
from bpgo.records import record
from reproduce.analysis import ambiguity, evidence
from reproduce.analysis.figures import ambiguity as figures

SIZE = 12  # right images of a description, and as many near misses
world, rewards = ambiguity.world(task), ambiguity.rewards_of(task)
cases = [case for case in ambiguity.omissions(world, 1, SIZE, seed) if case.open != 1]
figures.drawings(cases)  # four of the five descriptions, to keep the figure small
plt.show()  # alt: Drawn images of one thing, described from clear to open, one row per description.
figures.rewards_of_cases(ambiguity.measure(world, cases, rewards), SIZE)
plt.show()  # alt: Rewards of right images and near misses, one row per description. The rewards of right images fall as more is left open.

# %% [markdown]
# ## What ambiguity does to a reward
# For many things we now leave out one attribute after the other. We also say the complete description in **other words**: with zero to four synonyms, and in the usual word order or a *turned* one. This leaves nothing open, so it should change nothing. (All words were equally frequent when the rewards were trained. Rare words may do worse.)
#
# - *mean*, *spread*: mean and standard deviation of the rewards of right images. They are all right, so the standard deviation says nothing about right or wrong.
# - *gap*: the mean of right images minus the mean of near misses.
# - *error*: how often a near miss gets a higher reward than a right image. .5 is chance.
# - *disagreement*: 1 minus the rank correlation with a second reward that was trained separately. 1 is chance. `disagreement_right` uses right images only.
#
# **Before you run:** which of these grow with the bits?

# %%
left_out = ambiguity.measure(world, ambiguity.omissions(world, descriptions, SIZE, seed), rewards)
others = ambiguity.wordings(world, (descriptions + 1) // 2, SIZE, seed)
reworded = ambiguity.measure(world, others, rewards)
columns = ["bits", "mean", "spread", "gap", "error", "disagreement", "disagreement_right"]
omitted = left_out.groupby("open")[columns].mean()
said = reworded.groupby(["turned", "synonyms"])[columns].mean()
print("attributes left open", omitted.round(3).to_string(), sep="\n")
print("\nother words", said.round(3).to_string(), sep="\n")
print("\nstandard deviations of the reward:")
names = {
    "picture": "of one image, over wordings",
    "group": "of the mean of a group, over wordings",
    "within": "over right images of one wording",
}
for name, value in ambiguity.over_wordings(reworded, SIZE).mean().items():
    print(f"  {names[name]}: {value:.4f}")
figures.effects(left_out, reworded)
plt.show()  # alt: How leaving attributes out and using other words change the mean reward, its standard deviation, the error, and the disagreement of two rewards.

# %% [markdown]
# Bars are 95 % intervals. The more is left open, the lower the *mean*. So the deviation from a prior does see ambiguity. Other words hardly change it. In text-to-image, standard deviation and disagreement grow a little, while gap and error hardly change. If an image *can* be wrong, the reward nearly always finds it. Among right images the two rewards agree no better than chance. So their variation is chance, or a taste of one model.
#
# ## What group normalisation makes of it
# How much of a group is *signal*, the part of its variance that right or wrong explains? And what decides this? We compose groups of twelve, with one attribute open, from none to twelve near misses.
#
# **Before you run:** the group without any near miss has the highest mean. How strong is its gradient?

# %%
groups = ambiguity.mixed(left_out[left_out["open"] == 1], SIZE)
groups["signal variance"] = groups["signal"] * groups["std"] ** 2
groups["noise variance"] = groups["std"] ** 2 - groups["signal variance"]
by_wrong = groups.groupby("wrong").mean()
figures.signal_and_noise(by_wrong, SIZE)
plt.show()  # alt: Mean reward, variance of the rewards and variance of the advantages by the number of near misses among twelve images, split into signal and noise.
for wrong in (0, 1, SIZE // 2):
    raw = by_wrong["noise variance"][wrong] ** 0.5
    normalised = (1 - by_wrong["signal"][wrong]) ** 0.5
    print(f"{wrong} near misses: noise {raw:.3f} in the rewards, {normalised:.2f} in the", end=" ")
    print(f"advantages, {normalised / raw:.0f} times as much")
half_wrong = left_out.loc[left_out["open"] == 1, "rewards"]
right = torch.tensor(np.stack([r[:SIZE] for r in left_out["rewards"]]))
half = torch.tensor(np.stack([r[SIZE // 2 : -SIZE // 2] for r in half_wrong]))
for name, g in (("none wrong", right), ("half wrong", half)):
    print(f"{name}: norm of the advantages {group_advantages(g).norm(dim=1).mean():.2f}")

# %% [markdown]
# Every group comes out equally strong, with a norm of $\sqrt{11} = 3.32$. If all images are right, all of it is noise, and this group has the highest mean: **RAS would trust it most**. Among the other groups it is the reverse. The fewer images are wrong, the higher are both the mean *and* the share of signal. (Near misses differ among themselves, and here that counts as noise. So eleven of them leave less signal than one.)
#
# ## Is deviation from the prior a reliability signal? (H5)
# Now we use real groups from stored runs: twelve samples of each evaluation prompt, before, half-way through and after training with GRPO, with three trainings per task. The oracle scores a sample by the share of named attributes that it shows. (If nothing is named, the score is 1 if it shows one thing, else 0.) The **true reliability** of a group is the correlation of reward and oracle score over its twelve samples. It is 0 by definition if the oracle scores all twelve alike. Such groups are *flat*, and are drawn as crosses.
#
# Hypothesis 5 (H5) was written down before, and made exact later (see the plan). It is refuted if the interval of the rank correlation contains 0 or is below it, or that of the AUROC contains .5, its value by chance. All groups count, including flat ones.
#
# **Before you run:** will the dots rise to the right?

# %%
plan, records = evidence.read(results)
real = ambiguity.groups(plan, records)
for name in ambiguity.TASKS:
    of_task = real[real["task"] == name]
    prompts, seeds = of_task["prompt"].nunique(), of_task["seed"].nunique()
    counts = f"{prompts} prompts, {seeds} seeds, {of_task['flat'].mean():.0%} of groups flat"
    missing = "not run, see `make study ARGS='all ambiguity'`"
    print(f"{name}: {counts if len(of_task) else missing}")
own = real[real["task"] == task]
own = own.assign(flat=own["flat"].astype(bool), named=(4 * own["level"]).round() / 4)
if len(own):
    figures.reliability_by_reward(own, task)
    plt.show()  # alt: True reliability of each group by its mean reward, at three stages of training.
    print("share of signal in the reward variance of a group (by chance .09),", end=" ")
    print("by the share of attributes named (quarters) and the stage:")
    print(own.pivot_table("signal", "named", "stage").round(2).to_string())

# %% [markdown]
# In text-to-image, hardly. There are also groups of low reliability on the right. (Before training there is one dot per prompt.) The table shows that after training, groups of vague prompts contain less signal.
#
# A prior that is one number for all groups (a constant, a running mean) cannot change their order. As far as ranks go, the deviation from it is the **mean reward** itself. Two priors differ from prompt to prompt: the reward of the same prompt under the untrained (SFT) model, and the first frame's reward (image-to-video). Before training the deviation from the former is 0 and has no row. Two other signals were not planned: the standard deviation of the group (`spread`), and the agreement of its rewards with those of a second model.
#
# `rho` is the rank correlation with true reliability. `auroc` is the chance that a group above the median of reliability has a higher signal than one below it. The 95 % intervals resample the `n` prompts, because all seeds share prompts and noise. `seed_low` and `seed_high` are the lowest and the highest value of a training.

# %%
table = ambiguity.reliability(real)
signals = (*ambiguity.DEVIATIONS, *ambiguity.OTHERS)
figures.rank_correlations(table, signals)
plt.show()  # alt: Rank correlation of several signals with true reliability, with intervals, at three stages.
everything = table[table["groups"] == "all"]
planned = everything[everything["signal"].isin(ambiguity.DEVIATIONS)]
holds = (planned["low"] > 0) & (planned["auroc_low"] > 0.5)
planned = planned.assign(
    H5=np.where(holds, "supported", "refuted"),
    stage=[ambiguity.STAGES[stage] for stage in planned["stage"]],
)
shown = planned.drop(columns=["groups", "seeds"]).round(2)
print(shown.to_string(index=False) if len(table) else "nothing is run yet")

# %% [markdown]
# ## Is there a better signal? And does the mean reward say more than the prompt?
# Neither question was planned. The first two columns show the rank correlation of another signal minus that of the mean reward, over the same resampled prompts. The third column shows what remains of the mean reward's correlation if the share of attributes that the prompt names is held fixed (a *partial* correlation). That share needs no reward.

# %%
titles = ("spread minus mean", "agreement minus mean", "mean, share held fixed")
print(" " * 27, *(f"{title:23}" for title in titles))
better, cases = 0, 0
for (name, stage), part in real.groupby(["task", "stage"], sort=False):
    numbers = (
        part[column].to_numpy() for column in ("mean reward", "agreement", "prompt", "level")
    )
    score, truth, prompts, level = numbers
    gains = []
    for other in ambiguity.OTHERS:
        signal = part[other].to_numpy()
        gains.append(statistics.rank_correlation_gain(signal, score, truth, prompts))
    rest = statistics.partial_rank_correlation(score, truth, level, prompts)
    better, cases = better + sum(gain.low > 0 for gain in gains), cases + len(gains)
    texts = [f"{statistics.format_interval(i, '+.2f'):23}" for i in (*gains, rest)]
    print(f"{name}, {ambiguity.STAGES[stage]}:".ljust(27), *texts)
print(f"another signal is clearly better (its interval is above 0) in {better} of {cases} cases")
print("(95 % each, not corrected)")

# %% [markdown]
# In text-to-image and text-to-video nothing visible remains. In image-to-video it points the other way. Now we look at prompts of one kind only, before, half-way through and after training.

# %%
kinds = figures.kind_of(own)
for name in ("nothing open", "something open"):
    signals = ("mean reward", *ambiguity.OTHERS)
    part = ambiguity.reliability(own[kinds == name], signals, kinds=("all",))
    for signal, rows in part.groupby("signal", sort=False):
        texts = [f"{r.rho:+.2f} ({r.low:+.2f} to {r.high:+.2f})" for r in rows.itertuples()]
        print(f"{name}, n = {rows['n'].max()} prompts, {signal}:".ljust(52), *texts, sep="  ")

# %% [markdown]
# In text-to-image, the mean reward ranks prompts that leave nothing open (half-way its interval contains 0). The standard deviation ranks those that leave something open. After training, the agreement of two rewards does both.

# %% tags=["nbval-check-output"]
kept = ["rho", "low", "high", "auroc", "auroc_low", "auroc_high", "n"]
by_synonyms = reworded.groupby("synonyms")[columns].mean()
live = omitted.rename("{} open".format), by_synonyms.rename("{} synonyms".format)
composed = by_wrong[["mean", "std", "signal"]].rename("{} wrong".format)
names = [f"{row.task} {row.stage} {row.signal}" for row in everything.itertuples()]
tables = {
    "ambiguity": dict(item for part in live for item in part.to_dict("index").items()),
    "group_normalisation": composed.to_dict("index"),
    "reliability": everything[kept].set_axis(names).to_dict("index"),
}
context = {"task": task, "descriptions": descriptions, "seed": seed, "runs": len(records)}
for name, rows in tables.items():
    values = {}
    for row, numbers in rows.items():
        values[row] = {key: None if np.isnan(value) else value for key, value in numbers.items()}
    whole = record(name, values, output, context=context) if values else None

# %% [markdown]
# ## Exercises
# **1.** Divide by the standard deviation *plus .05* in equation 1. How strong are groups with none and with half wrong now?

# %% tags=["solution", "hide-cell"]
for name, g in (("none wrong", right), ("half wrong", half)):
    advantages = (g - g.mean(1, keepdim=True)) / (g.std(1, keepdim=True) + 0.05)
    print(f"{name}: norm {advantages.norm(dim=1).mean():.2f}")
# The group that has nothing to say is quiet now, without a prior. But .05 is on the scale of this reward. Another reward needs another number.

# %% [markdown]
# **2.** Rank the real groups by the share of attributes that their prompt names, without any reward. Does the mean reward do better?

# %% tags=["solution", "hide-cell"]
named = ambiguity.reliability(own, ("level", "mean reward"), kinds=("all",))
shown = named[["stage", "signal", "rho", "low", "high", "n"]].round(2)
print(shown.to_string(index=False) if len(named) else "not run")
# In text-to-image it does worse. The prompt alone ranks groups at least as well as the reward does. (The intervals overlap.)

# %% [markdown]
# ## Summary
# - Ambiguity lowers the mean reward, and other words hardly do. So the deviation from a prior does measure *how much a prompt says*.
# - Whether a reward is *reliable* depends on whether a group contains both right and wrong samples. A group without a difference has no signal, and group normalisation gives it full strength.
# - In text-to-image, the deviation from the prior is a weak signal of reliability. In the video tasks it is none that 60 to 64 prompts can show. The standard deviation of a group and the agreement of two rewards need no prior. They ranked groups better, but not clearly so in each case. (Not planned.)
#
# **Vary** `task` and `seed`. **Where it breaks:** drawings are cleaner than samples. Twelve samples measure reliability only roughly, which pulls every `rho` towards 0. There are three trainings. Intervals are not corrected for their number.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): RAS (2, 3).
# - Hanley and McNeil, The meaning and use of the area under a receiver operating characteristic curve, Radiology 143 (1982): the AUROC as a chance.
