# ---
# jupyter:
#   bpgo:
#     smallest:
#       objectives: [bpgo]
#       iterations: 2
#       evaluate_every: 2
#       overrides: [groups=2, group_size=4, sampling.steps=3, "sampling.window_range=[0, 2]", evaluation.steps=2, evaluation.samples=2]
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
# We train the objectives of notebook 2 on a small Wan pipeline, which makes clips of nine frames. A clip shows one thing that stays still, moves, bounces or grows, slowly or fast. Captions use synonyms (emerald for green, plus for cross, wedge for triangle) and two word orders, and can leave anything open. The training reward is of the same kind as the paper's: a CLIP for videos, which reads several frames of a clip at once (here four).
#
# Afterwards you can train on videos, judge accuracy, motion and looks separately, and say what a prior of the model's own samples does to RAS.
#
# First we look at the model before training. It learned from partly wrong captions. Below are four clips each of a clear and an ambiguous prompt, frame by frame, with reward `R` and group advantage `A` (equation 1).

# %% tags=["parameters"]
preset: str = "t2v-tiny"  # settings file, or the name of one in bpgo/presets
objectives: list = ["grpo", "ras", "crt", "bpgo"]  # or teleboost, see notebook 6
seeds: list = [0]  # each objective is trained once per seed
iterations: int = 12  # rollouts, each followed by updates
evaluate_every: int = 6  # iterations between evaluations
checkpoint: str = ""  # pipeline to start from, a folder or hub id; if empty, the preset's
overrides: list = []  # further settings, written as for bpgo train
output: str = ""  # folder for the record and the runs; if empty, a temporary one
processes: int = 1  # processes that train one run together, one per GPU
interactive: bool = False  # a slider through the prompts, in Jupyter

# %%
import matplotlib.pyplot as plt
import numpy as np

from bpgo import objective
from bpgo.analysis import figures, runs
from reproduce.analysis.study import Study, prior_of

study = Study(
    preset, objectives, seeds, iterations, evaluate_every, checkpoint, overrides, output, processes
)
study.preflight()  # checks files, disk and memory, and says what to do if something is missing

# %%
start = study.start()  # a bpgo.Trainer with the settings of the preset
before = runs.before_training(start)
figures.video_groups(before, [before.clear, before.vague])
plt.show()  # alt: Clips of a clear and an ambiguous prompt as rows of frames, with reward and advantage.

# %% [markdown]
# Time runs to the right. Far more clips fit an ambiguous prompt, as on the right, than a clear one. Yet the advantages there are as large. (We picked prompts that show this.)
#
# ## Train
# Each iteration draws 8 prompts and 8 clips of each (the paper's group size for video). It scores them and takes two small steps along equation 5. If `output` is set, a notebook that was stopped resumes where it was.

# %%
logs, after = study.train()  # Trainer.train() for each objective and seed
print(len(seeds) * len(objectives), "runs of", iterations, "iterations")

# %% [markdown]
# ## Before and after
# **Before you look:** a reward that reads whole clips may prefer the right thing, the right motion, or both. Which of them will change first?

# %%
prompts, some, last = before.prompts, before.examples(3), objectives[-1]
ends = {"before": before.scores} | {name: after[name] for name in (objectives[0], last)}
study.keep(
    figures.video_samples(ends, prompts, some), "samples"
)  # alt: Films of prompts from clear to ambiguous, before training and after two objectives.

# %% [markdown]
# All clips of a prompt start from the same noise. The figure shows the first and the last objective. `right` means that the oracle finds in the clip all that its prompt says. Here they are in motion, before training and after the last objective:

# %%
pair = {"before": before.scores, last: after[last]}
study.keep(
    figures.moving_samples(pair, prompts, some), "samples"
)  # alt: The same clips in motion, before and after training.

# %% [markdown]
# The clips are almost the same, although the reward has risen on average.

# %% tags=["nbval-skip"]
if interactive:
    from ipywidgets import interact

    columns, order = {"before": before.scores} | after, before.order.tolist()
    interact(
        lambda rank: figures.video_samples(columns, prompts, [order[rank]]) and None,
        rank=(0, len(order) - 1),
    )

# %% [markdown]
# ## Learning or gaming?
# The oracle measures three things that one reward mixes, and flicker as a fourth:
#
# | metric | in tables | what it says (higher is better, except for flicker) |
# |---|---|---|
# | accuracy | `accuracy` | the clip shows what its prompt says |
# | motion | `motion` | one and the same thing throughout, on a path of this world: still, straight, bouncing or growing |
# | looks | `visual` | how much of the clip a clean drawing explains |
# | flicker | `flicker` | how much the image changes from frame to frame beyond its motion |
#
# The held-out reward is a second CLIP. It was trained separately, and training never uses it.
#
# **Before you look:** a reward that only compares a clip with words could neglect one of the three. Which?

# %%
study.keep(
    figures.curves(logs, columns=3), "curves"
)  # alt: Curves of reward, held-out reward, accuracy, motion and visual quality by iteration, one line per objective.

# %% [markdown]
# Compare training curves with each other, not with their own past. No caption says how clean a path or a drawing is, and motion and looks measure just that. They move by about .01, which is less than their intervals below and too little to draw a conclusion.
#
# ## Where is it learned?
# **Before you look:** at level 0 ("it") only the drawing can be wrong. What can training still change there, and would you want it to?

# %%
first, parts = runs.outcome(logs, before.bits)  # metric -> (seeds, prompts), before and after
figures.by_level(first, parts, before.level)
plt.show()  # alt: Accuracy and diversity by level of ambiguity, before training and after each objective.

