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
# # 6. Does it pay to trust some rewards more than others?
# *Seconds on one CPU core: the training was done before. Twenty minutes to read. Read notebook 2 first.*
#
# The paper says that RAS makes training steady, that CRT makes it fast, and that both together, BPGO, beat GRPO. It shows one run of each. Here each objective is trained with several seeds from the same model, and equal seeds see equal prompts and equal noise. So a difference can be paired, and its uncertainty be stated. What would count as a refutation was written down before the first run, in `reproduce/PLAN.md` (H1 to H3).
#
# Afterwards you can read a comparison of training methods as a referee would: how many runs, what interval, how many questions were asked at once.
#
# The first picture has all there is: a dot for each run, a grey line through the runs of one seed, a bar for the mean. The dashed line is the model before training.

# %% tags=["parameters"]
task: str = "t2i"  # t2i, t2v or i2v
measure: str = "accuracy_specified"  # the primary measure; any other of the records
results: str = ""  # folder of the study's results; empty, those of the repository
output: str = ""  # folder for the record; empty, none is written

# %%
import matplotlib.pyplot as plt
import numpy as np

from bpgo.analysis import evidence, plots, runs, statistics
from bpgo.config import read_config
from bpgo.records import record

plan, records = evidence.read(results)
ended = evidence.final(plan, records, "ablation", task, measure)
figure, [[ax]] = plots.new_figure(size=(7, 3.4))
plots.runs_by_arm(ax, ended, evidence.before(records, task, measure))
plots.labelled(ax, f"{task}: {measure} after training, a dot a run", "objective", "share of samples")
plt.show()  # alt: A dot for each run by objective, lines through runs of one seed, bars for means, dashed the untrained model.
print(evidence.state(plan, records))
print("this experiment:", ended.notna().sum().to_dict(), "runs of each")

# %% [markdown]
# **Before you read on:** the dots of one objective differ only in the seed. Is the spread within a column smaller than the distance between columns?
#
# ## Is BPGO better than GRPO? (H1)
# Each line compares an objective with GRPO, seed by seed. `n` is the number of seeds, `low` to `high` the 95 % interval of the mean, `from` to `to` that of the difference. `p` is corrected for asking four questions at once (Holm). An interval that holds 0 says: these runs do not tell the two apart. It does not say that they are equal.

# %%
table = evidence.compare(ended, "grpo")
print(table.round(3).to_string())
some = table.drop(index="grpo").dropna(subset=["from"])
for arm, row in some.iterrows():
    verdict = "better than" if row["from"] > 0 and row["p"] < 0.05 else "worse than" if row["to"] < 0 and row["p"] < 0.05 else "not told apart from"
    print(f"{plots.METHODS[arm]['label']} is {verdict} GRPO ({row['- grpo']:+.3f}, {row['from']:+.3f} to {row['to']:+.3f}, n = {row['n']:.0f})")

# %% [markdown]
# ## Fast, slow, steady? (H2)
# Figure 7 of the paper shows curves. Below are ours: the reward in training, as a mean over a tenth of the run, with its 95 % interval over seeds. All objectives see the same prompts at the same iteration, so the common ups and downs are the prompts'.
#
# Two numbers go with it. *Early* is the share of GRPO's whole gain that is there after half of the run. *Oscillation* is how much the curve jerks from one iteration to the next (the root mean square of its second differences), divided by the same gain for all.

