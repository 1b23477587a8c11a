# ---
# jupyter:
#   bpgo:
#     smallest: {iterations: 2}
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
# # 0. How can a score teach a generator?
# *Ten seconds on one CPU core; fifteen minutes to read. You need only some Python and some torch.*
#
# An image generator learns from examples. It can also learn from *scores*: let it draw, score every drawing, and make the good drawings more likely. This notebook builds that from nothing, in plain torch. The generator is so small that you can see everything it does, because its "image" is a single point in the plane. The same ideas train FLUX, which makes images, and Wan, which makes videos.
#
# Afterwards you can explain reward, group and advantage, and write one iteration of GRPO. You will also see how a small flaw in the score ruins a prompt that leaves something open.
#
# The first figure shows our generator before it has seen any score, with 300 drawings per prompt and one dot per drawing. Asked for "upper left", it is right in about six of ten cases. The fifth prompt, "anywhere", leaves the corner open, so every corner is right.

# %% tags=["parameters"]
seed: int = 0  # seed of all random numbers
iterations: int = 60  # iterations of learning from scores
group_size: int = 16  # drawings of one prompt that are compared
taste: float = 0.1  # how much the score prefers the right side where the prompt leaves it open
output: str = ""  # folder for the record; if empty, it is only shown

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import one_hot

from bpgo.analysis import plots

