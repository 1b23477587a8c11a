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
# *Ten seconds on one CPU core; fifteen minutes to read. Nothing is assumed but some Python and torch.*
#
# A generator of pictures learns from examples. It can also learn from *scores*: let it draw, have each drawing scored, make good drawings more likely. This page does that from nothing, in bare torch, with a generator so small that you can see all it does: its "picture" is a single point in the plane. The ideas are those that train FLUX, a generator of pictures, and Wan, one of videos.
#
# Afterwards you can say what a reward, a group and an advantage are, write one iteration of GRPO, and see how a slight error of the score ruins a prompt that leaves something open.
#
# The first picture shows our generator before it has seen a score, 300 drawings of each prompt, a dot each. Asked for "upper left", it is right in about six of ten cases. The fifth prompt, "anywhere", leaves the corner open: every corner is right.

# %% tags=["parameters"]
seed: int = 0  # of everything that is drawn at random
iterations: int = 60  # of learning from scores
group_size: int = 16  # drawings of one prompt that are compared
taste: float = 0.1  # how much the score likes things on the right, where the prompt does not care
output: str = ""  # folder for the record; empty: show it only

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

from bpgo.analysis import plots

torch.manual_seed(seed)
prompts = ["upper left", "upper right", "lower left", "lower right", "anywhere"]
corners = torch.tensor([[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
network = nn.Sequential(
    nn.Linear(2 + 1 + 5, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)
)


def velocity(x, sigma, prompt):  # points (B, 2), a noise level, numbers of prompts (B,) -> (B, 2)
    return network(
        torch.cat([x, sigma.expand(len(x), 1), nn.functional.one_hot(prompt, 5).float()], 1)
    )


optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
for _ in range(1500):
    prompt = torch.randint(5, (256,))
    careless = (prompt == 4) | (torch.rand(256) < 0.5)  # half of its examples sit in any corner
    where = torch.where(
        careless, torch.randint(4, (256,)), prompt.clamp_max(3)
    )  # "anywhere", 4, is always careless
    point = corners[where] + 0.2 * torch.randn(256, 2)
    noise, sigma = torch.randn_like(point), torch.rand(256, 1)
    error = velocity((1 - sigma) * point + sigma * noise, sigma, prompt) - (noise - point)
    optimiser.zero_grad(), error.square().mean().backward(), optimiser.step()

# %%
from itertools import pairwise

sigmas = torch.linspace(1, 0, 11)  # ten steps from pure noise, 1, to a drawing, 0


@torch.no_grad()
def draw(prompt):
    x = torch.randn(len(prompt), 2)
    for now, then in pairwise(sigmas):
        x = x + velocity(x, now, prompt) * (then - now)
    return x


def show(axes, drawings, title):
    for ax, points, name in zip(axes, drawings.view(5, -1, 2), prompts, strict=True):
        ax.scatter(*points.T, s=3, color="black")
        ax.set(xlim=(-2, 2), ylim=(-2, 2), xticks=[-1, 1], yticks=[-1, 1], aspect="equal")
        plots.labelled(ax, f'{title}: "{name}"')


asked = torch.arange(5).repeat_interleave(300)
before = draw(asked)
figure, axes = plots.new_figure(1, 5, (10, 2.3))
show(axes[0], before, "before")
plt.show()  # alt: Five panels of dots, one a prompt. The four clear prompts crowd at their corner, but also at the others; 'anywhere' fills all four.

# %% [markdown]
# ## A flow
# Our generator is a **flow model**, as FLUX and Wan are. In training, a point $x_0$ was mixed with noise $\varepsilon$ at a level $\sigma$ from 0 to 1, $x_\sigma = (1-\sigma)\,x_0 + \sigma\,\varepsilon$, and a network learned the **velocity** $v = \varepsilon - x_0$, the direction from the point to the noise. To draw, start from noise and walk against it, step by step, until $\sigma = 0$.
#
# ## A reward
# The score of a drawing is its **reward**, higher is better. Ours is near 1 at the corner that was asked for, about .3 at its neighbours and .1 across. For "anywhere" all corners should count the same, but this score has a **taste**: it adds a tenth of the horizontal position. Real reward models have many such tastes.
#
# ## A group
# A reward by itself says little: is 0.6 good for this prompt? So draw several times for one prompt, a **group**, and compare. The **advantage** is the reward less the group's mean, over the group's standard deviation (equation 1 of the BPGO paper). Subtracting the mean: "good" becomes "better than usual for this prompt". Dividing by the spread: prompts whose rewards have different scales count equally. That is also its flaw, as you will see.
#
# **Before you run:** the rewards of "anywhere" will differ much less than the others. How large will its advantages be?


# %%
def reward(x, prompt):  # points (B, 2), prompts (B,) -> (B,)
    closeness = torch.exp(
        -0.3 * (x[:, None] - corners).square().sum(-1)
    )  # to each of the four corners
    asked_for = closeness.gather(1, prompt.clamp_max(3)[:, None])[:, 0]
    return torch.where(prompt == 4, closeness.amax(1) + taste * x[:, 0], asked_for)


def group_advantages(r):  # equation 1: rewards (N, G), N prompts of G drawings each
    return (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-8)


group = torch.arange(5).repeat_interleave(group_size)
rewards = reward(draw(group), group).view(5, -1)
figure, [[left, right]] = plots.new_figure(1, 2, (9, 2.8), sharey=True)
plots.strips(left, rewards, torch.ones_like(rewards).bool(), prompts)
plots.strips(right, group_advantages(rewards), torch.ones_like(rewards).bool(), prompts)
plots.labelled(left, "a dot a drawing", "reward (no unit)")
plots.labelled(right, "the same, after equation 1", "advantage (standard deviations of the group)")
plt.show()  # alt: Rewards and advantages, a row of dots a prompt: the rewards of 'anywhere' lie close together, its advantages spread as wide as all others.

# %% [markdown]
# As large as everybody's. Dividing by the spread makes all groups equally loud, whether their differences mean anything or not. Keep that in mind.
#
# ## A gradient
# To make a drawing more likely we need its probability. The walk above has none: it is deterministic. So each step, of length $\Delta$, gets fresh noise of width $s\sqrt{\Delta}$. Alone that would spread the points too widely; but $x + (1-\sigma)v$ is the network's guess of the noise in $x$, and each step takes $\Delta\,s^2/2\sigma$ of it away, which makes room for the new (Flow-GRPO). Now a step is a draw from a normal distribution, and its log-probability is, up to a constant, minus the squared distance from the mean over twice the squared width. The **policy gradient** raises the log-probability of every step of a good drawing and lowers that of a bad one, in proportion to the advantage. That is all of group relative policy optimisation, **GRPO** (the *policy* is the generator).
#
# (The *ratio* is the step's probability now over that when it was drawn. Its value is 1 here, its gradient that of the log-probability. When one set of drawings serves several updates it leaves 1, and is clipped near it, so that no update goes too far.)


# %%
def noisy_step(v, x, now, then):  # mean (B, 2) and width of a step
    s = (
        0.7 * (now / (1 - now).clamp_min(0.03)).sqrt()
    )  # 0.7: how much noise, by choice; 0.03: no division by zero
    return x + (v + s**2 / (2 * now) * (x + (1 - now) * v)) * (then - now), s * (now - then).sqrt()


def iteration(optimiser):
    x, path = torch.randn(len(group), 2), []
    with torch.no_grad():  # draw, and keep every step
        for now, then in pairwise(sigmas):
            mean, width = noisy_step(velocity(x, now, group), x, now, then)
            x_next = mean + width * torch.randn_like(x)
            path.append((x, now, then, x_next))
            x = x_next
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
figure, axes = plots.new_figure(1, 5, (10, 2.3))
after = draw(asked)
show(axes[0], after, "after")
plt.show()  # alt: The five panels after training: one small crowd at each corner asked for, and for 'anywhere' a line, nearly all of it on the right.
figure, [[ax]] = plots.new_figure(1, 1, (6, 2.8))
smooth = curve.unfold(0, 2, 1).mean(2) if iterations < 10 else curve.unfold(0, 8, 1).mean(2)
for values, name, dashes in zip(smooth.T, prompts, ("-", "--", "-.", ":", "-"), strict=True):
    ax.plot(values, linestyle=dashes, color="0.6" if name == "anywhere" else "black", label=name)
ax.legend(frameon=False, fontsize=8)
plots.labelled(
    ax,
    "a point is the mean of that iteration and the next seven",
    "iteration",
    "mean reward of a group",
)
plt.show()  # alt: Mean reward of each of the five prompts against iterations: all rise.

# %% tags=["nbval-check-output"]
from bpgo.records import record


def found(
    drawings,
):  # share of drawings nearest to the corner asked for; of "anywhere", in the right half
    nearest = (drawings[:, None] - corners).square().sum(-1).argmin(1)
    return {
        "corner asked for": (nearest == asked)[asked < 4].float().mean().item(),
        "anywhere, right half": (drawings[asked == 4, 0] > 0).float().mean().item(),
    }


whole = record(
    "start_here",
    {"before": found(before), "after": found(after)},
    output,
    context={"seed": seed},
    rtol=0.1,
)

# %% [markdown]
# ## Summary
# - **GRPO**: draw a group, score it, turn scores into advantages within the group, raise the log-probability of what was above average.
# - It worked: the four clear prompts are right always, or nearly. They also lost their variety: points crowd together, since nothing rewards being different.
# - It also failed. "Anywhere" was right before; now it draws almost only on the right, a little beyond the corners, since the taste grows with the position, and partly between them, since a smooth walk cannot jump. A taste of 0.1 became a full-size gradient, because its group was divided by its own small spread. **The reward rose all the same.** Knowing which differences to trust is what the rest of this course is about: notebook 1 weighs groups (reliability-adaptive scaling, RAS) and sharpens rewards (contrastive reward transformation, CRT), notebook 2 trains a real FLUX pipeline.
#
# **Vary** `taste` (0, -0.1), `group_size`, `iterations`. **Where it breaks:** with `group_size` 2 an advantage is only a sign; with 600 iterations single points remain.
#
# ## Exercises
# **1.** Multiply all rewards by 10. What changes? First think, then compute the advantages of `rewards` and `10 * rewards`.

# %% tags=["solution", "hide-cell"]
print(
    "largest difference between advantages:",
    (group_advantages(rewards) - group_advantages(10 * rewards)).abs().max().item(),
)
# None: mean and standard deviation both grow tenfold. GRPO cannot see the scale of a reward.

# %% [markdown] tags=["exercise"]
# **2.** Suppose every drawing of "anywhere" scored 0.9, plus noise of 0.001. Would its advantages be smaller?

# %% tags=["solution", "hide-cell"]
honest = 0.9 + 0.001 * torch.randn(1, group_size)
print("size of the advantages:", group_advantages(honest).square().mean().sqrt().item())
# No: noise of any size is blown up to about one standard deviation (with G drawings, the root of (G - 1)/G). Over many iterations it averages out, a taste does not.

# %% [markdown] tags=["exercise"]
# **3.** How would you weigh a group, knowing all groups' rewards, so that "anywhere" cannot be ruined? Write down a rule before you open notebook 1.

# %% [markdown] tags=["solution", "hide-cell"]
# <details><summary>One answer</summary>
#
# Weigh each group by its spread over the usual spread of all groups, so that "anywhere" keeps its small differences small. (Dr. GRPO does this: it leaves the division by the standard deviation out.) It helps here, where a meaningless group has a small spread; it does not where noise spreads as widely as signal. The paper takes another sign of trust, a high group mean. Here "anywhere" has the highest of all, so it would be weighed up.
# </details>

# %% [markdown]
# ## References
# - Flow-GRPO, [arXiv 2505.05470](https://arxiv.org/abs/2505.05470): the noisy step. GRPO: DeepSeekMath, [arXiv 2402.03300](https://arxiv.org/abs/2402.03300).
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): advantage (1).
