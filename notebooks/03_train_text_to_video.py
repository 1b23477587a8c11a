# ---
# jupyter:
#   bpgo:
#     smallest:
#       objectives: [bpgo]
#       iterations: 2
#       evaluate_every: 2
#       overrides: [groups=2, group_size=4, sampling.steps=3, "sampling.window_range=[0, 2]", evaluation.steps=2, evaluation.samples=2, prompts=prompts/clip-evaluation.jsonl]
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
# # 3. Can a reward teach a text-to-video model to move?
# *About 7 minutes on two CPU cores; no accelerator. Half an hour to read. Read notebook 2 first.*
#
# The objectives of notebook 2, now on a small Wan pipeline that makes clips of nine frames: one thing that stays still, moves, bounces or grows, slowly or fast. Captions use synonyms (emerald for green, plus for cross, wedge for triangle) and two word orders, and may leave anything open. The training reward is of the paper's kind: a CLIP for videos, which reads several frames of a clip (here four) at once.
#
# Afterwards you can train on videos, judge accuracy, motion and looks apart, and say what a prior of the model's own samples does to RAS.
#
# First the model as we find it. It learned from partly wrong captions. Below, four clips each of a clear and an ambiguous prompt, frame by frame, with reward `R` and group advantage `A` (equation 1).

# %% tags=["parameters"]
preset: str = "t2v-tiny"  # settings file, or the name of one in bpgo/presets
objectives: list = [
    "grpo",
    "ras",
    "crt",
    "bpgo",
]  # any of these, and teleboost, the institute's variant (notebook 6)
seeds: list = [0]  # one run of each objective for each
iterations: int = 12  # rollouts followed by updates
evaluate_every: int = 6  # iterations between evaluations
checkpoint: str = ""  # pipeline to start from, a folder or hub id; empty, the preset's
overrides: list = []  # more settings, written as for python -m bpgo train
output: str = ""  # folder for the record and the runs; empty, a temporary one
processes: int = 1  # how many train a run together, one a GPU, before all else
interactive: bool = False  # a slider through the prompts, in Jupyter

# %%
import matplotlib.pyplot as plt
import numpy as np

from bpgo.analysis import figures, plots, runs
from bpgo.worlds.clips.oracle import METRICS
from reproduce.analysis.study import Study, prior_of

study = Study(
    preset,
    objectives,
    seeds,
    iterations,
    evaluate_every,
    checkpoint,
    overrides,
    output,
    METRICS,
    processes,
)
study.preflight()  # files, disk and memory that the runs need; stops with the remedy where one is missing

# %%
start = study.start()  # a bpgo.trainer.Trainer, with the preset's settings
config, prompts, before = start.config, start.evaluation_prompts, start.evaluate()
facts = runs.prompt_facts(config.evaluation.prompts or config.prompts, prompts)
order = np.argsort(-facts["level"], kind="stable")  # from clear to ambiguous
rewards = before.scores["reward"]  # (prompts, samples)
clear, vague = runs.clear_and_vague(facts["level"], rewards)
figures.groups(before, prompts, [clear, vague])
plt.show()  # alt: Clips of a clear and an ambiguous prompt as rows of frames, with reward and advantage.

# %% [markdown]
# Time runs to the right. Far more clips fulfil an ambiguous prompt, as on the right, than a clear one, yet the advantages there are as large. (We picked prompts that show it.)
#
# ## Train
# Each iteration draws 8 prompts and 8 clips of each (the paper's group size for video), scores them, and takes two small steps along equation 5. A killed notebook goes on if `output` is given.

# %%
logs, after = study.train()  # Trainer.train() for each objective and seed
print(len(seeds) * len(objectives), "runs of", iterations, "iterations")

# %% [markdown]
# ## Before and after
# **Before you look:** a reward that reads whole clips may prefer the right thing, the right motion, or both. Which of them will change first?

