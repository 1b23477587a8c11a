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
# # 7. Which settings matter, and which need no care?
# *Seconds on one CPU core: the training was done before. Fifteen minutes to read. Read notebooks 1 and 6 first.*
#
# BPGO brings four numbers that GRPO does not have. RAS has its strength $\alpha$ and its sharpness $\kappa$ (equation 2; the paper's $k$ is $\kappa$ divided by the spread of the rewards). CRT has $\lambda$ (equation 4) and its weight $\beta$ (equation 5). The paper finds $\alpha = 0.5$ best on one task and publishes none of the others. Here they are varied two at a time; the other two stay at their defaults.
#
# Afterwards you can read a heat map with its uncertainty, and say which defaults are choices and which are habits.
#
# The first picture has both grids on text-to-image: a cell is a setting, its number the mean over seeds, darker is more. **A frame means: level with the best**, not significantly worse than the best cell after correction for all pairs. It does not mean equal: with two seeds only large differences can be seen.

# %% tags=["parameters"]
measure: str = "accuracy_specified"  # the primary measure; any other of the records
results: str = ""  # folder of the study's results; empty, those of the repository
output: str = ""  # folder for the record; empty, none is written

# %%
import matplotlib.pyplot as plt
import numpy as np

from bpgo.analysis import evidence, plots, statistics
from bpgo.records import record

plan, records = evidence.read(results)
grids = {}
figure, axes = plots.new_figure(1, 2, (9, 3.2))
for ax, name in zip(axes[0], ("alpha_kappa", "lambda_beta"), strict=True):
    grids[name] = evidence.so_far(plan, records, name, "t2i", measure)
    mean, level = evidence.grid(grids[name])
    plots.heat_map(ax, mean, level)
    plots.labelled(ax, f"{measure} after training, share of samples", mean.columns.name, mean.index.name).grid(False)
plt.show()  # alt: Two heat maps of accuracy: alpha against kappa, and lambda against beta; framed cells are level with the best.
print(evidence.state(plan, records))
print("runs a cell:", {name: sorted(set(grid.notna().sum())) for name, grid in grids.items()})

# %% [markdown]
# **Before you read on:** before training the model is right in the share of samples that the next line prints. Which differences between cells are large beside what training gains? And beside the spread between seeds?
#
# ## Is alpha = 0.5 best? (H6) Do lambda and beta have a wide range? (H7)
# Written down before the first run: H6 falls if the cell of the default is not level with the best; H7 falls if less than half of the cells are. The default is compared with the best cell, paired by seed; that cell was picked for its luck too, so its lead is, on average, too large.

# %%
start = evidence.before(records, "t2i", measure)
defaults = {"alpha_kappa": "alpha=0.5 kappa=1.0", "lambda_beta": "lam=5.0 beta=0.5"}
verdicts = {}
print(f"before training: {start:.3f}")
for name, default in defaults.items():
    ended = grids[name]
    mean, level = evidence.grid(ended)
    spread = ended.std().mean()
    best = ended.mean().idxmax() if ended.notna().any(axis=None) else None
    verdicts[name] = {"cells": int(ended.notna().any().sum()), "level": int(level.to_numpy(bool).sum()), "best": best}
    print(f"\n{name}: {verdicts[name]['level']} of {verdicts[name]['cells']} cells with runs are level with the best")
    if best:
        gap = statistics.paired(ended[best].to_numpy(), ended[default].to_numpy())
        at = gap.difference
        print(f"  best cell {best} ({ended[best].mean():.3f}), default {default} ({ended[default].mean():.3f})")
        print(f"  best less default {at.mean:+.3f} ({at.low:+.3f} to {at.high:+.3f}, n = {gap.n}); usual spread between seeds {spread:.3f}")

# %% [markdown]
# A grid has more runs than a cell. Averaged over the other setting, each value of a setting has several runs, paired by seed and by that other setting. These averages were not planned as tests; read them as a guide to where to look.

# %%
figure, axes = plots.new_figure(1, 4, (10, 2.8), sharey=True)
settings = [(name, i) for name in grids for i in (0, 1)]
for ax, (name, i) in zip(axes[0], settings, strict=True):
    parts = {arm: arm.split()[i].split("=") for arm in grids[name]}
    key = next(iter(parts.values()))[0]
    steps = list(dict.fromkeys(value for _, value in parts.values()))
    for x, step in enumerate(steps):
        runs = grids[name][[arm for arm, (_, value) in parts.items() if value == step]].to_numpy(float).ravel()
        ax.plot(np.full(len(runs), x), runs, "o", color="0.7", markersize=4)
        found = statistics.bootstrap_mean(runs)
        ax.plot(x, found.mean, "D", color="black")
        ax.vlines(x, found.low, found.high, color="black")
    ax.axhline(start, color="0.4", linestyle="--")
    ax.set_xticks(range(len(steps)), steps)
    plots.labelled(ax, "", f"{key} (no unit)", "share of samples" if ax is axes[0, 0] else "")
plt.show()  # alt: Accuracy against each of the four settings, single runs in grey and means with intervals in black.

# %% [markdown]
# Grey: single runs. Black: their mean with its 95 % interval. Dashed: before training.
#
# ## The same cut on video
# Video was given the one setting that the paper reports, $\alpha$. The paper's own finding is one run a value.

