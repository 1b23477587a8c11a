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
# # 9. How does BPGO fail when the reward does, and would you notice?
# *Seconds on one CPU core: the training was done before. Twenty minutes to read. Read notebooks 1 and 6 first.*
#
# A reward model is wrong in ways that nobody chose. Here it is made wrong on purpose, in eight ways, while the oracle keeps measuring the truth. Sizes are in standard deviations of the reward unless another unit is named:
#
# | name | what is done to the reward |
# |---|---|
# | noise, noise ambiguous | 2 of normal noise on every sample, or only where the prompt leaves something open |
# | heavy tails | .5 times Cauchy's noise, cut off at 25: mostly small, now and then huge |
# | flipped | a fifth of the samples have their order turned round |
# | biased | a liking for red: 2 for a picture of which a tenth is red |
# | stretched, shifted | ten times the scale; 4 taken off, in the reward's own unit |
# | saturated | cut off at the mean: the better half cannot be told apart |
#
# Afterwards you can tell which wrong rewards BPGO withstands, and which failures a logged number gives away.
#
# The first picture has seeds 0 and 1 on text-to-image: a row an objective, a column a corruption (`clean` is the reward as it is), in each cell the accuracy that training with it leaves.

# %% tags=["parameters"]
measure: str = "accuracy_specified"  # the primary measure; any other of the records
results: str = ""  # folder of the study's results; empty, those of the repository
output: str = ""  # folder for the record; empty, none is written

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from bpgo.analysis import plots, statistics
from bpgo.analysis.runs import oscillation, smooth
from bpgo.records import record
from reproduce.analysis import claims, evidence

plan, records = evidence.read(results)
ended = evidence.so_far(plan, records, "failure_modes", "t2i", measure)
start, objectives = evidence.before(records, "t2i", measure), ["grpo", "ras", "crt", "bpgo"]
clean = evidence.so_far(plan, records, "ablation", "t2i", measure).loc[ended.index, objectives]
mean = evidence.grid(ended)[0].loc[objectives]
shown = pd.concat([clean.mean().rename("clean"), mean], axis=1)
figure, [[ax]] = plots.new_figure(size=(10, 2.6))
plots.heat_map(
    ax,
    shown.set_axis([name.replace("_", "\n") for name in shown], axis=1),
    np.zeros(shown.shape, bool),
)
plots.labelled(
    ax,
    f"{measure} after training, darker is more; mean of up to {len(ended)} seeds (before training {start:.2f})",
    "reward",
    "objective",
).grid(False)
plt.show()  # alt: Heat map of accuracy after training: four objectives by nine kinds of reward, from clean to saturated.
print(evidence.state(plan, records))

# %% [markdown]
# **Before you read on:** ten times the scale, or another origin, changes nothing in what a reward says. Which objectives should not notice (notebook 1)? Against which noise could RAS help?
#
# ## Does RAS protect, does CRT amplify? (H12)
# H12 says: under noise on ambiguous prompts RAS loses less than GRPO; under noise CRT loses more than GRPO, and BPGO less than CRT. *Lost* is the accuracy of the clean run of the same seed less that of the run with the wrong reward: negative, if the wrong reward did better. Noise and heavy tails have five seeds (three were added when two had been read: *Changes* in `reproduce/PLAN.md`), the others two, whose interval is 12.7 standard errors wide on each side: so the seeds are shown too.

# %%
losses, rows, five = {}, [], evidence.so_far(plan, records, "failure_noise", "t2i", measure)
right = evidence.so_far(plan, records, "ablation", "t2i", measure)
for name in mean:
    made = five if f"name=grpo corruption={name}" in five else ended
    lost = pd.DataFrame(
        {o: right[o] - made[f"name={o} corruption={name}"] for o in objectives}
    ).loc[made.index]
    losses[name] = lost.loc[ended.index]
    for arm in objectives[1:]:
        more = statistics.bootstrap_mean((lost[arm] - lost["grpo"]).to_numpy())
        rows.append(
            {
                "corruption": name,
                "objective": arm,
                "n": more.n,
                "lost": lost[arm].mean(),
                "GRPO lost": lost["grpo"].mean(),
                "more than GRPO": statistics.said(more),
                "seed by seed": " ".join(f"{x:+.2f}" for x in (lost[arm] - lost["grpo"]).dropna()),
            }
        )
