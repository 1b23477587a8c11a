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
# RAS gives more weight to a group whose mean reward lies above a prior. Behind this stands an assumption that the paper never tests: that a high reward is a *trustworthy* one. Here the truth is known, and so is how ambiguous a prompt is: the **bits** that it leaves open, the logarithm (base 2) of how many scenes fit; 20 scenes are 4.3 bits.
#
# Afterwards you can say what ambiguity does to a reward model, why group normalisation makes noise loud, and whether deviation from the prior tells which groups to trust.
#
# First one thing, described from clear to open. Every picture shown fits its description. Each dot is the reward of a picture: solid, it shows all that is said; hollow, one named thing is wrong.

# %% tags=["parameters"]
task: str = "t2i"  # t2i, t2v or i2v; the last figure has all three
descriptions: int = 40  # things that are described, for the intervals
seed: int = 0  # of the things and their pictures
results: str = ""  # folder of the study's results; empty, those of the repository
output: str = ""  # folder for the record; empty, none is written

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from bpgo.analysis import plots, statistics
from bpgo.objective import group_advantages
from bpgo.records import record
from reproduce.analysis import ambiguity, evidence

SIZE = 12  # right pictures of a description, and as many near misses
world, rewards = ambiguity.world(task), ambiguity.rewards_of(task)
chain = [
    case for case in ambiguity.omissions(world, 1, SIZE, seed) if case.open != 1
]  # four of the five, to keep the picture small
titles = [f"{case.caption}\n{case.bits:.1f} bits open" for case in chain]
if chain[0].pictures.ndim == 4:
    plots.show_pictures([case.pictures[:8] for case in chain], titles, 0.75)
else:  # of a video its first, middle and last frame
    plots.show_pictures(
        [torch.stack([plots.film(video[::4]) for video in case.pictures[:3]]) for case in chain],
        titles,
        0.75,
    )
plt.show()  # alt: Drawn pictures of one thing, described from clear to open, a row a description.
figure, [[ax]] = plots.new_figure(size=(8, 2.8))
scored = ambiguity.measure(world, chain, rewards)
values = np.stack(
    [np.pad(r, (0, 2 * SIZE - len(r)), constant_values=np.nan) for r in scored["rewards"]]
)
plots.strips(
    ax,
    values,
    np.tile(np.arange(2 * SIZE) < SIZE, (len(chain), 1)),
    [f"{bits:.1f} bits" for bits in scored["bits"]],
)
plots.labelled(
    ax,
    "solid: all that is said is right; hollow: near misses (with all open, nothing can be wrong)",
    "reward (no unit)",
)
plt.show()  # alt: Rewards of right pictures and near misses, a row a description: the rewards of right pictures fall as more is left open.

# %% [markdown]
# ## What ambiguity does to a reward
# Of many things, one attribute after the other is left out. And the complete description is said in **other words**: none to four synonyms, in the usual word order or a *turned* one. That leaves no bit open, so it should change nothing. (All were equally frequent when the rewards were trained; rare words may do worse.)
#
# - *mean*, *spread*: of the rewards of right pictures. They are all right, so the spread says nothing about right or wrong.
# - *gap*: the mean of right pictures less the mean of near misses.
# - *error*: how often a near miss gets a higher reward than a right picture; .5 is chance.
# - *disagreement*: 1 less the rank correlation with a second reward, trained apart; 1 is chance. `disagreement_right` is over right pictures alone.
#
# **Before you run it:** which of these grow with the bits?

