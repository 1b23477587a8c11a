"""The claims of reproduce/PLAN.md against the study's records: a finding and a verdict each, by the rules written there before any run.

A verdict is "holds" or "does not hold" once all planned runs of a claim are recorded, "so far ..." until then, and "not run" without any.
"Does not hold" means refuted as the plan defines it, which may be for want of evidence: an interval that holds 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from . import ambiguity, evidence
from .runs import smooth
from .statistics import Interval, bootstrap_mean, level_with_best, oscillation, paired

PRIMARY = "accuracy_specified"
OWN_PRIOR = {"t2i": "running_mean", "t2v": "sft", "i2v": "first_frame"}
CLAIMS: dict[str, str] = {
    "H1": "BPGO beats GRPO",
    "H2": "RAS is slow and steady, CRT fast and restless, BPGO fast and steady",
    "H3": "at equal training reward BPGO has the higher held-out reward",
    "H4": "BPGO gains more, the more prompts are ambiguous",
    "H5": "a group above the prior is a reliable group",
    "H6": "alpha = .5 is level with the best",
    "H7": "lambda and beta have a wide range that works",
    "H8": "with fewer samples a smaller alpha is better",
    "H9": "one empirical-Bayes prior is level with the task's own",
    "H10": "true reliability as weights beats GRPO",
    "H11": "a prior set too high stops learning",
    "H12": "RAS protects from noise, CRT amplifies it",
    "H13": "without group normalisation CRT follows single samples",
    "H14": "each failure the paper names shows a sign",
}


def verdicts(plan: pd.DataFrame, records: dict, names: Iterable[str] = tuple(CLAIMS)) -> pd.DataFrame:
    """A row a claim (all, or these names) and task: claim, task, n (independent units behind the finding), finding, verdict."""
    rows = []
    for name in names:
        for task, experiments, answer in ASKED[name](plan, records):
            chosen = plan[plan["experiment"].isin(experiments) & (plan["task"] == task)]
            done, planned = sum(run in records for run in set(chosen["run"])), chosen["run"].nunique()
            n, finding, holds = answer() if done else (0, "", None)
            finding, verdict = "" if holds is None else finding, "not run" if holds is None else "holds" if holds else "does not hold"
            verdict = f"so far: {verdict} ({done} of {planned} runs)" if holds is not None and done < planned else verdict
            rows.append({"claim": name, "says": CLAIMS[name], "task": task, "n": n * bool(finding), "finding": finding, "verdict": verdict})
    return pd.DataFrame(rows)


def by_claim(table: pd.DataFrame) -> pd.DataFrame:
    """`verdicts`, a row a claim and a column a task, with what the README has room for: verdict and n."""
    cells = table.assign(cell=[f"{r.verdict}, n = {r.n}" if r.n else r.verdict for r in table.itertuples()])
    wide = cells.pivot(index=["claim", "says"], columns="task", values="cell").fillna("")
    return wide.loc[[(name, CLAIMS[name]) for name in ASKED]][list(dict.fromkeys(table["task"]))].reset_index()


def markdown(table: pd.DataFrame) -> str:
    """A table of `verdicts` or `by_claim` in Markdown."""
    rows = [[str(value or "-") for value in row] for row in table.to_numpy().tolist()]
    heads = [["", *table.columns[1:]], ["---"] * len(table.columns)]
    return "\n".join(f"| {' | '.join(row)} |" for row in heads + rows)


Answer = tuple[int, str, bool | None]  # n, finding, whether the claim holds (None: too little is there to say)
Asked = list[tuple[str, list[str], Callable[[], Answer]]]  # task, experiments, answer


def _tasks(plan: pd.DataFrame, experiment: str) -> list[str]:
    return list(dict.fromkeys(plan["task"][plan["experiment"] == experiment]))


def _said(i: Interval, form: str = "+.3f") -> str:
    return f"{i.mean:{form}} ({i.low:{form}} to {i.high:{form}})"


def _above(i: Interval) -> bool | None:
    return None if np.isnan(i.low) else i.low > 0


def _beats_grpo(plan: pd.DataFrame, records: dict) -> Asked:
    def answer(experiment: str, task: str) -> Answer:
        table = evidence.compare(evidence.final(plan, records, experiment, task, PRIMARY), "grpo").loc["bpgo"]
        gain = Interval(table["- grpo"], table["from"], table["to"], int(table["n"]))
        holds = None if np.isnan(gain.low) else bool(gain.low > 0 and table["p"] < 0.05)
        return gain.n, f"accuracy, BPGO less GRPO {_said(gain)}", holds

    pairs = [("ablation", task) for task in _tasks(plan, "ablation")] + [("digits", task) for task in _tasks(plan, "digits")]
    return [(task, [name], lambda name=name, task=task: answer(name, task)) for name, task in pairs]


def _pace(plan: pd.DataFrame, records: dict) -> Asked:
    def answer(task: str) -> Answer:
        logged = evidence.curves(plan, records, "ablation", task, "reward")
        if not {"grpo", "ras", "crt", "bpgo"} <= logged.keys():
            return 0, "", None
        width = logged["grpo"].shape[1] // 10
        soft = {arm: np.array([smooth(np.arange(len(run)), run, width)[1] for run in runs]) for arm, runs in logged.items()}
        rise = np.mean(soft["grpo"][:, -1] - soft["grpo"][:, 0])
        jerk = {arm: oscillation(runs, rise).mean() for arm, runs in logged.items()}
        early = {arm: np.mean(runs[:, runs.shape[1] // 2] - runs[:, 0]) / rise for arm, runs in soft.items()}
        told = ", ".join(f"{arm.upper()} {early[arm]:.2f} / {jerk[arm]:.2f}" for arm in ("grpo", "ras", "crt", "bpgo"))
        restless = jerk["crt"] > max(jerk["bpgo"], jerk["ras"]) and jerk["ras"] <= jerk["bpgo"]
        fast = early["ras"] < min(early["crt"], early["bpgo"])
        return min(map(len, logged.values())), f"early rise / oscillation: {told}", bool(restless and fast)

    return [(task, ["ablation"], lambda task=task: answer(task)) for task in _tasks(plan, "ablation")]


def _gaming(plan: pd.DataFrame, records: dict) -> Asked:
    def at_level(run: dict, level: float) -> float:
        reward, held_out = (np.array([e[name] for e in run["evaluations"]]) for name in ("reward", "held_out"))
        order = np.argsort(reward)
        return float(np.interp(level, reward[order], held_out[order]))

    def answer(task: str) -> Answer:
        rows = plan[(plan["experiment"] == "ablation") & (plan["task"] == task)].pivot(index="seed", columns="arm", values="run")
        both = [(records[a], records[b]) for a, b in zip(rows["bpgo"], rows["grpo"], strict=True) if a in records and b in records]
        levels = [min(run["evaluations"][-1]["reward"] for run in pair) for pair in both]
        found = np.array([[at_level(run, level) for run in pair] for pair, level in zip(both, levels, strict=True)]).reshape(-1, 2)
        gain = paired(found[:, 0], found[:, 1]).difference
        return gain.n, f"held-out reward, BPGO less GRPO {_said(gain)}", _above(gain)

    return [(task, ["ablation"], lambda task=task: answer(task)) for task in _tasks(plan, "ablation")]


def _mix(plan: pd.DataFrame, records: dict) -> Asked:
    def answer() -> Answer:
        ended = evidence.final(plan, records, "mix", "t2i", PRIMARY)
        shares = [float(arm.rpartition("=")[2]) for arm in ended if "name=bpgo" in arm]
        gains = np.array([ended[f"name=bpgo mix={x}"] - ended[f"name=grpo mix={x}"] for x in shares]).T  # (seeds, shares)
        slopes = [np.polyfit(shares, row, 1)[0] for row in gains if np.isfinite(row).all()]
        slope = bootstrap_mean(np.array(slopes))
        return slope.n, f"slope of the gain over the share {_said(slope)}", _above(slope)

    return [("t2i", ["mix"], answer)]


def _signal(plan: pd.DataFrame, records: dict) -> Asked:
    def answer(task: str) -> Answer:
        found = ambiguity.reliability(ambiguity.groups(plan[plan["task"] == task], records), ambiguity.DEVIATIONS)
        found = found[found["groups"] == "all"].sort_values("low")
        ends = [(f"{r.signal}, stage {r.stage}", Interval(r.rho, r.low, r.high, r.n)) for r in found.iloc[[0, -1]].itertuples()]
        told = "rank correlation with true reliability from " + " to ".join(f"{_said(i, '+.2f')} ({name})" for name, i in ends)
        clear = (found["low"] > 0) & (found["auroc_low"] > 0.5)
        told += f"; above 0, and AUROC above .5, in {clear.sum()} of {len(found)} cases of a prior and a stage"
        return int(found["n"].min()), told, bool(clear.all())

    return [(task, ["ambiguity"], lambda task=task: answer(task)) for task in _tasks(plan, "ambiguity")]


def _alpha(plan: pd.DataFrame, records: dict) -> Asked:
    def answer(experiment: str, task: str, mine: str) -> Answer:
        ended = evidence.final(plan, records, experiment, task, PRIMARY)
        level = dict(zip(ended, level_with_best(ended.to_numpy(float).T), strict=True))
        n, best = int(ended[mine].notna().sum()), ended.mean().idxmax()
        return n, f"alpha = .5 {ended[mine].mean():.3f}, best {best} {ended[best].mean():.3f}", bool(level[mine]) if n else None

    video = [(task, ["alpha_video"], lambda task=task: answer("alpha_video", task, "alpha=0.5")) for task in _tasks(plan, "alpha_video")]
    return [("t2i", ["alpha_kappa"], lambda: answer("alpha_kappa", "t2i", "alpha=0.5 kappa=1.0")), *video]


def _range(plan: pd.DataFrame, records: dict) -> Asked:
    def answer() -> Answer:
        ended = evidence.final(plan, records, "lambda_beta", "t2i", PRIMARY)
        level = level_with_best(ended.to_numpy(float).T)
        told = f"{level.sum()} of {len(level)} cells level with the best"
        n = int(ended.notna().sum().min())
        return n, told, bool(level.sum() >= len(level) / 2) if n else None

    return [("t2i", ["lambda_beta"], answer)]


def _size(plan: pd.DataFrame, records: dict) -> Asked:
    def answer() -> Answer:
        ended = evidence.final(plan, records, "size_alpha", "t2i", PRIMARY)
        mean, _ = evidence.grid(ended)
        if mean.isna().any(axis=None):
            return 0, "", None
        best = [float(x) for x in mean.idxmax(axis=1)]
        told = ", ".join(f"G = {size}: {x:g}" for size, x in zip(mean.index, best, strict=True))
        return int(ended.notna().sum().min()), f"best alpha by mean: {told}", best == sorted(best) and best[0] < best[-1]

    return [("t2i", ["size_alpha"], answer)]


def _priors(arm: str, base: str | None, holds: Callable[[Interval], bool | None], what: str) -> Callable:
    def asked(plan: pd.DataFrame, records: dict) -> Asked:
        def answer(task: str) -> Answer:
            ended = evidence.final(plan, records, f"priors_{task}", task, PRIMARY)
            other = ended[base or OWN_PRIOR[task]] if base != "grpo" else evidence.so_far(plan, records, "ablation", task, PRIMARY)["grpo"]
            gap = paired(*(column.reindex(ended.index).to_numpy(float) for column in (ended[arm], other))).difference
            return gap.n, f"{what} {_said(gap)}", None if np.isnan(gap.low) else holds(gap)

        tasks = [name.partition("_")[2] for name in dict.fromkeys(plan["experiment"]) if name.startswith("priors_")]
        return [(task, [f"priors_{task}"], lambda task=task: answer(task)) for task in tasks]

    return asked


def _noise(plan: pd.DataFrame, records: dict) -> Asked:
    def answer() -> Answer:
        ended = evidence.final(plan, records, "failure_modes", "t2i", PRIMARY)
        clean = evidence.so_far(plan, records, "ablation", "t2i", PRIMARY).reindex(ended.index)
        lost = {arm: np.concatenate([clean[arm] - ended[f"name={arm} corruption={c}"] for c in ("noise_ambiguous", "noise")])
                for arm in ("grpo", "ras", "crt")}  # fmt: skip
        ras, crt = (paired(lost[arm], lost["grpo"]).difference for arm in ("ras", "crt"))
        holds = None if np.isnan([ras.high, crt.low]).any() else bool(ras.high < 0 < crt.low)
        return ras.n, f"accuracy lost, less GRPO's: RAS {_said(ras)}, CRT {_said(crt)}", holds

    return [("t2i", ["failure_modes"], answer)]


def _normalisation(plan: pd.DataFrame, records: dict) -> Asked:
    def answer() -> Answer:
        names, found = ("failure_normalisation", "ablation", "failure_modes"), []
        raw, clean, wrong = (evidence.curves(plan, records, name, "t2i", "effective_sample_size") for name in names)
        for corruption, usual in (("none", clean.get("crt")), ("heavy_tails", wrong.get("name=crt corruption=heavy_tails"))):
            without = raw.get(f"name=crt rule=raw corruption={corruption}")
            if without is None or usual is None:
                return 0, "", None
            found.append((len(without), usual.mean(), without.mean()))
        told = "; ".join(f"{name}: {b:.1f} without, {a:.1f} with" for name, (_, a, b) in zip(("clean", "heavy tails"), found, strict=True))
        return min(n for n, *_ in found), f"effective samples of 12, {told}", all(b < 0.9 * a for _, a, b in found)

    return [("t2i", ["failure_normalisation"], answer)]


def _signs(plan: pd.DataFrame, records: dict) -> Asked:
    def answer() -> Answer:
        rows = plan[(plan["experiment"] == "signatures") & plan["run"].isin(list(records))]
        runs = {arm: [records[run] for run in part["run"]] for arm, part in rows.groupby("arm")}
        if len(runs) < 4 or any("warnings" not in run for part in runs.values() for run in part):
            return 0, "", None
        warned = {arm: [{w["guard"] for w in run["warnings"]} for run in part] for arm, part in runs.items()}
        jerk = {arm: [float(np.square(np.diff(run["curves"]["reward"], 2)).mean() ** 0.5) for run in part] for arm, part in runs.items()}
        seen = {arm: sum(guard in names for names in warned[arm]) for arm, guard in
                (("stagnation", "stagnation"), ("misalignment", "over-optimisation"))}  # fmt: skip
        false, n = sum(map(bool, warned["healthy"])), min(map(len, runs.values()))
        told = f"warned of stagnation {seen['stagnation']} of {n}, of misalignment {seen['misalignment']} of {n}, falsely {false}; "
        told += f"second differences of the reward {np.mean(jerk['oscillation']):.3f} if it oscillates, {np.mean(jerk['healthy']):.3f} else"
        return n, told, min(seen.values()) == n and not false and min(jerk["oscillation"]) > max(jerk["healthy"])

    return [("t2i", ["signatures"], answer)]


ASKED: dict[str, Callable[[pd.DataFrame, dict], Asked]] = {
    "H1": _beats_grpo, "H2": _pace, "H3": _gaming, "H4": _mix, "H5": _signal, "H6": _alpha, "H7": _range, "H8": _size,
    "H9": _priors("empirical_bayes", None, lambda gap: gap.high >= 0, "accuracy, less the task's own prior"),
    "H10": _priors("ceiling", "grpo", _above, "accuracy, less GRPO"),
    "H11": _priors("too_high", "running_mean", lambda gap: gap.high < 0, "accuracy, less the running mean"),
    "H12": _noise, "H13": _normalisation, "H14": _signs,
}  # fmt: skip
