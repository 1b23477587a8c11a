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
# A reward model is wrong in ways that nobody chose. Here it is made wrong on purpose, in eight ways, while the oracle keeps measuring the truth: noise on ambiguous prompts only, noise everywhere, heavy tails, the order turned round for a fifth of the samples, a liking for red, ten times the scale, an origin of -4, and saturation above the mean. Noise has twice the spread of the reward unless another level is named.
#
# Afterwards you can tell which wrong rewards each part of BPGO withstands, and which logged number gives each failure away.
#
# The first picture is the whole experiment on text-to-image: a row an objective, a column a corruption, in each cell the accuracy that training with the wrong reward leaves. The first column is the reward as it is. Darker is better.

# %% tags=["parameters"]
measure: str = "accuracy_specified"  # the primary measure; any other of the records
results: str = ""  # folder of the study's results; empty, those of the repository
output: str = ""  # folder for the record; empty, none is written

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from bpgo.analysis import evidence, plots, statistics
from bpgo.records import record

plan, records = evidence.read(results)
ended = evidence.so_far(plan, records, "failure_modes", "t2i", measure)
start, objectives = evidence.before(records, "t2i", measure), ["grpo", "ras", "crt", "bpgo"]
clean = evidence.so_far(plan, records, "ablation", "t2i", measure).loc[ended.index, objectives]
mean = evidence.grid(ended)[0].loc[objectives]
shown = pd.concat([clean.mean().rename("clean"), mean], axis=1)
figure, [[ax]] = plots.new_figure(size=(10, 2.6))
plots.heat_map(ax, shown.set_axis([name.replace("_", "\n") for name in shown], axis=1), np.zeros(shown.shape, bool))
plots.labelled(ax, f"t2i: {measure} after training, mean of {len(ended)} seeds (before training {start:.2f})", "", "objective").grid(False)
plt.show()  # alt: Heat map of accuracy after training: four objectives by nine kinds of reward, from clean to saturated.
print(evidence.state(plan, records))

# %% [markdown]
# **Before you read on:** multiplying all rewards by ten, or moving their origin, carries no information. Which objectives should not care at all (notebook 1)? Which column should hurt RAS least?
#
# ## Does RAS protect, does CRT amplify? (H12)
# For each corruption: how much of the accuracy is lost against the same seed with the clean reward, and how much more or less that is than GRPO loses. With two seeds an interval is wide; a difference must be large to stand out of it. Positive means: loses more than GRPO.

# %%
losses, rows = {}, []
for name in mean:
    lost = pd.DataFrame({o: clean[o] - ended[f"name={o} corruption={name}"] for o in objectives})
    losses[name] = lost
    for arm in objectives[1:]:
        more = statistics.paired(lost[arm].to_numpy(), lost["grpo"].to_numpy()).difference
        rows.append({"corruption": name, "objective": arm, "n": more.n, "lost": lost[arm].mean(), "GRPO lost": lost["grpo"].mean(),
                     "more than GRPO": more.mean, "from": more.low, "to": more.high})  # fmt: skip
table = pd.DataFrame(rows).set_index(["corruption", "objective"])
print(table.round(3).to_string())
pooled = {arm: statistics.paired(*(np.concatenate([lost[o] for lost in losses.values()]) for o in (arm, "grpo"))).difference for arm in objectives[1:]}
for arm, more in pooled.items():
    print(f"over all corruptions {arm} loses {more.mean:+.3f} ({more.low:+.3f} to {more.high:+.3f}, {more.n} pairs, not independent) more than GRPO")

# %% [markdown]
# ## How much noise is too much?
# Noise everywhere, from none to four times the reward's spread. Where a line falls to the dashed one, training teaches nothing about the truth any more.

# %%
levels, noisy = [0.0, 0.5, 1.0, 2.0, 4.0], evidence.so_far(plan, records, "failure_levels", "t2i", measure)
figure, [[ax]] = plots.new_figure(size=(6, 3))
for shift, arm in ((-0.03, "grpo"), (0.03, "bpgo")):
    columns = [clean[arm]] + [ended[f"name={arm} corruption=noise"] if x == 2 else noisy[f"name={arm} corruption=noise level={x}"] for x in levels[1:]]
    runs, style = np.array(columns, float), plots.method_style(arm)
    ax.plot(np.array(levels) + shift, runs, linestyle="none", marker=style["marker"], color=style["color"], alpha=0.4)
    ax.plot(levels, [np.nanmean(x) if np.isfinite(x).any() else np.nan for x in runs], color=style["color"], linestyle=style["linestyle"], label=style["label"])