# %%
_, one_each = np.unique(
    -np.round(4 * facts["level"]), return_index=True
)  # the first prompt of each level
some = list(dict.fromkeys([clear, *(one_each if len(one_each) > 1 else order)[-3:]]))
ends = {"before": before} | {name: after[name] for name in (objectives[0], objectives[-1])}
study.keep(
    figures.films(ends, prompts, some), "samples"
)  # alt: Films of prompts from clear to ambiguous, before training and after two objectives.

# %% [markdown]
# Each prompt's clips start from the same noise; shown are the first and the last objective. `right`: the oracle finds in the clip all that its prompt says. In motion, before training and after the last objective:

# %%
pairs = [[scores.pixels[i, 0] for scores in (before, after[objectives[-1]])] for i in some]
study.keep(
    plots.animation(
        pairs, [prompts[i] for i in some], ["before", plots.METHODS[objectives[-1]]["label"]]
    ),
    "samples",
)  # alt: The same clips moving: before training and after it.

# %% [markdown]
# The clips are almost the same, though the reward has risen on average.

# %% tags=["nbval-skip"]
if interactive:
    from ipywidgets import interact

    interact(
        lambda rank: figures.films({"before": before} | after, prompts, [order[rank]]) and None,
        rank=(0, len(order) - 1),
    )

# %% [markdown]
# ## Learning or gaming?
# The oracle measures three things that one reward mixes:
#
# | measure | in tables | what it says (higher is better, but for flicker) |
# |---|---|---|
# | accuracy | `accuracy` | the clip shows what its prompt says |
# | motion | `motion` | one and the same thing throughout, on a path of this world: still, straight, bouncing or growing |
# | looks | `visual` | how much of the clip a clean drawing explains |
# | flicker | `flicker` | how much the picture changes from frame to frame beyond its motion |
#
# The held-out reward is a second CLIP, trained apart, that training never asks.
#
# **Before you look:** which of the three could a reward that only compares a clip with words leave behind?

# %%
judges = [m for m in ("reward", "held_out", "accuracy", "motion", "visual") if m in before.scores]
study.keep(
    figures.curves(logs, judges, columns=3), "curves"
)  # alt: Curves of reward, held-out reward, accuracy, motion and visual quality against iterations, a line an objective.

# %% [markdown]
# Compare training curves with one another, not with their own past. No caption says how clean a path or a drawing is, which motion and looks measure. They move by about .01, less than their intervals below: too little to tell.
#
# ## Where is it learned?
# **Before you look:** at level 0 ("it") nothing can be wrong but the drawing. What can training still change there, and would you want it to?

# %%
first, parts = runs.outcome(
    logs, facts["bits"]
)  # metric -> (seeds, prompts), before and by objective
if figures.by_level(
    first, parts, facts["level"], [m for m in ("accuracy", "diversity") if m in first] or ["reward"]
):
    plt.show()  # alt: Accuracy and diversity against the level of ambiguity, before training and after each objective.

# %% [markdown]
# A point stands for 5 to 32 prompts of four clips: a place to look, not a result.
#
# ## What does a prior of the model's own samples trust?
# For text-to-video the paper's prior is the reward of the supervised fine-tuned (SFT) model, the one before training with rewards, averaged over its own samples of the training prompts: one number, measured once and kept. On the left the weights of training (mean and range over groups), on the right the weight of each evaluation prompt before training; the darker, the more of its clips are right.
#
# **Before you look:** the prior stays where it is while the rewards rise. What happens to the mean weight?

# %%
from scipy.stats import spearmanr

from bpgo.objective import ras_weights, sharpness

o = config.objective
k = sharpness(o.k, o.kappa, rewards)
prior = prior_of(start, prompts, rewards)
weights = ras_weights(rewards, prior, o.alpha, k).numpy()
others = {"level": facts["level"]} | (
    {"accuracy": first["accuracy"][0]} if "accuracy" in first else {}
)
figures.weights(logs, weights, facts["level"], others.get("accuracy"))
plt.show()  # alt: Left: weights of RAS during training. Right: the weight of each evaluation prompt against its level.
print(
    f"prior {np.mean(np.asarray(prior)):.3f}, mean reward before training {rewards.mean():.3f}, k {k:.1f}"
)
for name, values in others.items():
    print(
        f"rank correlation of the weight with {name}: {spearmanr(weights, values).statistic:+.2f}"
    )