table = pd.DataFrame(rows).set_index(["corruption", "objective"])
print(table.round(3).to_string())
pooled = {
    arm: statistics.bootstrap_mean(
        np.mean([lost[arm] - lost["grpo"] for lost in losses.values()], axis=0)
    )
    for arm in objectives[1:]
}
for arm, more in pooled.items():
    print(
        f"over all corruptions, seeds 0 and 1, {arm} loses {statistics.said(more)} more than GRPO, n = {more.n} seeds"
    )
same = [
    losses[c][o].abs()
    for c, o in [("shifted", o) for o in objectives] + [("stretched", "grpo"), ("stretched", "ras")]
]
print(
    f"where an objective cannot notice the corruption, {measure} moved by {np.nanmean(same):.3f} on average, and {np.nanmax(same):.3f} at most"
)
print("\nby the plan's measure:", claims.told(claims.verdicts(plan, records, ["H12"])), sep="\n")

# %% [markdown]
# The line before the verdict says how far runs end apart by rounding alone. GRPO, and RAS with $\kappa$, see neither scale nor origin; CRT sees the scale, because of $\exp(R)$, but not the origin if its prior moves along (exercise 2). A smaller loss says nothing.
#
# The primary measure counts prompts that leave nothing open. What noise on ambiguous prompts does to those prompts shows in `measure = "diversity"`.

# %% [markdown]
# ## How much noise is too much?
# Noise everywhere, from none to four times the reward's spread. The lines say what each objective gains at each level, and where that ends: where the straight line through the mean gains of the seeds that have every level comes to 0. **Before you look:** at which level do you expect that, and for which objective first?

# %%
levels, noisy = (
    [0.0, 0.5, 1.0, 2.0, 4.0],
    evidence.so_far(plan, records, "failure_levels", "t2i", measure),
)


def gains_end(gains):  # the level of noise at which a gain comes to 0; inf if it never does
    i = next((i for i, gain in enumerate(gains) if gain <= 0), None)
    return (
        np.inf
        if i is None
        else levels[i] and np.interp(0, [gains[i], gains[i - 1]], [levels[i], levels[i - 1]])
    )


figure, [[ax]] = plots.new_figure(size=(6, 3.2))
for shift, arm in zip((-0.09, -0.03, 0.03, 0.09), objectives, strict=True):
    columns = [right[arm]] + [
        five[f"name={arm} corruption=noise"]
        if x == 2
        else noisy[f"name={arm} corruption=noise level={x}"]
        for x in levels[1:]
    ]
    made, style = [column.to_numpy(float) for column in columns], plots.method_style(arm)
    for x, column in zip(levels, made, strict=True):
        ax.plot(
            np.full(len(column), x + shift),
            column,
            linestyle="none",
            marker=style["marker"],
            color=style["color"],
            alpha=0.35,
            markersize=4,
        )
    gains = [statistics.bootstrap_mean(column - start) for column in made]
    ax.plot(
        np.array(levels) + shift,
        [start + g.mean for g in gains],
        color=style["color"],
        linestyle=style["linestyle"],
        label=style["label"],
    )
    common = (
        pd.concat(columns, axis=1).dropna() - start
    ).to_numpy()  # (seeds that have every level, levels)
    print(
        f"{style['label']:5s}",
        "; ".join(
            f"{x:g}: {statistics.said(g, '+.2f')}" for x, g in zip(levels, gains, strict=True)
        ),
        f"(n = {', '.join(str(g.n) for g in gains)})",
    )
    if len(common):
        print(
            f"      the mean gain ends at {gains_end(common.mean(0)):.1f}; seed by seed at",
            *(f"{gains_end(row):.1f}" for row in common),
        )
ax.axhline(start, color="0.4", linestyle="--", label="before training")
ax.legend(frameon=False, fontsize=8, ncols=2)
plots.labelled(
    ax,
    "a mark a run, a line the mean",
    "noise, in standard deviations of the reward",
    evidence.axis(measure),
)
plt.show()  # alt: Accuracy against the level of noise for four objectives, a mark a run, dashed the untrained model.