ax.axhline(start, color="0.4", linestyle="--", label="before training")
ax.legend(frameon=False, fontsize=9)
plots.labelled(ax, "a mark a run, a line the mean", "noise, in standard deviations of the reward", f"{measure}\n(share of samples)")
plt.show()  # alt: Accuracy against the level of noise for GRPO and BPGO, a mark a run, dashed the untrained model.

# %% [markdown]
# ## The gradient under a wrong reward
# Does CRT make the gradient explode when the reward has outliers? Every group is divided by its own spread, so no advantage can exceed $(G-1)/\sqrt G$. What can happen is that a single sample carries its group. Left, the variation of the gradient's norm from iteration to iteration (its standard deviation over its mean). In the middle, the effective sample size, of $G = 12$: about 7.6 for normal rewards, 3.7 when it is one sample against the rest. Right, how RAS reacts: largest less smallest weight of an iteration, 0 without RAS and at most $2\alpha = 1$. The raw arms (H13) have no group normalisation: rewards and transformed rewards are divided by the spread of the whole batch.

# %%
logged = {name: evidence.curves(plan, records, "failure_modes", "t2i", name) for name in ("grad_norm", "effective_sample_size", "weight_max", "weight_min")}
for name, found in logged.items():
    found |= {f"name={o} corruption=clean": v[:2] for o, v in evidence.curves(plan, records, "ablation", "t2i", name).items()}
    found |= {arm.replace("none", "clean"): v for arm, v in evidence.curves(plan, records, "failure_normalisation", "t2i", name).items()}
arms = [f"name={o} corruption={c}" for c in ("clean", "heavy_tails") for o in objectives]
arms += [f"name={o} rule=raw corruption={c}" for c in ("clean", "heavy_tails") for o in ("crt", "bpgo")]
figure, axes = plots.new_figure(1, 3, (10, 3.4), sharey=True)
for y, arm in enumerate(arms):
    norm, size, largest, least = (found.get(arm, np.full((1, 2), np.nan)) for found in logged.values())
    for ax, runs in zip(axes[0], (norm.std(1) / norm.mean(1), size.mean(1), (largest - least).mean(1)), strict=True):
        ax.plot(runs, np.full(len(runs), y), "o", color="black")
words = [arm.replace("name=", "").replace("corruption=", "").replace("rule=", "").replace("_", " ") for arm in arms]
axes[0, 0].set_yticks(range(len(arms)), words)
axes[0, 0].set_ylim(len(arms) - 0.5, -0.5)
plots.labelled(axes[0, 0], "a dot a run", "variation of the gradient's norm (no unit)")
plots.labelled(axes[0, 1], "", "effective sample size (of 12)")
plots.labelled(axes[0, 2], "", "largest less smallest weight")
plt.show()  # alt: For each objective and reward: variation of the gradient's norm, effective sample size, and range of weights, a dot a run.

# %% [markdown]
# ## Three failures, provoked (H14)
# The paper names oscillation ($\lambda$ or $\beta$ too large), stagnation (a prior so high that every group is weighted down) and misalignment (a biased reward, amplified). Each is provoked here, next to a healthy run, to see which logged number shows it. The last column has what the trainer's guards said, with the iteration (`bpgo.guards`; `guards: false` silences them).

# %%
rows = []
for arm in ("healthy", "oscillation", "stagnation", "misalignment"):
    chosen = plan[(plan["experiment"] == "signatures") & (plan["arm"] == arm) & plan["run"].isin(list(records))]
    for run in chosen["run"]:
        r, curve = records[run], {name: np.array(records[run]["curves"][name]) for name in ("reward", "weight_mean", "effective_sample_size")}
        first, last = r["evaluations"][0], r["evaluations"][-1]
        said = ", ".join(f"{w['guard']} at {w['iteration']}" for w in r["warnings"]) if "warnings" in r else "older than the guards"
        rows.append({"failure": arm, "seed": r["seed"], "reward": last["reward"] - first["reward"], "held-out": last["held_out"] - first["held_out"],
                     "truth": last[measure] - first[measure], "jerk": statistics.oscillation(curve["reward"], 1.0),
                     "weight": curve["weight_mean"].mean(), "samples": curve["effective_sample_size"].mean(), "guards": said or "silent"})  # fmt: skip
