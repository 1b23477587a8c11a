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
# # 10. Which of the paper's results can be seen here, and which cannot?
# *Seconds on one CPU core, because the training was done before. Half an hour to read. Read notebook 6 first.*
#
# The paper compares BPGO with GRPO and with the model before training, in three tasks. Each row of its tables is one training run. Here its tables are shown next to ours, which come from tiny models in a small world, with several seeds and intervals. A third column, *paper scale*, is for your own runs of the models that the paper trains (FLUX, Wan). The notebook looks for them in the folder `runs`. We have none, so the column says **not run**.
#
# The paper's numbers were copied from a summary of it, not from its pages, and may contain copying errors (`reproduce/paper/README.md`). Exercise 3 shows what one digit can do.
#
# Afterwards you can say which of the paper's statements were tested here, and what must not be concluded from columns side by side.
#
# The first figure shows how far GRPO and BPGO moved from the untrained model. The unit is the size of GRPO's own move, which is printed at the right edge. If it is tiny, this unit magnifies what BPGO did. A diamond to the right of the dotted line beats no training. A diamond to the right of the black dot beats GRPO. A hollow triangle points to a value outside the panel.

# %% tags=["parameters"]
results: str = ""  # folder with the results of the study; if empty, those of the repository
runs: str = ""  # folder with runs of the published models; if empty, there are none
output: str = ""  # folder for the record; if empty, none is written

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from bpgo.analysis import plots, statistics
from bpgo.records import aligned, record
from reproduce.analysis import claims, evidence, paper
from reproduce.analysis.figures import paper as figures

plan, records = evidence.read(results)
real, left_out = paper.real_runs(runs)
main = paper.beside("main", plan, records, real)
TASKS = main["task"].unique()
figures.moves({task: figures.moves_of(task, main, plan, records, real) for task in TASKS})
plt.show()  # alt: Moves of GRPO and BPGO from the untrained model, published and ours, in units of GRPO's move, for three tasks.
print(evidence.state(plan, records))

# %% [markdown]
# The upper rows are published, with one run each and so without intervals. The rows below are ours, with 95 % intervals over the `n` seeds that both methods have. The unit, the mean move of our GRPO, is taken as known exactly. Higher is better for all metrics:
#
# - VideoCLIP-XL (trained on) says how well a clip fits a long text. Qwen3-VL-Embedding does the same with the embedding of a large model.
# - VideoAlign predicts the ratings of people. *TA* is text alignment, and *overall* adds looks and motion.
# - HPSv2 (trained on), PickScore and ImageReward predict which image people prefer.
#
# **Before you read on:** in which of the published rows is GRPO worse than no training? And BPGO?
#
# ## What the published rows say
# The first line below counts the answers. Three things are easily missed:
# - By VideoAlign overall, the untrained model beats BPGO in both video tasks.
# - In text-to-image, GRPO has the highest HPSv2, the reward it is trained on, while both metrics that it is not trained on fall. BPGO gains less HPSv2, and raises the other two.
# - In image-to-video, GRPO *loses* much of the reward it is trained on. BPGO stays near the untrained model by three of the four metrics, and is below it by two.
#
# ## The main tables
# Our metric is in brackets: the training reward; `held_out`, another learnt judge that training never saw; or `overall`, the oracle's mean of accuracy, motion and visual quality. The other published metrics have no counterpart here. `n` counts seeds. Tables differ in it, and therefore in the line of BPGO itself. Compare signs, not values. At paper scale, our code reports VideoCLIP-XL as a cosine, which is at most 1. The published values (2.7) look like ten times that.

# %%
NAMES = {name: plots.method_label(name) for name in plots.METHODS} | {"base": "untrained"}


def commands(experiments, tasks, settings, others):
    name = "-".join(setting.partition("=")[2] for setting in settings.split())
    print(f"ours:        make study ARGS='all {experiments}'")
    for task in tasks:
        run = f"{paper.PRESETS[task][-1]} --output runs/real/{task}-{name}-0 {settings} seed=0"
        print(f"paper scale: bpgo train {run}")
    print(f"             use one folder per run; repeat with {others} and with further seeds;")
    print("             then run this notebook with runs=runs/real\n")