# %%
left_out = ambiguity.measure(world, ambiguity.omissions(world, descriptions, SIZE, seed), rewards)
reworded = ambiguity.measure(
    world, ambiguity.wordings(world, (descriptions + 1) // 2, SIZE, seed), rewards
)
columns = ["bits", "mean", "spread", "gap", "error", "disagreement", "disagreement_right"]
omitted, said = (
    left_out.groupby("open")[columns].mean(),
    reworded.groupby(["turned", "synonyms"])[columns].mean(),
)
print(
    "attributes left open\n"
    + omitted.round(3).to_string()
    + "\n\nother words\n"
    + said.round(3).to_string()
)
print("\nstandard deviations of the reward:")
names = {
    "picture": "of one picture, over wordings",
    "group": "of a group's mean, over wordings",
    "within": "over right pictures of one wording",
}
for name, value in ambiguity.over_wordings(reworded, SIZE).mean().items():
    print(f"  {names[name]}: {value:.4f}")

# %%
lines = {
    "attributes left open": (left_out, "open", "o-"),
    "synonyms": (reworded[~reworded["turned"]], "synonyms", "s--"),
    "synonyms, other word order": (reworded[reworded["turned"]], "synonyms", "^:"),
}
labels = {
    "mean": "mean reward of right pictures",
    "spread": "spread among right pictures",
    "error": "error: near miss preferred",
    "disagreement": "disagreement of two rewards",
}
chance = {"error": 0.5, "disagreement": 1.0}  # dotted
figure, axes = plots.new_figure(1, 4, (12, 3.2))
for ax, (name, label) in zip(axes[0], labels.items(), strict=True):
    for (title, (rows, by, style)), colour in zip(
        lines.items(), ("black", "0.4", "0.6"), strict=True
    ):
        found = {
            at: statistics.bootstrap_mean(part[name].to_numpy())
            for at, part in rows.groupby(by)
            if part[name].notna().any()
        }
        middle = np.array([i.mean for i in found.values()])
        bars = np.abs(np.array([[i.low, i.high] for i in found.values()]).T - middle)
        ax.errorbar(
            list(found), middle, bars, fmt=style, color=colour, capsize=2, markersize=5, label=title
        )
    ax.set_xticks(range(5))
    ax.set_ylim(0, chance.get(name, ax.get_ylim()[1]) * 1.05)
    ax.axhline(chance.get(name, -1), color="black", ls=(0, (1, 3)))
    plots.labelled(
        ax,
        label,
        "attributes left open, or synonyms",
        "share of pairs"
        if name == "error"
        else "1 - rank correlation"
        if name == "disagreement"
        else "reward (no unit)",
    )
axes[0, 1].legend(frameon=False, fontsize=8, loc="lower right")
plt.show()  # alt: What leaving attributes out and saying things in other words do to the mean reward, its spread and the disagreement of two rewards.

# %% [markdown]
# Bars are 95 % intervals. The more is left open, the lower the *mean*: deviation from a prior does see ambiguity. Other words hardly move it. In text-to-image spread and disagreement grow a little; gap and error hardly change. Where a picture *can* be wrong, the reward nearly always finds it. Among right pictures the two rewards agree no better than chance: their spread is chance, or a taste of one model.
#
# ## What group normalisation makes of it
# What decides how much of a group is *signal*, the part of its variance that right or wrong explains? Compose groups of twelve, with one attribute open, of none to twelve near misses.
#
# **Before you run it:** the group without any near miss has the highest mean. How strong is its gradient?

# %%
groups = ambiguity.mixed(left_out[left_out["open"] == 1], SIZE)
groups["signal variance"] = groups["signal"] * groups["std"] ** 2
groups["noise variance"] = groups["std"] ** 2 - groups["signal variance"]
by_wrong = groups.groupby("wrong").mean()
figure, axes = plots.new_figure(1, 3, (12, 3.0))
axes[0, 0].plot(by_wrong.index, by_wrong["mean"], "ko-")
raw, normalised = (
    by_wrong[["signal variance", "noise variance"]].to_numpy().T,
    (by_wrong["signal"], 1 - by_wrong["signal"]),
)
for ax, (signal, noise) in zip(axes[0, 1:], (raw, normalised), strict=True):
    ax.bar(by_wrong.index, signal, color="black", label="signal: right or wrong")
    ax.bar(
        by_wrong.index,
        noise,
        bottom=signal,
        color="white",
        edgecolor="black",
        hatch="////",
        label="noise: all else",
    )
axes[0, 1].legend(frameon=False, fontsize=8, loc="upper left")
axes[0, 1].set_ylim(top=1.35 * sum(raw).max())
titles = {
    "mean reward, which RAS sees": "reward (no unit)",
    "variance of the rewards": "reward squared",
    "variance of the advantages": "share",
}
for ax, (title, unit) in zip(axes[0], titles.items(), strict=True):
    plots.labelled(ax, title, f"near misses among {SIZE} pictures", unit).set_xticks(
        range(0, SIZE + 1, 2)
    )
plt.show()  # alt: Share of signal, spread of the rewards and size of the advantages against the number of near misses among twelve pictures.
for wrong in (0, 1, SIZE // 2):
    raw, normalised = (
        by_wrong["noise variance"][wrong] ** 0.5,
        (1 - by_wrong["signal"][wrong]) ** 0.5,
    )
    print(
        f"{wrong} near misses: noise {raw:.3f} in the rewards, {normalised:.2f} in the advantages, {normalised / raw:.0f} times as much"
    )
right = torch.tensor(np.stack([r[:SIZE] for r in left_out["rewards"]]))
half = torch.tensor(
    np.stack([r[SIZE // 2 : -SIZE // 2] for r in left_out.loc[left_out["open"] == 1, "rewards"]])
)
print(
    "norm of a group's advantages, none wrong and half wrong:",
    *(f"{group_advantages(g).norm(dim=1).mean():.2f}" for g in (right, half)),
)

# %% [markdown]
# Every group comes out equally strong: its norm is $\sqrt{11} = 3.32$. Where all are right, all of it is noise, and that group has the highest mean: **RAS would trust it most**. Among the others the rule turns: the fewer are wrong, the higher the mean *and* the share of signal. (Near misses differ among themselves, and here that counts as noise: so eleven of them leave less signal than one.)
#
# ## Is deviation from the prior a reliability signal? (H5)
# Now real groups, from stored runs: twelve samples of each evaluation prompt, before, half-way through and after training with GRPO, three trainings a task. The oracle scores a sample by the share of named attributes that it shows (where nothing is named: 1 or 0, whether it shows one thing). A group's **true reliability** is the correlation of reward and oracle score over its twelve samples. It is 0 by definition where the oracle scores all twelve alike: such groups are *flat*, and drawn as crosses.
#
# Written down before (hypothesis 5, H5; made exact later, see the plan): refuted where the interval of the rank correlation holds 0 or lies below it, or that of the AUROC holds .5, its value by chance. All groups count, flat ones too.
#
# **Before you run it:** will the dots rise to the right?

# %%
plan, records = evidence.read(results)
real = ambiguity.groups(plan, records)
for name in ambiguity.TASKS:
    own = real[real["task"] == name]
    counts = (
        f"{own['prompt'].nunique()} prompts, {own['seed'].nunique()} seeds, {own['flat'].mean():.0%} of groups flat"
        if len(own)
        else ""
    )
    print(f"{name}: {counts or 'not run, see `make study ARGS=' + repr('all ambiguity') + '`'}")
own = real[real["task"] == task].assign(flat=lambda t: t["flat"].astype(bool))
kinds = {
    "nothing open": own["level"] == 1,
    "something open": own["level"].between(0.01, 0.99),
    "nothing named": own["level"] == 0,
}
if len(own):
    figure, axes = plots.new_figure(1, 3, (12, 3.4), sharey=True, sharex=True)
    marks = {
        "nothing open": ("o", "black"),
        "something open": ("o", "white"),
        "nothing named": ("^", "0.7"),
        "flat truth": ("x", "black"),
    }
    for ax, (stage, part) in zip(axes[0], own.groupby("stage"), strict=True):
        for name, (marker, colour) in marks.items():
            chosen = part[
                part["flat"] if name == "flat truth" else kinds[name][part.index] & ~part["flat"]
            ]
            ax.scatter(
                chosen["reward_mean"],
                chosen["agreement"],
                18,
                colour,
                marker=marker,
                label=name,
                **({} if marker == "x" else {"ec": "black"}),
            )
        plots.labelled(
            ax,
            f"{task}, {ambiguity.STAGES[stage]} (iteration {part['iteration'].iloc[0]})",
            "mean reward of the group",
            "" if stage else "true reliability",
        )
    axes[0, 0].legend(frameon=False, fontsize=8, loc="lower left")
    plt.show()  # alt: True reliability of each group against its mean reward, at three stages of training.
    print(
        "share of a group's reward variance that is signal, by the share of attributes named (quarters) and the stage; by chance .09:"
    )
    print(
        own.assign(named=(4 * own["level"]).round() / 4)
        .pivot_table("signal", "named", "stage")
        .round(2)
        .to_string()
    )

# %% [markdown]
# In text-to-image, hardly: groups of low reliability lie at the right too. (Before training: one dot a prompt.) The table: after training, groups of vague prompts hold less signal.
#
# A prior that is one number for all groups (a constant, a running mean) cannot change their order: as far as ranks go, the deviation from it is the **mean reward** itself. Two priors differ from prompt to prompt: the untrained (SFT) model's reward of the same prompt (before training the deviation is 0, and has no row), and the first frame's (image-to-video). Two other signals were not planned: the group's spread, and its rewards' agreement with a second model's.
#
# `rho` is the rank correlation with true reliability, `auroc` the chance that a group above the median of reliability has a higher signal than one below it. The 95 % intervals come from resampling the `n` prompts, since all seeds share prompts and noise; `seed_low` and `seed_high` are the least and largest value of a training.

# %%
table = ambiguity.reliability(real)
signals = (*ambiguity.DEVIATIONS, *ambiguity.OTHERS)
figure, axes = plots.new_figure(1, 3, (12, 4.6), sharey=True, sharex=True)
for ax, name in zip(axes[0], ambiguity.TASKS, strict=True):
    part = table[table["task"] == name]
    for _, row in part.iterrows():
        y = (
            4 * signals.index(row["signal"])
            + row["stage"]
            + (-0.15 if row["groups"] == "all" else 0.15)
        )
        face = "black" if row["groups"] == "all" else "white"
        ax.errorbar(
            row["rho"],
            y,
            None,
            [[row["rho"] - row["low"]], [row["high"] - row["rho"]]],
            "o",
            color="black",
            mfc=face,
            ms=5,
            lw=1,
        )
    ax.axvline(0, color="black", lw=1, ls="--")
    if not len(part):
        ax.text(0, 9, "not run", ha="center", backgroundcolor="white")
    plots.labelled(
        ax, f"{name} (hollow: without flat groups)", "rank correlation with true reliability"
    )
rows = [
    (4 * i + s, f"{signal}, {ambiguity.STAGES[s].split()[0]}")
    for i, signal in enumerate(signals)
    for s in range(3)
]
axes[0, 0].set(xlim=(-1, 1), ylim=(19, -1))
axes[0, 0].set_yticks(*zip(*rows, strict=True), fontsize=8)
plt.show()  # alt: Rank correlation of several signals with true reliability, with intervals, at three stages.
planned = table[table["signal"].isin(ambiguity.DEVIATIONS) & (table["groups"] == "all")].drop(
    columns=["groups", "seeds"]
)
planned = planned.assign(
    H5=np.where((planned["low"] > 0) & (planned["auroc_low"] > 0.5), "supported", "refuted"),
    stage=[ambiguity.STAGES[i] for i in planned["stage"]],
)
print(planned.round(2).to_string(index=False) if len(table) else "nothing is run yet")

# %% [markdown]
# ## Is there a better signal? And does the mean reward say more than the prompt?
# Neither question was planned. First, the rank correlation of another signal less the mean reward's, over the same resampled prompts. Then what is left of the mean reward's if the share of attributes that the prompt names, which needs no reward, is held fixed (a *partial* correlation).

# %%
print(
    " " * 28,
    "spread less mean reward",
    "agreement less mean reward",
    "mean reward, share held fixed",
)
clear, cases = 0, 0
for (name, stage), part in real.groupby(["task", "stage"], sort=False):
    score, truth, prompts = (part[c].to_numpy() for c in ("mean reward", "agreement", "prompt"))
    gains = [
        statistics.rank_correlation_gain(part[other].to_numpy(), score, truth, prompts)
        for other in ambiguity.OTHERS
    ]
    rest = statistics.partial_rank_correlation(score, truth, part["level"].to_numpy(), prompts)
    clear, cases = clear + sum(gain.low > 0 for gain in gains), cases + len(gains)
    print(
        f"{name}, {ambiguity.STAGES[stage]}:".ljust(28),
        *(f"{statistics.said(i, '+.2f'):23}  " for i in (*gains, rest)),
    )
print(
    f"another signal clearly better, its interval above 0: in {clear} of {cases} cases (95 % each, not corrected)"
)

# %% [markdown]
# Nothing that can be seen is left in text-to-image and text-to-video; in image-to-video it points the other way. Now only prompts of one kind: before, half-way through and after training.

# %%
for name in ("nothing open", "something open"):
    part = ambiguity.reliability(own[kinds[name]], ("mean reward", *ambiguity.OTHERS))
    for signal, rows in part[part["groups"] == "all"].groupby("signal", sort=False):
        told = [
            f"{rho:+.2f} ({low:+.2f} to {high:+.2f})"
            for rho, low, high in rows[["rho", "low", "high"]].to_numpy()
        ]
        print(f"{name}, n = {rows['n'].max()} prompts, {signal}:".ljust(52), *told, sep="  ")

# %% [markdown]
# In text-to-image the mean reward ranks prompts that leave nothing open (half-way its interval holds 0), the spread those that leave something open, and after training the agreement of two rewards does both.

# %% tags=["nbval-check-output"]
live = {f"{k} open": row[columns].to_dict() for k, row in omitted.iterrows()}
live |= {
    f"{k} synonyms": row[columns].to_dict()
    for k, row in reworded.groupby("synonyms")[columns].mean().iterrows()
}
composed = {
    f"{k} wrong": row[["mean", "std", "signal"]].to_dict() for k, row in by_wrong.iterrows()
}
kept = ["rho", "low", "high", "auroc", "auroc_low", "auroc_high", "n"]
ranked = {
    " ".join(map(str, row[["task", "stage", "signal"]])): row[kept].to_dict()
    for _, row in table[table["groups"] == "all"].iterrows()
}
context = {"task": task, "descriptions": descriptions, "seed": seed, "runs": len(records)}
for name, found in {
    "ambiguity": live,
    "group_normalisation": composed,
    "reliability": ranked,
}.items():
    values = {
        row: {k: None if np.isnan(v) else v for k, v in numbers.items()}
        for row, numbers in found.items()
    }
    whole = record(name, values, output, context=context) if values else None

# %% [markdown]
# ## Exercises
# **1.** Divide by the standard deviation *plus .05* in equation 1. How strong are groups with none and with half wrong now?

# %% tags=["solution", "hide-cell"]
print(
    "norms:",
    *(
        f"{((g - g.mean(1, keepdim=True)) / (g.std(1, keepdim=True) + 0.05)).norm(dim=1).mean():.2f}"
        for g in (right, half)
    ),
)
# The group that has nothing to say is quiet now, without a prior. But .05 is on this reward's scale, and another reward needs another number.

# %% [markdown]
# **2.** Rank the real groups by the share of attributes that their prompt names, without any reward. Does the mean reward do better?

# %% tags=["solution", "hide-cell"]
named = ambiguity.reliability(own, ("level", "mean reward"))
print(
    named.loc[named["groups"] == "all", ["stage", "signal", "rho", "low", "high", "n"]]
    .round(2)
    .to_string(index=False)
    if len(named)
    else "not run"
)
# In text-to-image it does worse: the prompt alone ranks groups at least as well as the reward does (the intervals overlap).

# %% [markdown]
# ## Summary
# - Ambiguity lowers the mean reward, and other words hardly do. So deviation from a prior does measure *how much a prompt says*.
# - Whether a reward is *reliable* depends on whether a group holds both right and wrong samples. One without a difference has no signal, and group normalisation gives it full strength.
# - In text-to-image, deviation from the prior is a weak signal of reliability; in the video tasks none that 60 to 64 prompts can show. A group's spread and the agreement of two rewards need no prior and ranked groups better, but not clearly so in each case. (Not planned.)
#
# **Vary** `task`, `seed`. **Where it breaks:** drawings are cleaner than samples; twelve samples measure reliability only roughly, which pulls every `rho` towards 0; three trainings; intervals are not corrected for their number.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): RAS (2, 3).
# - Hanley and McNeil, The meaning and use of the area under a receiver operating characteristic curve, Radiology 143 (1982): the AUROC as a chance.