# %%
figure, axes = plots.new_figure(1, 3, (10, 2.8))
cuts = {"t2i": grids["alpha_kappa"][[arm for arm in grids["alpha_kappa"] if arm.endswith("kappa=1.0")]]}
cuts |= {task: evidence.so_far(plan, records, "alpha_video", task, measure) for task in ("t2v", "i2v")}
for ax, (task, ended) in zip(axes[0], cuts.items(), strict=True):
    ended = ended.rename(columns=lambda arm: arm.split()[0].partition("=")[2])
    plots.runs_by_arm(ax, ended, evidence.before(records, task, measure))
    ax.tick_params(axis="x", labelsize=8)
    plots.labelled(ax, f"{task}: {measure}", "alpha", "share of samples" if ax is axes[0, 0] else "")
plt.show()  # alt: Accuracy against alpha in three tasks, a dot a run.

# %% [markdown]
# ## More samples a prompt, or more trust? (H8)
# A group of few samples has an uncertain mean, so its weight should say less: with small $G$ a smaller $\alpha$ should be better. The grid below spends the same 96 samples an iteration in 24 groups of 4, 12 of 8 or 6 of 16. The right map is about **stability**: how much the reward jerks from one iteration to the next, over the gain that the grid's mean run makes. Lower is steadier; no frames there.

# %%
ended = evidence.so_far(plan, records, "size_alpha", "t2i", measure)
logged = evidence.curves(plan, records, "size_alpha", "t2i", "reward")
figure, axes = plots.new_figure(1, 2, (9, 2.8))
mean, level = evidence.grid(ended)
plots.heat_map(axes[0, 0], mean, level)
plots.labelled(axes[0, 0], f"{measure} after training", mean.columns.name, mean.index.name).grid(False)
gains = [values[:, -10:].mean() - values[:, :10].mean() for values in logged.values()]
jerks = {arm: statistics.oscillation(values, np.mean(gains)).mean() for arm, values in logged.items()}
steady, _ = evidence.grid(ended.iloc[:1].assign(**{arm: jerks.get(arm, np.nan) for arm in ended}))
plots.heat_map(axes[0, 1], steady, np.zeros(steady.shape, bool), "{:.1f}")
plots.labelled(axes[0, 1], "oscillation of the reward (no unit)", mean.columns.name, mean.index.name).grid(False)
plt.show()  # alt: Two heat maps over group size and alpha: accuracy, and oscillation of the reward.
best = {size: row.idxmax() if row.notna().any() else None for size, row in mean.iterrows()}
print("best alpha by group size:", best, "(H8 falls if all three are the same)")

# %% tags=["nbval-check-output"]
values = verdicts | {"best_alpha_by_size": best, "start": None if np.isnan(start) else start}
whole = record("sensitivity", values, output, context={"measure": measure, "runs": len(records)})

# %% [markdown]
# ## Exercises
# **1.** How large must a difference be before two seeds a cell can see it? Draw grids in which one cell of 15 is truly better by some multiple of the noise, and count how often any other is called worse.

# %% tags=["solution", "hide-cell"]
random = np.random.default_rng(0)
for lead in (0, 3, 10, 30):
    grids_drawn = random.standard_normal((40, 15, 2)) + lead * (np.arange(15) == 7)[:, None]
    worse = np.mean([15 - statistics.level_with_best(cells).sum() for cells in grids_drawn])
    print(f"a lead of {lead} standard deviations: {worse:.1f} of 14 cells are seen to be worse")
# Two seeds see next to nothing. A map without frames' meaning in mind shows ridges in pure noise.

# %% [markdown]
# **2.** Another reward has ten times the scale. Which of the four settings must change with it?

# %% tags=["solution", "hide-cell"]
from bpgo.objective import k_from_kappa

rewards = 0.55 + 0.08 * random.standard_normal((8, 12))
print("k for kappa = 1:", *(round(k_from_kappa(1.0, scale * rewards), 2) for scale in (1, 10)))
# kappa need not change: k follows. alpha and beta have no unit. lambda has: CRT's exp(R) and its step of 1 see the reward's own scale.

# %% [markdown]
# ## Summary
# - **What to set.** With rewards of this scale (about 0.1 wide) take the tiny presets' values ($\alpha = 0.5$, $\kappa = 1$, $\lambda = 5$, $\beta = 0.5$) unless a cell of these maps lies outside every doubt above them; the lines under the maps say whether one does. A setting that is level with the best needs no tuning, and tuning it on one seed is fitting noise.
# - $\kappa$ is given per standard deviation of the rewards, so that it means the same for another reward. A $k$ in units of the reward does not (notebook 1).
# - Compare the differences between cells with the spread between seeds before you believe in a ridge. The paper's table of $\alpha$ has one run a value.
#
# **Vary** `measure` (`held_out`, `diversity`, `reward`). **Where it breaks:** two seeds a cell, half the presets' lengths, tiny models. All four settings at once were not tried; nor was the learning rate, which matters more than any of these (see the pilots in `reproduce/results/pilots`). Cells that are missing say "not run": `make study` runs them.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): RAS (2, 3), CRT (4), objective (5), table of alpha.
# - Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