rows = paper.published("main").pivot(index=["task", "metric"], columns="method", values="value")
worse = {NAMES[arm]: int((rows[arm] < rows["base"]).sum()) for arm in ("grpo", "bpgo")}
print(f"worse than no training, of {len(rows)} published rows: {worse}\n")
commands("trust", TASKS, "objective.name=bpgo", "objective.name=grpo")
print(paper.text(main[~main["line"].str.endswith("- base")], NAMES))
if runs:
    print(
        "\nruns of the published models, all settings:", paper.over_seeds(real).round(4), sep="\n"
    )
    print(*left_out, sep="\n")

# %% [markdown]
# The comment at the top of a preset file says which machine it needs. The preset of the same name without `-lowmem` is for eight GPUs.
#
# ## RAS and CRT alone
# The paper shows this for video only. **Before you look:** if each half helps, which sign do `BPGO - RAS` and `BPGO - CRT` have?

# %%
commands("ablation", ("t2v", "i2v"), "objective.name=ras", "objective.name=crt")
print(paper.text(paper.beside("ablation", plan, records, real), NAMES))

# %% [markdown]
# If each half helps, both differences are positive. In the published image-to-video rows they are, by two metrics of three. In text-to-video they are negative, by the same two. By the overall metric there is one of each sign in both tasks. With single runs, nobody can separate chance from effect.
#
# ## How strong should RAS be?
# The paper finds alpha = 0.5 best. Its row for 0.5 equals the row of RAS alone above, digit for digit. So the published sweep seems to be of RAS alone. Ours, on the right, is of BPGO and of another reward. **Before you look:** which alpha is best by VideoAlign overall?

# %%
figures.alpha_sweeps(plan, records)
plt.show()  # alt: Reward by alpha, in two published panels and one of ours.
settings = "objective.name=ras objective.alpha=0.1"
commands("alpha_image alpha_video", ["t2v"], settings, "objective.alpha=0.5, 0.7 and 0.9")
print(paper.text(paper.beside("alpha", plan, records, real), NAMES))

# %% [markdown]
# By VideoCLIP-XL, 0.5 is best. (VideoAlign-TA has the same shape.) By VideoAlign overall, 0.7 is best, and 0.5 is worst by far.
#
# ## Figure 7: fast, slow, steady
# Its claim is that CRT is fast early and oscillates, RAS is slow and steady, and BPGO is fast *and* steady. It shows curves and no numbers. *Early* and *oscillation* below are those of notebook 6, which shows the curves: the gain of the first half, and the second differences, both divided by GRPO's mean gain.

# %%
lines = [["", "early", "oscillation"]]
for task in TASKS:
    found = evidence.pace(plan, records, "ablation", task)
    if not found:
        lines.append([task, "not run", "not run"])
    for arm, both in found.items():
        told = [paper.told(statistics.bootstrap_mean(values)) for values in both]
        lines.append([f"{task} {NAMES[arm]}", *told])
print(aligned(lines), claims.told(claims.verdicts(plan, records, ["H2"])), sep="\n\n")

# %% [markdown]
# ## What BPGO costs compared with GRPO
# The paper calls the method efficient and states no cost. Within an iteration both call the model equally often, because equation 5 only changes the weights of the samples. **Before you look:** what could still make BPGO cost more?

# %%
from bpgo.config import read_config
from bpgo.prompt_files import read_prompts

print("seconds of an iteration of BPGO divided by those of GRPO, timed in turn on one machine;")
print("median (minimum .. maximum) of rounds of `bpgo bench PRESET`:")
for place in sorted((evidence.RESULTS.parent / "foundations").glob("bench-*.txt")):
    print(place.stem.removeprefix("bench-"), *place.read_text().splitlines()[::2], sep="   ")
print(
    "\nmodel calls of the prior `sft` (samples of the untrained model) before training, divided by"
)
print("those of all rollouts. They are made once per model and kept for other seeds. As a share of")
print("the whole run they are fewer, because updates call the model too:")
for preset in ("t2v-tiny", paper.PRESETS["t2v"][0]):
    config = read_config(preset)
    before = len(read_prompts(config.prompts)) * config.prior.samples * config.evaluation.steps
    within = config.iterations * config.groups * config.group_size * config.sampling.steps
    print(f"{preset}   {before / within:.3f}   ({before} / {within})")

# %% [markdown]
# ## So which results can be seen here?
# This table sorts every published difference by what our intervals say. *Seen*: ours has the same sign, and its interval excludes 0. *Opposite*: the other sign. *Cannot be told*: it contains 0. Nothing here is corrected for the number of lines. By chance alone, one in twenty excludes 0.