torch.manual_seed(seed)
prompts = ["upper left", "upper right", "lower left", "lower right", "anywhere"]
corners = torch.tensor([[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
sigmas = torch.linspace(1, 0, 11)  # ten steps from pure noise, 1, to a drawing, 0
layers = [nn.Linear(2 + 1 + 5, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)]
network = nn.Sequential(*layers)


def velocity(x, sigma, prompt):  # points (B, 2), a noise level, prompt numbers (B,) -> (B, 2)
    return network(torch.cat([x, sigma.expand(len(x), 1), one_hot(prompt, 5).float()], 1))


# %%
optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
for _ in range(1500):
    prompt = torch.randint(5, (256,))
    anywhere = (prompt == 4) | (torch.rand(256) < 0.5)  # half of the examples are in any corner
    corner = torch.where(anywhere, torch.randint(4, (256,)), prompt.clamp_max(3))
    point = corners[corner] + 0.2 * torch.randn(256, 2)
    noise, sigma = torch.randn_like(point), torch.rand(256, 1)
    error = velocity((1 - sigma) * point + sigma * noise, sigma, prompt) - (noise - point)
    optimiser.zero_grad(), error.square().mean().backward(), optimiser.step()


@torch.no_grad()
def draw(prompt):
    x = torch.randn(len(prompt), 2)
    for now, then in pairwise(sigmas):
        x = x + velocity(x, now, prompt) * (then - now)
    return x


asked = torch.arange(5).repeat_interleave(300)
before = draw(asked)
plots.point_panels(before.view(5, 300, 2), [f'before: "{name}"' for name in prompts])
plt.show()  # alt: Five panels of dots, one per prompt. The four clear prompts have most dots at their own corner and some at the others. The dots of 'anywhere' are at all four corners.

# %% [markdown]
# ## A flow
# Our generator is a **flow model**, like FLUX and Wan. In training, a point $x_0$ was mixed with noise $\varepsilon$ at a level $\sigma$ between 0 and 1: $x_\sigma = (1-\sigma)\,x_0 + \sigma\,\varepsilon$. The network learned the **velocity** $v = \varepsilon - x_0$, the direction from the point to the noise. To draw, start from noise and walk against the velocity, step by step, until $\sigma = 0$.
#
# ## A reward
# The score of a drawing is its **reward**. Higher is better. Our reward is near 1 at the requested corner, about 0.3 at the neighbouring corners and 0.1 at the opposite one. For "anywhere" all corners should count the same. But this score has a **taste**: it adds a tenth of the horizontal position. Real reward models have many such tastes.
#
# ## A group
# A single reward says little. Is 0.6 good for this prompt? So we draw several times for one prompt, which makes a **group**, and compare. The **advantage** is the reward minus the mean of the group, divided by the standard deviation of the group (equation 1 of the BPGO paper). Subtracting the mean turns "good" into "better than usual for this prompt". Dividing by the standard deviation makes prompts with different reward scales count equally. That is also its flaw, as you will see.
#
# **Before you run:** the rewards of "anywhere" differ much less than those of the other prompts. How large will its advantages be?


# %%
def reward(x, prompt):  # points (B, 2), prompts (B,) -> (B,)
    distances = (x[:, None] - corners).square().sum(-1)  # squared, to each of the four corners
    closeness = torch.exp(-0.3 * distances)
    at_corner = closeness.gather(1, prompt.clamp_max(3)[:, None])[:, 0]
    return torch.where(prompt == 4, closeness.amax(1) + taste * x[:, 0], at_corner)


def group_advantages(r):  # equation 1: rewards (N, G), N prompts with G drawings each
    return (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-8)


group = torch.arange(5).repeat_interleave(group_size)
rewards = reward(draw(group), group).view(5, -1)
advantages = group_advantages(rewards)
solid = torch.ones_like(rewards).bool()
figure, [[left, right]] = plots.new_figure(1, 2, (9, 2.8), sharey=True)
plots.strips(left, rewards, solid, prompts)
plots.strips(right, advantages, solid, prompts)
plots.label(left, "one dot per drawing", "reward (no unit)")
plots.label(right, "the same, after equation 1", "advantage (standard deviations of the group)")
plt.show()  # alt: Two strip charts with one row of dots per prompt. The rewards of 'anywhere' are close together. Its advantages are as far apart as those of all other prompts.

# %% [markdown]
# As large as all the others. Dividing by the standard deviation makes every group equally strong, whether its differences mean anything or not. Keep that in mind.
#
# ## A gradient
# To make a drawing more likely, we need its probability. The walk above has none, because it is deterministic. So we add fresh noise of width $s\sqrt{\Delta}$ to each step of length $\Delta$. By itself this would scatter the points too widely. But $x + (1-\sigma)v$ is the network's estimate of the noise in $x$. Each step subtracts $\Delta\,s^2/2\sigma$ times this estimate, which makes room for the new noise (Flow-GRPO).
#
# Now a step is a draw from a normal distribution. Up to a constant, its log-probability is minus the squared distance from the mean, divided by twice the squared width. The **policy gradient** raises the log-probability of every step of a good drawing and lowers that of a bad one, in proportion to the advantage. That is the whole of group relative policy optimisation, **GRPO**. The *policy* is the generator.
#
# (The *ratio* below is the probability of the step now, divided by its probability when it was drawn. Here it is 1, and its gradient is that of the log-probability. If one set of drawings serves several updates, the ratio moves away from 1. It is then clipped near 1, so that no update goes too far.)


# %%
def noisy_step(v, x, now, then):  # mean (B, 2) and width of a step
    s = 0.7 * (now / (1 - now).clamp_min(0.03)).sqrt()  # 0.7 is a choice; 0.03 avoids 1 / 0
    estimated_noise = x + (1 - now) * v
    mean = x + (v + s**2 / (2 * now) * estimated_noise) * (then - now)
    return mean, s * (now - then).sqrt()


def draw_path(prompt):  # noisy drawings (B, 2), and every step on the way to them
    x, path = torch.randn(len(prompt), 2), []
    for now, then in pairwise(sigmas):
        mean, width = noisy_step(velocity(x, now, prompt), x, now, then)
        x_next = mean + width * torch.randn_like(x)
        path.append((x, now, then, x_next))
        x = x_next
    return x, path


# %%
def iteration(optimiser):
    with torch.no_grad():
        x, path = draw_path(group)
    rewards = reward(x, group).view(5, -1)
    advantage, loss = group_advantages(rewards).flatten(), 0
    for x, now, then, x_next in path:
        mean, width = noisy_step(velocity(x, now, group), x, now, then)
        log_prob = -(x_next - mean).square().sum(1) / (2 * width**2)
        ratio = torch.exp(log_prob - log_prob.detach())
        loss = loss - (ratio * advantage).mean() / len(path)
    optimiser.zero_grad(), loss.backward(), optimiser.step()
    return rewards.mean(1)


# %% [markdown]
# ## Learning
# **Before you run:** what will the drawings of "lower left" look like after training? And those of "anywhere", where every corner was right from the start?

# %%
optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
curve = torch.stack([iteration(optimiser) for _ in range(iterations)])
after = draw(asked)
plots.point_panels(after.view(5, 300, 2), [f'after: "{name}"' for name in prompts])
plt.show()  # alt: The five panels after training. Each clear prompt has one small cluster at its corner. The dots of 'anywhere' form a line, nearly all of it on the right.
figure, [[ax]] = plots.new_figure(1, 1, (6, 2.8))
smooth = curve.unfold(0, 2 if iterations < 10 else 8, 1).mean(2)
for values, name, dashes in zip(smooth.T, prompts, ("-", "--", "-.", ":", "-"), strict=True):
    ax.plot(values, linestyle=dashes, color="0.6" if name == "anywhere" else "black", label=name)
ax.legend(frameon=False, fontsize=8)
title = "each point is the mean of that iteration and the next seven"
plots.label(ax, title, "iteration", "mean reward of a group")
plt.show()  # alt: Mean reward of each of the five prompts by iteration. All five rise.

# %% tags=["nbval-check-output"]
from bpgo.records import record


def shares(drawings):  # right corner, for clear prompts; right half, for "anywhere"
    nearest = (drawings[:, None] - corners).square().sum(-1).argmin(1)
    return {
        "corner asked for": (nearest == asked)[asked < 4].float().mean().item(),
        "anywhere, right half": (drawings[asked == 4, 0] > 0).float().mean().item(),
    }


values = {"before": shares(before), "after": shares(after)}
whole = record("start_here", values, output, context={"seed": seed}, rtol=0.1)

# %% [markdown]
# ## Summary
# - **GRPO** draws a group, scores it, turns the scores into advantages within the group, and raises the log-probability of the drawings that are above average.
# - It worked. The four clear prompts are now always right, or nearly always. They also lost their variety: their points crowd together, because nothing rewards being different.
# - It also failed. "Anywhere" was right before. Now it is drawn almost only on the right, a little beyond the corners, because the taste grows with the position. Some points lie between the corners, because a smooth walk cannot jump. A taste of 0.1 became a full-size gradient, because its group was divided by its own small standard deviation. **The reward rose all the same.** The rest of this course is about which differences to trust. Notebook 1 weights groups (reliability-adaptive scaling, RAS) and transforms rewards (contrastive reward transformation, CRT). Notebook 2 trains a real FLUX pipeline.
#
# **Vary** `taste` (0, -0.1), `group_size` and `iterations`. **Where it breaks:** with `group_size` 2 an advantage is only a sign. After 600 iterations only single points remain.
#
# ## Exercises
# **1.** Multiply all rewards by 10. What changes? Think first, then compute the advantages of `rewards` and of `10 * rewards`.

# %% tags=["solution", "hide-cell"]
change = group_advantages(rewards) - group_advantages(10 * rewards)
print("largest difference between advantages:", change.abs().max().item())
# Nothing changes: mean and standard deviation both grow tenfold. GRPO cannot see the scale of a reward.

# %% [markdown] tags=["exercise"]
# **2.** Suppose every drawing of "anywhere" scored 0.9, plus noise of 0.001. Would its advantages be smaller?

# %% tags=["solution", "hide-cell"]
honest = 0.9 + 0.001 * torch.randn(1, group_size)
print("size of the advantages:", group_advantages(honest).square().mean().sqrt().item())
# No. Noise of any size is scaled up to about one standard deviation (to the root of (G - 1) / G for G drawings).
# Over many iterations noise averages out. A taste does not.

# %% [markdown] tags=["exercise"]
# **3.** You know the rewards of all groups. How would you weight the groups, so that "anywhere" cannot be ruined? Write down a rule before you open notebook 1.

# %% [markdown] tags=["solution", "hide-cell"]
# <details><summary>One answer</summary>
#
# Weight each group by its standard deviation, divided by the usual standard deviation of all groups. Then the small differences of "anywhere" stay small. Dr. GRPO has this effect, because it leaves out the division by the standard deviation. It helps here, where the meaningless group has a small standard deviation. It does not help where noise varies as much as the signal. The paper uses another sign of trust, a high group mean. Here "anywhere" has the highest mean of all, so its weight would go up.
# </details>

# %% [markdown]
# ## References
# - Flow-GRPO, [arXiv 2505.05470](https://arxiv.org/abs/2505.05470): the noisy step. GRPO: DeepSeekMath, [arXiv 2402.03300](https://arxiv.org/abs/2402.03300).
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): advantage (1).