# %% [markdown]
# In a dozen iterations the mean weight only goes up and down with the prompts drawn. But this prior never changes. If rewards keep rising, so do all weights, whether or not the rewards have become more reliable. A running mean, as in notebook 2, moves along.
#
# Most weights on the right start below 1: the prior is of the *training* prompts, and these *evaluation* prompts score lower. What all weights share carries no information. With RAS alone AdamW, which rescales gradients, nearly cancels it; in BPGO it shifts the balance with CRT. Both correlations are weak, and do not say which is the cause: level and accuracy may go together.
#
# ## What is it worth?
# Paired differences on the same prompts and noise, with 95 % t intervals. For `flicker` lower is better; `overall` is the mean of accuracy, motion and looks.

# %%
print(runs.comparison(parts, first), end="\n\n")
spent, table = runs.seconds(logs)
print(table)

# %% [markdown]
# So, not yet. In a dozen iterations both rewards rise, and flicker gets slightly worse; accuracy, motion and looks do not change measurably. No objective stands out: of 27 intervals one or two leave 0 out by chance. (Differences in time mean nothing, the machine was not equally busy.)
#
# A dozen iterations are a look at the machinery, not a result. With one seed intervals cover *prompts* only: **one seed decides nothing**. `make reproduce ARGS="--profile video"` trains three seeds of notebooks 3 and 4 and writes a table to `reproduce/results/video/`.

# %% tags=["nbval-check-output"]
study.record("text_to_video", first, parts, spent)

# %% [markdown]
# ## Exercises
# **1.** Compare each prompt with the model's own samples of *it*, as the prior `sft_per_prompt` does. What are the weights before training, and what do they mean afterwards?

# %% tags=["solution", "hide-cell"]
own = rewards.mean(1)
for name, now in (("before", rewards), ("after", after[objectives[-1]].scores["reward"])):
    w = ras_weights(now, own, o.alpha, k)
    print(f"{name:7} weights from {w.min():.2f} to {w.max():.2f}, mean {w.mean():.2f}")
# Before training every weight is 1, whether a prompt is clear or not: the prior knows nothing of clarity any more.
# Later a weight above 1 says that this prompt has been learned. That is progress, not trust.

# %% [markdown]
# **2.** Which of the oracle's measures would a perfectly still clip win, and which would it lose? Hold the first frame of each clip, and measure.

# %% tags=["solution", "hide-cell"]
if "accuracy" in before.scores:  # where there is an oracle
    clips = before.pixels[:, 0]
    for name, videos in (("as drawn", clips), ("held still", clips[:, :1].expand_as(clips))):
        found = METRICS["oracle"](videos, prompts)
        print(
            f"{name:11}",
            *(f"{m} {found[m].nanmean():.2f}" for m in ("accuracy", "motion", "visual", "flicker")),
        )
# It wins motion, since staying still is one of the world's paths, and flicker. Looks stay as they are. It loses accuracy where a motion is named.

# %% [markdown]
# ## Summary
# - The objectives do not care what a sample is: pictures and videos share every line from reward to update.
# - One reward mixes accuracy, motion and looks; judges that keep them apart show what improved, and at what cost.
# - Against a prior that stands still, progress would look like trust.
#
# **Vary** `seeds`, `iterations` (100 in the preset), `prior.name`, `sampling.window_range` (which denoising steps get noise, and so are trained), `generator.guidance` (how strongly the prompt pulls; above 1 each step calls the model twice). **Where it breaks:** shapes blur in a long run, as in notebook 2; the reward sees four of nine frames, and not what happens between; nine frames of 32 pixels say little about 81 of 480p.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): group advantage (1), RAS (2, 3), CRT (4), objective (5).
# - [VideoCLIP-XL](https://arxiv.org/abs/2410.00741), the training reward's kind; [Wan](https://arxiv.org/abs/2503.20314), the generator; [DanceGRPO](https://arxiv.org/abs/2505.07818), GRPO for video.
