# ---
# jupyter:
#   bpgo:
#     smallest:
#       objectives: [grpo, bpgo]
#       iterations: 2
#       evaluate_every: 2
#       overrides: [groups=2, group_size=4, sampling.steps=3, evaluation.steps=2, evaluation.samples=2]
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
# # 2. What does a text-to-image model learn from a reward, and what does it lose?
# *About 4 minutes on two CPU cores; no accelerator. Half an hour to read. Read notebook 1 first.*
#
# We train one small FLUX *pipeline* (text encoder, flow model and image decoder) four times, with GRPO, RAS, CRT and BPGO. The initial weights, the prompts and the noise are the same each time. The training reward is a small CLIP, a network that says how well an image fits a text. Two judges are not used in training: a second reward model, which is **held out**, and an **oracle**. The oracle is a program that reads shapes, colours, sizes and places back from an image, so it knows what is right.
#
# Afterwards you can train these objectives on your own diffusers pipeline, distinguish learning from gaming the reward, and say how little one seed decides.
#
# First we look at the model before training. It learned from partly wrong captions, so it makes mistakes. Here are four images each of a clear and an ambiguous prompt, with reward `R` and group advantage `A` (equation 1):

# %% tags=["parameters"]
preset: str = "t2i-tiny"  # settings file, or the name of one in bpgo/presets
objectives: list = ["grpo", "ras", "crt", "bpgo"]  # or teleboost, see notebook 6
seeds: list = [0]  # each objective is trained once per seed
iterations: int = 20  # rollouts, each followed by updates
evaluate_every: int = 10  # iterations between evaluations
checkpoint: str = ""  # pipeline to start from, a folder or hub id; if empty, the preset's
overrides: list = []  # further settings, written as for bpgo train
output: str = ""  # folder for the record and the runs; if empty, a temporary one
processes: int = 1  # processes that train one run together, one per GPU
interactive: bool = False  # a slider through the prompts, in Jupyter

# %%
import matplotlib.pyplot as plt

from bpgo import objective
from bpgo.analysis import figures, runs
from reproduce.analysis.study import Study

study = Study(
    preset, objectives, seeds, iterations, evaluate_every, checkpoint, overrides, output, processes
)
study.preflight()  # checks files, disk and memory, and says what to do if something is missing

# %%
start = study.start()  # a bpgo.Trainer with the settings of the preset
before = runs.before_training(start)
figures.image_groups(before, [before.clear, before.vague])
plt.show()  # alt: Four images each of a clear and an ambiguous prompt, with reward and advantage below each.

# %% [markdown]
# Training pushes the lower row as hard as the upper one, although the rewards of the lower row hardly differ. (We picked prompts that show this.)
#
# ## Train
# Each iteration draws 8 prompts and 12 images of each by noisy steps, as in notebook 0. This is a *rollout*. It then scores the images and takes two small steps along equation 5. `study.train()` does what `bpgo train` does, for each objective and seed. If `output` is set, a notebook that was stopped resumes where it was.

# %%
logs, after = study.train()  # Trainer.train() for each objective and seed
print(len(seeds) * len(objectives), "runs of", iterations, "iterations")

# %% [markdown]
# ## Before and after
# **Before you look:** the noise is the same across a row. Which rows will change? The clear ones, where the model makes mistakes, or the ambiguous ones, where it can hardly make any?

# %%
columns, prompts = {"before": before.scores} | after, before.prompts
if not interactive:
    study.keep(
        figures.image_samples(columns, prompts, before.examples(4)), "samples"
    )  # alt: Samples of five prompts, from clear to ambiguous, before training and after each of four objectives.

# %% [markdown]
# `R` is the mean reward of the four images. `right` is the share of images that show everything the prompt says. All rows change, because all prompts share the weights of the model. Where `R` rises and `right` falls, suspect gaming. But four images prove nothing. For a slider through all prompts, set `interactive = True`.

# %% tags=["nbval-skip"]
if interactive:
    from ipywidgets import interact

    order = before.order.tolist()  # from clear to ambiguous
    interact(
        lambda rank: figures.image_samples(columns, prompts, [order[rank]]) and None,
        rank=(0, len(order) - 1),
    )

# %% [markdown]
# ## Learning or gaming?
# **Before you look:** what would gaming the reward look like in these curves?

# %%
study.keep(
    figures.curves(logs), "curves"
)  # alt: Curves of training reward, held-out reward and oracle accuracy by iteration, one line per objective.

# %% [markdown]
# In the left panel, all objectives see the same prompts at the same iteration. So the curves (means over a tenth of the run) share their ups and downs, and you should compare them with each other. Gaming shows as a reward that rises while a judge stays flat or falls. Here the held-out reward rises too, and accuracy rises less clearly.
#
# ## Where is it learned?
# The level of a prompt is the share of attributes that it names. Level 1 leaves nothing open, and level 0 is "a shape". **Diversity** says how much the images of one prompt differ in what it leaves open. It is 1 for the world's own images and 0 if all images are alike. At level 1 nothing is open, so it is not defined. Levels are rounded to quarters, because a few prompts could name five attributes.
#
# **Before you look:** GRPO pushes as hard on noise as on signal. At which levels could that do harm, and which metric would show it?