# %% [markdown]
# ## What would you see while it trains?
# Above, the reward in training, as it was made wrong (mean over a tenth of a run, own scale in each panel). Below, the right reward of the same runs at their evaluations. The loss is not drawn: advantages sum to zero, and so it stays near 0.
#
# **Before you look:** where can the upper row alone rise?

# %%
shown = ["clean", *mean]
given, judged = ({c: {} for c in shown} for _ in range(2))
for c in shown:
    for o in objectives:
        experiment, arm = (
            ("ablation", o) if c == "clean" else ("failure_modes", f"name={o} corruption={c}")
        )
        rows = plan[
            (plan["experiment"] == experiment)
            & (plan["task"] == "t2i")
            & (plan["arm"] == arm)
            & plan["seed"].isin(ended.index)
        ]
        done = [records[run] for run in rows["run"] if run in records]
        if done:
            curve = np.mean([r["curves"]["reward"] for r in done], axis=0)
            given[c][o] = smooth(np.arange(len(curve)), curve, max(1, len(curve) // 10))
            judged[c][o] = (
                [e["iteration"] for e in done[0]["evaluations"]],
                np.mean([[e["reward"] for e in r["evaluations"]] for r in done], axis=0),
            )
figure, axes = plots.new_figure(2, len(shown), (14, 3.8), sharex=True)
for column, c in zip(axes.T, shown, strict=True):
    for ax, curves in zip(column, (given[c], judged[c]), strict=True):
        for o, (at, values) in curves.items():
            ax.plot(
                at,
                values,
                markersize=4,
                markevery=10 if ax is column[0] else 1,
                **plots.method_style(o),
            )
    column[0].set_yticks([])
    column[1].sharey(axes[1, 0])
    plots.labelled(column[0], c.replace("_", " "), "", "reward in training" if c == "clean" else "")
    plots.labelled(column[1], "", "iteration", "right reward (no unit)" if c == "clean" else "")
figure.legend(
    *axes[0, 0].get_legend_handles_labels(),
    frameon=False,
    fontsize=8,
    loc="outside upper right",
    ncols=4,
)
plt.show()  # alt: For each kind of reward: the reward in training as it was made, and below it the right reward at evaluations, a line an objective.

# %% [markdown]
# ## The gradient under a wrong reward
# Does CRT make the gradient explode when the reward has outliers? Every group is divided by its own spread, so no advantage can exceed $(G-1)/\sqrt G$. What can happen is that a single sample carries its group. H13 says that without this division CRT leans on fewer samples, or the gradient's norm varies more. The raw arms, below the line, are without it: rewards and transformed rewards are divided by the spread of the whole batch.
#
# - Left: how much the gradient's norm varies from iteration to iteration (standard deviation over mean).
# - Next: the largest norm of a run, over the median of the clean GRPO runs. This would show an explosion.
# - Next: the *effective sample size*, $(\sum|A|)^2 / \sum A^2$ of a group's $G = 12$ advantages: how many samples carry it. Dotted: 7.6 for normal rewards, 3.7 for one sample against the rest.
# - Right, how RAS reacts: largest less smallest weight of an iteration, 0 without RAS and at most $2\alpha = 1$.

# %%
logged = {
    name: evidence.curves(plan, records, "failure_noise", "t2i", name)
    for name in ("grad_norm", "effective_sample_size", "weight_max", "weight_min")
}
for name, found in logged.items():
    found |= {
        f"name={o} corruption=clean": v
        for o, v in evidence.curves(plan, records, "ablation", "t2i", name).items()
    }
    found |= {
        arm.replace("none", "clean"): v
        for arm, v in evidence.curves(plan, records, "failure_normalisation", "t2i", name).items()
    }
arms = [f"name={o} corruption={c}" for c in ("clean", "heavy_tails") for o in objectives]
arms += [
    f"name={o} rule=raw corruption={c}" for c in ("clean", "heavy_tails") for o in ("crt", "bpgo")
]
figure, axes = plots.new_figure(1, 4, (12, 3.4), sharey=True)
usual = np.median(logged["grad_norm"].get("name=grpo corruption=clean", np.array([[np.nan]])))
for y, arm in enumerate(arms):
    norm, size, largest, least = (
        found.get(arm, np.full((1, 2), np.nan)) for found in logged.values()
    )
    jump = norm.max(1) / usual
    for ax, runs in zip(
        axes[0],
        (norm.std(1) / norm.mean(1), jump, size.mean(1), (largest - least).mean(1)),
        strict=True,
    ):
        ax.plot(runs, np.full(len(runs), y), "o", color="black", markersize=5, clip_on=False)
words = [
    arm.replace("name=", "").replace("corruption=", "").replace("rule=", "").replace("_", " ")
    for arm in arms
]
axes[0, 0].set_yticks(range(len(arms)), words)
axes[0, 0].set_ylim(len(arms) - 0.5, -0.5)
names = [
    "variation of\nthe gradient's norm",
    "largest norm /\nGRPO's usual one",
    "effective sample size\n(of 12)",
    "largest less\nsmallest weight",
]
for ax, name, limit in zip(axes[0], names, (None, None, 12, 1), strict=True):
    ax.axhline(len(arms) - 4.5, color="black", linewidth=1)
    ax.set_xlim(0, limit)
    plots.labelled(ax, "a dot a run" if ax is axes[0, 0] else "", name)
for x in (4 * 11 / 12, 24 / np.pi):
    axes[0, 2].axvline(x, color="black", linestyle=":")
plt.show()  # alt: For each objective and reward: variation of the gradient's norm, its largest value, effective sample size, and range of weights, a dot a run.
print(claims.told(claims.verdicts(plan, records, ["H13"])))

# %% [markdown]
# ## Three failures, provoked (H14)
# The paper names oscillation ($\lambda$ or $\beta$ too large), stagnation (a prior so high that every group is weighted down) and misalignment (a biased reward, amplified). The runs below were meant to provoke each: $\lambda = 100$ and $\beta = 8$; RAS with $\alpha = 1$, $\kappa = 3$ and a prior of 1.5; a liking for red of 4. H14 says that each shows in a logged number, in every run. `reward`, `held-out` and the measure are changes from start to end, evaluated with the right reward; `oscillation` is that of the reward in training, as it was made (second differences, in the reward's unit). The last column has what the trainer's guards said, with the iteration.
#
# **Before you look:** which of the three do you expect to see in the reward alone?

# %%
rows = []
for arm in ("healthy", "oscillation", "stagnation", "misalignment"):
    chosen = plan[
        (plan["experiment"] == "signatures")
        & (plan["arm"] == arm)
        & plan["run"].isin(list(records))
    ]
    for run in chosen["run"]:
        r, curve = (
            records[run],
            {
                name: np.array(records[run]["curves"][name])
                for name in ("reward", "weight_mean", "effective_sample_size")
            },
        )
        first, last = r["evaluations"][0], r["evaluations"][-1]
        said = (
            ", ".join(f"{w['guard']} at {w['iteration']}" for w in r["warnings"])
            if "warnings" in r
            else "older than the guards"
        )
        rows.append(
            {
                "failure": arm,
                "seed": r["seed"],
                "reward": last["reward"] - first["reward"],
                "held-out": last["held_out"] - first["held_out"],
                measure: last[measure] - first[measure],
                "oscillation": oscillation(curve["reward"], 1.0),
                "weight": curve["weight_mean"].mean(),
                "samples": curve["effective_sample_size"].mean(),
                "guards": said or "silent",
            }
        )
signs = pd.DataFrame(rows)
print(
    signs.round(3).to_string(index=False) if rows else "not run: make study ARGS='all signatures'"
)
print(claims.told(claims.verdicts(plan, records, ["H14"])))

# %% [markdown]
# ## Are the guards worth listening to?
# The trainer has three guards, each a warning by name (`bpgo.guards`; `guards: false` silences them):
#
# - **stagnation**: for ten iterations RAS has weighted every group down, by a tenth on average, or most groups had no two different rewards.
# - **concentration**: for ten iterations the effective sample size has been nearer to 3.7 than to 7.6 (for $G = 12$).
# - **over-optimisation**: a held-out reward has fallen by three standard errors since an earlier evaluation, while the trained one has risen.
#
# None watches for oscillation. Below, all recorded runs by what was done to them; `lost` ended below where they started. Over-optimisation of a *wrong* reward cannot be seen here, since these runs are evaluated with the right one.

# %%
rows, arms = [], plan["arm"]
kinds = dict(zip(plan["run"], arms, strict=True))
provoked = {
    run: arm.replace("_", " ")
    for run, arm in kinds.items()
    if arm in ("too_high", "oscillation", "stagnation")
}
provoked |= {run: "raw" for run, arm in kinds.items() if "rule=raw corruption=none" in arm}
for r in records.values():
    if "warnings" in r:
        wrong = provoked.get(r["run"]) or r["settings"].get("corruption") or "clean"
        names = {w["guard"] for w in r["warnings"]}
        lost = r["evaluations"][-1][measure] < r["evaluations"][0][measure]
        rows.append(
            {"runs of": wrong if wrong != "none" else "clean", "runs": 1, "lost": lost}
            | {
                guard: guard in names
                for guard in ("stagnation", "concentration", "over-optimisation")
            }
        )
heard = pd.DataFrame(rows).groupby("runs of").sum() if rows else pd.DataFrame()
print(heard.astype(int).to_string() if rows else "no run recorded with guards yet")
if rows:
    spoke = pd.DataFrame(rows).assign(
        any=lambda t: t[["stagnation", "concentration", "over-optimisation"]].any(axis=1)
    )
    print(
        f"guards spoke in {(spoke['any'] & spoke['lost']).sum()} of {spoke['lost'].sum()} runs that lost {measure}, "
        f"and in {(spoke['any'] & ~spoke['lost']).sum()} of {(~spoke['lost']).sum()} that did not"
    )

# %% tags=["nbval-check-output"]
values = {
    "losses": {
        arm: {"more": m.mean, "low": m.low, "high": m.high, "seeds": m.n}
        for arm, m in pooled.items()
    }
}
values["losses"] = {
    arm: {k: None if np.isnan(v) else v for k, v in row.items()}
    for arm, row in values["losses"].items()
}
whole = record("failure_modes", values, output, context={"measure": measure, "runs": len(records)})

# %% [markdown]
# ## Exercises
# **1.** One sample against eleven others has an effective size of 3.7. Is that the least a group can have?

# %% tags=["solution", "hide-cell"]
import torch

from bpgo.objective import effective_sample_size

pair, one = torch.zeros(1, 12), torch.full((1, 12), -1 / 11)
pair[0, :2], one[0, 0] = torch.tensor([1.0, -1.0]), 1.0
print(
    f"one against all: {effective_sample_size(one).item():.2f}, one against one: {effective_sample_size(pair).item():.2f}"
)
# No: two outliers, one on each side, leave 2. Advantages sum to zero, so there are always at least two.

# %% [markdown]
# **2.** Move the origin of the rewards to -4. Whose advantages change? Compute them for one group.

# %% tags=["solution", "hide-cell"]
from bpgo.objective import OBJECTIVES

r = torch.tensor([[0.45, 0.5, 0.55, 0.6, 0.65, 0.7]])
for name in objectives:
    here, there = (
        OBJECTIVES[name](r + by, r.mean() + by, alpha=0.5, k=10.0, lam=5.0, beta=0.5).effective
        for by in (0.0, -4.0)
    )
    print(f"{name:5} largest change {(here - there).abs().max():.4f}")
# None, or only by rounding: the prior moves along, and CRT's exp(R) then changes by a factor that the group's own spread divides out.
# With a prior that stays behind, RAS would weigh every group down and CRT would lose its step.

# %% [markdown]
# ## Summary
# - Runs that differ by rounding alone end apart, and by how much is the least that a loss must exceed.
# - RAS weighs whole groups by how high their reward is. It can help against noise only where noisy groups have low means; a reward that is wrong and high is trusted more. That is the paper's misalignment.
# - Which guard spoke, and where, the last table says, and its last line whether that meant a loss. None reads the truth: a reward that is merely wrong looks like any other. Over-optimisation needs a held-out reward: set `evaluation.held_out`, or nothing can see it.
#
# **Vary** `measure` (`held_out`, `diversity`, `accuracy`). **Where it breaks:** two seeds (three or five for noise, heavy tails and the provoked failures), text-to-image only; real reward models fail in several of these ways at once.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): RAS (2, 3), CRT (4), objective (5).
# - Gao, Schulman and Hilton, Scaling laws for reward model overoptimization, [arXiv 2210.10760](https://arxiv.org/abs/2210.10760).