# %%
def found(row):
    if not (row.measure and row.ours.n):
        return "not run" if row.measure else "no counterpart"
    if not (row.ours.low > 0 or row.ours.high < 0):
        return "cannot be told"
    return "seen" if row.published * row.ours.mean > 0 else "opposite"


others = [paper.beside(name, plan, records, real) for name in ("ablation", "alpha")]
every = pd.concat([main, *others])
every = every[every["line"].str.contains(" - ")]
sweep = every["line"].str.startswith("alpha=")
line = every["line"].mask(sweep, "alpha=0.5 - others (published: RAS, ours: BPGO)")
answers = [found(row) for row in every.itertuples()]
print(pd.crosstab(line, pd.Series(answers, every.index, name="found")).to_string())

# %% tags=["nbval-check-output"]
values = {}
for row in main[main["line"] == "bpgo - grpo"].itertuples():
    mean, low, high = (None if np.isnan(value) else value for value in row.ours[:3])
    numbers = {"published": row.published, "ours": mean, "low": low, "high": high}
    numbers |= {"n": row.ours.n, "n at paper scale": row.real.n}
    values[f"{row.task} {row.metric}"] = numbers
context = {"difference": "BPGO - GRPO", "runs": len(records), "real": len(real)}
whole = record("paper_tables", values, output, context=context)

# %% [markdown]
# ## Summary
# - The last table answers the title. Where it says *cannot be told*, our seeds do not decide. That neither confirms nor refutes the paper.
# - An iteration of BPGO costs as much as one of GRPO. Timed in turn, the ratio is 1 within its variation. What BPGO adds is its prior. In text-to-video that is samples of the untrained model. In image-to-video it is one score per first frame (not measured).
#
# **What must not be concluded**
# - That a published difference is real, or is not. Each row is one run.
# - That BPGO works on FLUX or Wan, or does not. None was run, unless the third column says so.
# - Anything from the *sizes* in two columns. Models, prompts, rewards and scales differ.
# - That `held_out` or `overall` measure what ImageReward or VideoAlign measure.
# - That longer training gives the same. Our runs have half the length of the presets or less (README: three seeds of the full length).
# - That k, lambda and beta are the paper's. It publishes none of them.
#
# **Vary** `results` and `runs`. **Where it breaks:** if `runs` contains several settings of a method, only the one with most runs is shown.

# %% [markdown] tags=["exercise"]
# ## Exercises
# **1.** In how many of the published rows of the main tables is each of the three models the best?

# %% tags=["solution", "hide-cell"]
rows = paper.published("main").pivot(index=["task", "metric"], columns="method", values="value")
best = rows.idxmax(axis=1)
print(best.to_string(), best.value_counts().to_string(), sep="\n\n")
# BPGO in 7; the untrained model in 3, all by VideoAlign; GRPO in 1, the metric that it is trained on in text-to-image.

# %% [markdown] tags=["exercise"]
# **2.** Report one run per row, as the paper does. Draw one seed of each method from ours. How often is BPGO ahead in reward?

# %% tags=["solution", "hide-cell"]
for task in TASKS:
    table = paper.of_study(plan, records, "trust", task, "reward")
    if {"grpo", "bpgo"} <= set(table):
        ahead = table["bpgo"].dropna().to_numpy()[:, None] > table["grpo"].dropna().to_numpy()
        print(f"{task}: in {ahead.sum()} of {ahead.size} draws")
# The nearer this is to a half, the less a row of single runs says. It could have been printed either way.

# %% [markdown] tags=["exercise"]
# **3.** Suppose GRPO's VideoCLIP-XL in image-to-video contains a misread digit and should be 2.6713. Which statements about that row would still hold?

# %% [markdown] tags=["solution", "hide-cell"]
# <details><summary>Solution</summary>
#
# GRPO would hardly lose any of the reward it is trained on, and the lead of BPGO would be one fortieth as large. The fall of VideoAlign would remain.
# </details>

# %% [markdown]
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): equations 2 to 5, the main tables, the ablation, the sweep of $\alpha$, figure 7.
# - DanceGRPO, [arXiv 2505.07818](https://arxiv.org/abs/2505.07818): the paper's baseline.