# %% [markdown]
# A point stands for 5 to 32 prompts with four clips each. It shows where to look, and is not a result.
#
# ## What does a prior of the model's own samples trust?
# For text-to-video, the paper's prior is the reward of the supervised fine-tuned (SFT) model, which is the model before training with rewards. It is averaged over its own samples of the training prompts. This is one number, measured once and kept. The left panel shows the weights of training (mean and range over groups). The right panel shows the weight of each evaluation prompt before training. A dot is darker if more of its clips are right.
#
# **Before you look:** the prior stays where it is while the rewards rise. What happens to the mean weight?

# %%
o, rewards, level = start.config.objective, before.rewards, before.level
k = objective.sharpness(rewards, o.k, o.kappa)
prior = prior_of(start, prompts, rewards)
weights = objective.ras_weights(rewards, prior, o.alpha, k).numpy()
accuracy = first["accuracy"][0] if "accuracy" in first else None
figures.weights(logs, weights, level, accuracy)
plt.show()  # alt: Left: weights of RAS during training. Right: the weight of each evaluation prompt by its level.
print(
    f"prior {np.mean(np.asarray(prior)):.3f}, mean reward before training {rewards.mean():.3f}",
    end="",
)
print(f", k {k:.1f}")
print(runs.weight_correlations(weights, level=level, accuracy=accuracy))

# %% [markdown]
# In a dozen iterations the mean weight only goes up and down with the prompts that are drawn. But this prior never changes. If rewards keep rising, all weights rise with them, whether or not the rewards have become more reliable. A running mean, as in notebook 2, would move along.
#
# Most weights on the right start below 1. The prior is from the *training* prompts, and these *evaluation* prompts score lower. What all weights share carries no information. With RAS alone, AdamW rescales gradients and nearly cancels it. In BPGO it shifts the balance with CRT. Both correlations are weak, and they do not say which is the cause, because level and accuracy may go together.
#
# ## What is it worth?
# Here are paired differences on the same prompts and noise, with 95 % t intervals. For `flicker`, lower is better. `overall` is the mean of accuracy, motion and looks.

# %%
print(runs.comparison(parts, first), end="\n\n")
spent, table = runs.seconds(logs)
print(table)

# %% [markdown]
# So the answer is: not yet. In a dozen iterations both rewards rise, and flicker gets slightly worse. Accuracy, motion and looks do not change measurably. No objective stands out. Of 27 intervals, one or two exclude 0 by chance. (Differences in time mean nothing, because the machine was not equally busy.)
#
# A dozen iterations show how the machinery works. They are not a result. With one seed, intervals cover *prompts* only, so **one seed decides nothing**. `make reproduce ARGS="--profile video"` trains three seeds of notebooks 3 and 4 and writes a table to `reproduce/results/video/`.

# %% tags=["nbval-check-output"]
study.record("text_to_video", first, parts, spent)

# %% [markdown]
# ## Exercises
# **1.** Compare each prompt with the model's own samples of *this prompt*, as the prior `sft_per_prompt` does. What are the weights before training, and what do they mean afterwards?

# %% tags=["solution", "hide-cell"]
own = rewards.mean(1)
for name, now in (("before", rewards), ("after", after[last].scores["reward"])):
    w = objective.ras_weights(now, own, o.alpha, k)
    print(f"{name:7} weights from {w.min():.2f} to {w.max():.2f}, mean {w.mean():.2f}")
# Before training every weight is 1, whether a prompt is clear or not. This prior knows nothing about clarity.
# Afterwards a weight above 1 says that this prompt has been learned. That is progress, not trust.

# %% [markdown]
# **2.** Which of the oracle's metrics would a perfectly still clip improve, and which would it make worse? Hold the first frame of each clip, and measure.

# %% tags=["solution", "hide-cell"]
from bpgo.registry import find

oracle = find("metric", "clips")
if "accuracy" in before.scores.scores:  # only if there is an oracle
    clips = before.scores.pixels[:, 0]
    for name, videos in (("as drawn", clips), ("held still", clips[:, :1].expand_as(clips))):
        found = oracle(videos, prompts)
        metrics = ("accuracy", "motion", "visual", "flicker")
        print(f"{name:11}", *(f"{metric} {found[metric].nanmean():.2f}" for metric in metrics))
# Motion improves, because staying still is one of the world's paths, and so does flicker. Looks stay as they are.
# Accuracy gets worse for prompts that name a motion.

# %% [markdown]
# ## Summary
# - The objectives do not depend on what a sample is. Images and videos share every line from reward to update.
# - One reward mixes accuracy, motion and looks. Judges that measure them separately show what improved, and at what cost.
# - With a fixed prior, progress would look like trust.
#
# **Vary** `seeds`, `iterations` (100 in the preset), `prior.name`, `sampling.window_range` (which denoising steps get noise and are trained) and `generator.guidance` (how strongly the prompt pulls; above 1 each step calls the model twice). **Where it breaks:** shapes blur in a long run, as in notebook 2. The reward sees only four of the nine frames. Nine frames of 32 pixels say little about 81 frames of 480p.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): group advantage (1), RAS (2, 3), CRT (4), objective (5).
# - [VideoCLIP-XL](https://arxiv.org/abs/2410.00741): the kind of the training reward. [Wan](https://arxiv.org/abs/2503.20314): the generator. [DanceGRPO](https://arxiv.org/abs/2505.07818): GRPO for video.