# %%
first, parts = runs.outcome(logs, before.bits)  # metric -> (seeds, prompts), before and after
figures.by_level(first, parts, before.level)
plt.show()  # alt: Accuracy and diversity by level, before training and after each objective.

# %% [markdown]
# At level 0 nearly every image was right from the start. Accuracy can hardly fall there, but diversity can. Here it falls at other levels too. Whether it falls by more than chance is answered below.
#
# ## Whom does RAS trust?
# Equation 2 weights a group by its mean reward, compared with the prior. In notebook 1 the prior was a fixed number. Here it is a running mean of all rewards so far. The left panel shows the weights of training: the line is the mean over groups, and the band is their range. The right panel shows the weight of each evaluation prompt before training, with the mean of all rewards as prior. A dot is darker if more of its images are right.
#
# **Before you look:** RAS is meant to trust clear prompts. Will its weight follow the level, or something else?

# %%
o, rewards, level = start.config.objective, before.rewards, before.level
k = objective.sharpness(rewards, o.k, o.kappa)
weights = objective.ras_weights(rewards, rewards.mean(), o.alpha, k).numpy()
accuracy = first["accuracy"][0] if "accuracy" in first else None
figures.weights(logs, weights, level, accuracy)
plt.show()  # alt: Left: weights of RAS during training, mean and range. Right: the weight of each evaluation prompt by its level.
print(runs.weight_correlations(weights, level=level, accuracy=accuracy))

# %% [markdown]
# It follows the level to some degree. But a prompt is trusted for a high mean reward, whatever its cause. (GRPO and CRT have no weights.) The smallest weights go to prompts that the model gets *wrong*, including clear ones. So the weight mixes clarity with what the model can do.
#
# ## What is it worth?
# Each number below is a paired difference on the same prompts and noise, with its 95 % t interval. An interval that contains 0 does not show a difference. `accuracy` is the share of images that are right. `accuracy_specified` is the same for prompts that leave nothing open. `distance` is how far an image is from the nearest clean drawing (lower is better).

# %%
print(runs.comparison(parts, first), end="\n\n")
spent, table = runs.seconds(logs)
print(table)

# %% [markdown]
# So what did 20 iterations gain and lose? Both rewards rise, the one of training and the held-out one. Accuracy does not change measurably. The images move away from those of the world (`distance`). Diversity falls clearly only with RAS.
#
# But with one seed the interval covers other *prompts*, not another *training*. Trainings differ, so **one seed decides nothing**. `make reproduce ARGS="--profile foundations"` trains three seeds for 100 iterations and gives intervals over seeds (`reproduce/results/foundations/`). Rely on those. The times are from runs made one after the other, on a machine that was not equally busy, so their differences mean nothing. Run side by side (`bpgo bench`), the objectives cost the same, because all share one forward pass.

# %% tags=["nbval-check-output"]
study.record("text_to_image", first, parts, spent)

# %% [markdown]
# ## Exercises
# **1.** Make RAS ten times as sharp: `kappa = 10`. What happens to the weights of the groups before training, and to those of clear prompts with low rewards?

# %% tags=["solution", "hide-cell"]
import torch

k10 = objective.k_from_kappa(10.0, rewards)
sharp = objective.ras_weights(rewards, rewards.mean(), o.alpha, k10)
quartiles = sharp.quantile(torch.linspace(0, 1, 5))
print("weights, minimum, quartiles and maximum:", *(f"{w:.2f}" for w in quartiles))
clear = torch.from_numpy(level == 1)
low = clear & (rewards.mean(1) < rewards.mean())
print(f"clear prompts with low rewards: {low.sum()} of {clear.sum()}", end=", ")
print(f"mean weight {sharp[low].mean():.2f}")
# Half of the weights are near the ends of their range. Groups below the prior count a third of those above it,
# whether they are vague, or clear and badly drawn.

# %% [markdown]
# **2.** Which settings of RAS and CRT turn BPGO into plain GRPO? Check it on the advantages.

# %% tags=["solution", "hide-cell"]
bpgo = objective.bpgo(rewards, rewards.mean(), alpha=0.0, k=k, lam=o.lam, beta=0.0)
grpo = objective.grpo(rewards, rewards.mean())
torch.testing.assert_close(bpgo.effective, grpo.effective)
print("alpha = 0 and beta = 0: the same advantages")

# %% [markdown]
# ## Summary
# - A rising training reward is not evidence by itself. Judges that training never saw are.
# - The mean hides where things happen. Look at accuracy *and* diversity by level.
# - RAS trusts groups with a high mean reward, for whatever reason it is high.
# - Differences need several seeds.
#
# **Vary** `seeds`, `iterations` (100 in the preset), `objective.kappa`, `objective.lam` and `prior.name`. **Where it breaks:** shapes dissolve while rewards rise (golden, above), more so in a long run, and diversity falls. Watch `distance`. With another scale of reward, `lam` means something else. This model is tiny, and what holds here need not hold for FLUX.1-dev.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): group advantage (1), RAS (2, 3), CRT (4), objective (5).
# - [Flow-GRPO](https://arxiv.org/abs/2505.05470): the stochastic sampler. [DanceGRPO](https://arxiv.org/abs/2505.07818): GRPO for images and video.