signs = pd.DataFrame(rows)
print("changes from start to end (reward, held-out, truth), means over training (weight, effective samples):")
print(signs.round(3).to_string(index=False) if rows else "not run: make study ARGS='all signatures'")

# %% [markdown]
# ## Are the guards worth listening to?
# All recorded runs that had guards, by what was done to the reward. *Provoked* are runs with a right reward and settings made to fail. A guard that speaks in most clean runs is noise; one that is silent under a wrong reward is no help. Every number counts runs; `lost` ended below the accuracy that they started from. (Over-optimisation is looked for in evaluations, which here use the reward as it was before it was made wrong.)

# %%
rows, arms = [], plan["arm"]
provoked = set(plan["run"][arms.isin(["too_high", "oscillation", "stagnation"]) | arms.str.contains("rule=raw corruption=none")])
for r in records.values():
    if "warnings" in r:
        wrong = "provoked" if r["run"] in provoked else r["settings"].get("corruption") or "clean"
        names = {w["guard"] for w in r["warnings"]}
        lost = r["evaluations"][-1][measure] < r["evaluations"][0][measure]
        rows.append({"reward": wrong if wrong != "none" else "clean", "runs": 1, "lost": lost}
                    | {guard: guard in names for guard in ("stagnation", "concentration", "over-optimisation")})  # fmt: skip
heard = pd.DataFrame(rows).groupby("reward").sum() if rows else pd.DataFrame()
print(heard.astype(int).to_string() if rows else "no run recorded with guards yet")

# %% tags=["nbval-check-output"]
values = {"losses": {arm: {"more": m.mean, "low": m.low, "high": m.high, "pairs": m.n} for arm, m in pooled.items()}}
values["guards"] = {name: {k: int(v) for k, v in row.items()} for name, row in heard.iterrows()}
values["losses"] = {arm: {k: None if np.isnan(v) else v for k, v in row.items()} for arm, row in values["losses"].items()}
whole = record("failure_modes", values, output, context={"measure": measure, "runs": len(records)})

# %% [markdown]
# ## Exercises
# **1.** One sample against eleven others has an effective size of 3.7. Is that the least a group can have?

# %% tags=["solution", "hide-cell"]
import torch

from bpgo.objective import effective_sample_size

pair, one = torch.zeros(1, 12), torch.full((1, 12), -1 / 11)
pair[0, :2], one[0, 0] = torch.tensor([1.0, -1.0]), 1.0
print("one against all:", effective_sample_size(one).item(), " one against one:", effective_sample_size(pair).item())
# No: two outliers, one on each side, leave 2. Advantages sum to zero, so there are always at least two.

# %% [markdown]
# **2.** Move the origin of the rewards to -4. Whose advantages change? Compute them for one group.

# %% tags=["solution", "hide-cell"]
from bpgo.objective import OBJECTIVES

r = torch.tensor([[0.45, 0.5, 0.55, 0.6, 0.65, 0.7]])
for name in objectives:
    here, there = (OBJECTIVES[name](r + by, r.mean() + by, alpha=0.5, k=10.0, lam=5.0, beta=0.5).effective for by in (0.0, -4.0))
    print(f"{name:5} largest change {(here - there).abs().max():.4f}")
# None, or only by rounding: the prior moves along, and CRT's exp(R) then changes by a factor that the group's own spread divides out.
# With a prior that stays behind, RAS would weigh every group down and CRT would lose its step.

# %% [markdown]
# ## Summary
# - Scale and origin: GRPO and RAS with $\kappa$ do not see them; CRT does, because of $\exp(R)$ (notebook 1). The first picture shows whether that costs anything.
# - RAS weighs whole groups by how high their reward is. It can help against noise only where noisy groups have low means; a reward that is wrong and high is trusted more. That is the paper's misalignment.
# - The guards read only what every run logs. Over-optimisation needs a held-out reward: set `evaluation.held_out`, or nothing can see it.
#
# **Vary** `measure` (`held_out`, `diversity`, `accuracy`). **Where it breaks:** two seeds, text-to-image only, corruptions of known shape; real reward models fail in several of these ways at once. Cells that are missing say "not run": `make study` runs them.
#
# ## References
# - Bayesian Prior-Guided Optimization, [arXiv 2511.18919](https://arxiv.org/abs/2511.18919): RAS (2, 3), CRT (4), objective (5).
# - Gao, Schulman and Hilton, Scaling laws for reward model overoptimization, [arXiv 2210.10760](https://arxiv.org/abs/2210.10760).