# %%
logged = evidence.curves(plan, records, "ablation", task, "reward")
width = max(1, min(len(values[0]) for values in logged.values()) // 10)
smooth = {arm: runs.smooth(np.arange(values.shape[1]), values, width)[1] for arm, values in logged.items()}
figure, [[ax]] = plots.new_figure(size=(8, 3.4))
at = np.arange(next(iter(smooth.values())).shape[1]) + width
bands = {arm: [statistics.bootstrap_mean(column) for column in values.T] for arm, values in smooth.items() if len(values) > 1}
edges = {arm: ([i.low for i in found], [i.high for i in found]) for arm, found in bands.items()}
plots.plot_methods(ax, at, {arm: values.mean(0) for arm, values in smooth.items()}, edges)
plots.labelled(ax, "reward in training", "iteration", "reward (no unit)")
plt.show()  # alt: Training reward against iterations, a line an objective with its interval over seeds.

# %%
pace = {}
for arm, (early, jerks) in evidence.pace(plan, records, "ablation", task).items():
    spread = [statistics.bootstrap_mean(v) for v in (early, jerks)]
    pace[arm] = {"early": spread[0].mean, "oscillation": spread[1].mean}
    told = [f"{name} {i.mean:.2f} ({i.low:.2f} to {i.high:.2f})" for name, i in zip(pace[arm], spread, strict=True)]
    print(f"{plots.METHODS[arm]['label']:5s}", *told, sep="   ")

# %% [markdown]
# ## Learning or gaming? (H3)
# A reward that rises while judges that training never saw stay behind is being gamed. Each dot is a run: to the right more of the training reward, upwards more of the held-out one. A method that games less lies above the others *at the same place on the horizontal axis*.

# %%
reward, held_out = (evidence.final(plan, records, "ablation", task, name) for name in ("reward", "held_out"))
figure, [[ax]] = plots.new_figure(size=(5.5, 3.4))
for arm in reward:
    style = plots.method_style(arm)
    ax.scatter(reward[arm], held_out[arm], color=style["color"], marker=style["marker"], label=style["label"])
ax.legend(frameon=False, fontsize=9)
plots.labelled(ax, "after training, a dot a run", "training reward (no unit)", "held-out reward (no unit)")
plt.show()  # alt: Held-out against training reward after training, a mark a run.

# %% [markdown]
# ## What does the reward cost, in scores and in variety?
# How many reward evaluations until the smoothed reward reaches the level at which GRPO of the same seed ends (`never` counts the runs that do not; they are left out of the mean, which flatters it), and the diversity left on prompts that leave something open: 1 is the world's own.

# %%
config = read_config(f"{task}-tiny")
scores = evidence.reaching(plan, records, "ablation", task) * config.groups * config.group_size
varied = evidence.compare(evidence.final(plan, records, "ablation", task, "diversity"), "grpo")
print(f"diversity before training {evidence.before(records, task, 'diversity'):.3f}")
for arm in scores:
    needed, left = statistics.bootstrap_mean(scores[arm].to_numpy()), varied.loc[arm]
    print(f"{plots.METHODS[arm]['label']:5s} {needed.mean:5.0f} scores ({needed.low:.0f} to {needed.high:.0f}, n = {needed.n}), "
          f"never {int(scores[arm].isna().sum())};   diversity {left['mean']:.3f}, less GRPO's {left['- grpo']:+.3f} (p {left['p']:.2f})")  # fmt: skip

# %% tags=["nbval-check-output"]
values = {arm: {"n": int(row["n"]), "mean": row["mean"], "difference": row["- grpo"]} | pace.get(arm, {}) for arm, row in table.iterrows()}
values = {arm: {k: None if np.isnan(v) else v for k, v in row.items()} for arm, row in values.items()}
whole = record("ablation", values, output, context={"task": task, "measure": measure, "runs": len(records)})

# %% [markdown]
# ## Exercises
# **1.** Leave one seed out, each in turn. Does the difference between BPGO and GRPO keep its sign?

# %% tags=["solution", "hide-cell"]
for out in ended.index:
    rest = ended.drop(index=out)[["grpo", "bpgo"]].dropna()
    print(f"without seed {out}: {(rest['bpgo'] - rest['grpo']).mean():+.3f} (n = {len(rest)})")
# If it turns round when one run is missing, one run decides it.

# %% [markdown]
# **2.** How many seeds would show a difference of .05 in eight of ten such studies? (A paired test at 5 % needs about $(2.8\,s/.05)^2$ pairs, where $s$ is the standard deviation of the differences.)

# %% tags=["solution", "hide-cell"]
spread = (ended["bpgo"] - ended["grpo"]).std()
print(f"standard deviation of the differences {spread:.3f}:", "not known" if np.isnan(spread) else f"{np.ceil((2.8 * spread / 0.05) ** 2):.0f} seeds")
# Far more than one, and more than most papers run.

# %% [markdown]
# ## Summary
# - The lines under the first table are the answer to H1 for this task, as far as the runs go that are there. With few seeds only large differences can be seen; a method that is really a little better looks the same as one that is not.
# - One run of each, as in the paper's tables, would have let you pick any order that you like: look at single seeds in the first picture.
# - An objective that oscillates less may simply learn less. That is why both are divided by the same gain.
#
# **Vary** `task`, and `measure` (`accuracy`, `held_out`, `diversity`, `distance`). **Where it breaks:** tiny models, half the presets' lengths, one world; what holds here need not hold for FLUX.1-dev. Runs that are missing are left out: `python reproduce/study.py list` shows which, `make study` runs them.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): RAS (2, 3), CRT (4), objective (5), figure 7.
# - Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
