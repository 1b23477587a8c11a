"""The claims of reproduce/PLAN.md against the study's records: a finding and a verdict each, by the rules written there.

Thirteen of the claims, each with what refutes it, were written before any run; H14 before any run of its own, H15 and H16 before
their new seeds. How the rules are computed where they left room was fixed when part had been seen: see *Changes* there.

A claim "does not hold" where it is refuted as the plan defines it, which may be for want of evidence: an interval that holds 0. Claims that
ask whether settings are level (H6, H7, H9) can only be "not refuted": few seeds see large differences alone. Until all planned runs of a
claim are recorded, a verdict begins with "so far"; "too few yet" and "not run" say themselves. Differences count as found where the 95 %
interval leaves 0 out and the p-value, corrected within the claim's family, is below .05.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from bpgo.analysis.statistics import Interval, bootstrap_mean, holm, paired, said
from reproduce.analysis import ambiguity, evidence, failures, settings
from reproduce.analysis.evidence import PRIMARY

LEVEL = {"H6", "H7", "H9"}
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
    "H15": "BPGO beats GRPO, with ten seeds",
    "H16": "true reliability as weights beats GRPO, with ten seeds",
}


def verdicts(
    plan: pd.DataFrame, records: dict, names: Iterable[str] = tuple(CLAIMS)
) -> pd.DataFrame:
    """A row a claim (all, or these names) and task: claim, task, n (independent units behind the finding), finding, verdict."""
    rows = []
    for name in names:
        for task, experiments, answer in ASKED[name](plan, records):
            chosen = plan[plan["experiment"].isin(experiments) & (plan["task"] == task)]
            done, planned = (
                sum(run in records for run in set(chosen["run"])),
                chosen["run"].nunique(),
            )
            n, finding, holds = answer() if done else (0, "", None)
            verdict = ("not refuted" if name in LEVEL else "holds") if holds else "does not hold"
            if holds is None:
                finding, verdict = (
                    "",
                    f"too few yet ({done} of {planned} runs)" if done else "not run",
                )
            elif done < planned:
                verdict = f"so far: {verdict} ({done} of {planned} runs)"
            rows.append(
                {
                    "claim": name,
                    "says": CLAIMS[name],
                    "task": task,
                    "n": n * bool(finding),
                    "finding": finding,
                    "verdict": verdict,
                }
            )
    return pd.DataFrame(rows)


def told(table: pd.DataFrame) -> str:
    """`verdicts` as a list in Markdown, an item a claim: verdict, finding and n of each task that has runs, then the others."""
    items = []
    for (name, says), rows in table.groupby(["claim", "says"], sort=False):
        run = [r for r in rows.itertuples() if r.verdict != "not run"]
        known = [
            f"{r.task}: **{r.verdict}**" + f" ({r.finding}, n = {r.n})" * bool(r.finding)
            for r in run
        ]
        missing = [r.task for r in rows.itertuples() if r.verdict == "not run"]
        items.append(
            f"- {name}, *{says}*. "
            + "; ".join([*known, *["not run: " + ", ".join(missing)] * bool(missing)])
            + "."
        )
    return "\n".join(items)


Answer = tuple[
    int, str, bool | None
]  # n, finding, whether the claim holds (None: too little is there to say)
Asked = list[tuple[str, list[str], Callable[[], Answer]]]  # task, experiments, answer


def _tasks(plan: pd.DataFrame, experiment: str) -> list[str]:
    return list(dict.fromkeys(plan["task"][plan["experiment"] == experiment]))


def _above(i: Interval) -> bool | None:
    return None if np.isnan(i.low) else i.low > 0


def _less(ended: pd.DataFrame, arm: str, base: str) -> tuple[Interval, float]:
    """The difference of two arms over the seeds that both have, and its p-value, corrected over all arms of `ended`."""
    row = evidence.compare(ended, base).loc[arm]
    return Interval(
        row[f"- {base}"], row["from"], row["to"], int((ended[arm] - ended[base]).count())
    ), row["p"]


def _beats_grpo(plan: pd.DataFrame, records: dict) -> Asked:
    def answer(experiment: str, task: str) -> Answer:
        gain, p = _less(evidence.final(plan, records, experiment, task, PRIMARY), "bpgo", "grpo")
        return (
            gain.n,
            f"accuracy, BPGO less GRPO {said(gain)}",
            None if np.isnan(p) else bool(gain.low > 0 and p < 0.05),
        )

    pairs = [("ablation", task) for task in _tasks(plan, "ablation")] + [
        ("digits", task) for task in _tasks(plan, "digits")
    ]
    return [(task, [name], lambda name=name, task=task: answer(name, task)) for name, task in pairs]


def _ten_seeds(arm: str, earlier: str) -> Callable:
    """Asks of an arm of `trust` what was asked of it in the experiment `earlier`, and tells the seeds that were new beside, alone."""

    def asked(plan: pd.DataFrame, records: dict) -> Asked:
        def answer(task: str) -> Answer:
            ended = evidence.final(plan, records, "trust", task, PRIMARY)
            gain, p = _less(ended, arm, "grpo")
            seen = plan["seed"][
                (plan["experiment"] == earlier.format(task=task)) & (plan["task"] == task)
            ]
            new, _ = _less(ended[~ended.index.isin(seen)], arm, "grpo")
            told = (
                f"accuracy, less GRPO {said(gain)}"
                + f"; the {new.n} new seeds alone {said(new)}" * bool(new.n)
            )
            return gain.n, told, None if np.isnan(p) else bool(gain.low > 0 and p < 0.05)

        return [(task, ["trust"], lambda task=task: answer(task)) for task in _tasks(plan, "trust")]

    return asked


def _pace(plan: pd.DataFrame, records: dict) -> Asked:
    def answer(task: str) -> Answer:
        found = evidence.pace(plan, records, "ablation", task)
        if not {"grpo", "ras", "crt", "bpgo"} <= found.keys():
            return 0, "", None
        early, jerk = ({arm: pair[i].mean() for arm, pair in found.items()} for i in (0, 1))
        told = ", ".join(
            f"{arm.upper()} {early[arm]:.2f} / {jerk[arm]:.2f}"
            for arm in ("grpo", "ras", "crt", "bpgo")
        )
        holds = jerk["crt"] > max(jerk["bpgo"], jerk["ras"]) and early["ras"] < min(
            early["crt"], early["bpgo"]
        )
        return (
            min(len(pair[0]) for pair in found.values()),
            f"means, early rise / oscillation: {told}",
            bool(holds),
        )

    return [
        (task, ["ablation"], lambda task=task: answer(task)) for task in _tasks(plan, "ablation")
    ]


def _gaming(plan: pd.DataFrame, records: dict) -> Asked:
    def at_level(
        run: dict, level: float, name: str
    ) -> float:  # where the line through evaluations first meets it, else at the end
        reward, value = (np.array([e[key] for e in run["evaluations"]]) for key in ("reward", name))
        meets = np.flatnonzero(
            (np.minimum(reward[:-1], reward[1:]) <= level)
            & (level <= np.maximum(reward[:-1], reward[1:]))
        )
        if not meets.size:
            return float(value[-1])
        i = meets[0]
        return float(
            value[i]
            + (value[i + 1] - value[i]) * (level - reward[i]) / ((reward[i + 1] - reward[i]) or 1.0)
        )

    def answer(task: str) -> Answer:
        rows = plan[(plan["experiment"] == "ablation") & (plan["task"] == task)].pivot(
            index="seed", columns="arm", values="run"
        )
        both = [
            (records[a], records[b])
            for a, b in zip(rows["bpgo"], rows["grpo"], strict=True)
            if a in records and b in records
        ]
        ends, gains = [grpo["evaluations"][-1] for _, grpo in both], []
        for name in ("held_out", "accuracy"):
            pairs = [
                [at_level(bpgo, end["reward"], name), end[name]]
                for (bpgo, _), end in zip(both, ends, strict=True)
            ]
            gains.append(paired(*np.array(pairs).reshape(-1, 2).T))
        reached = sum(
            max(e["reward"] for e in bpgo["evaluations"]) >= end["reward"]
            for (bpgo, _), end in zip(both, ends, strict=True)
        )
        told = ", ".join(
            f"{name} {said(gain.difference)}"
            for name, gain in zip(("held-out reward", "accuracy"), gains, strict=True)
        )
        told += f"; BPGO reaches that reward in {reached} of {len(both)} pairs, in the others its end is taken"
        p = holm(np.array([gain.p for gain in gains]))
        holds = (
            None
            if np.isnan(p).any()
            else any(
                gain.difference.low > 0 and at < 0.05 for gain, at in zip(gains, p, strict=True)
            )
        )
        return len(both), f"BPGO less GRPO at GRPO's last reward: {told}", holds

    return [
        (task, ["ablation"], lambda task=task: answer(task)) for task in _tasks(plan, "ablation")
    ]


def _mix(plan: pd.DataFrame, records: dict) -> Asked:
    def answer() -> Answer:
        ended = evidence.final(plan, records, "mix", "t2i", PRIMARY)
        shares = [float(arm.rpartition("=")[2]) for arm in ended if "name=bpgo" in arm]
        gains = np.array(
            [ended[f"name=bpgo mix={x}"] - ended[f"name=grpo mix={x}"] for x in shares]
        ).T  # (seeds, shares)
        slopes = [np.polyfit(shares, row, 1)[0] for row in gains if np.isfinite(row).all()]
        slope = bootstrap_mean(np.array(slopes))
        return slope.n, f"slope of the gain over the share {said(slope)}", _above(slope)

    return [("t2i", ["mix"], answer)]


def _signal(plan: pd.DataFrame, records: dict) -> Asked:
    def answer(task: str) -> Answer:
        found = ambiguity.reliability(
            ambiguity.groups(plan[plan["task"] == task], records), ambiguity.DEVIATIONS
        )
        found = found[found["groups"] == "all"].sort_values("rho")
        ends = [
            (f"{r.signal}, {ambiguity.STAGES[r.stage]}", Interval(r.rho, r.low, r.high, r.n))
            for r in found.iloc[[0, -1]].itertuples()
        ]
        told = "rank correlation with true reliability from " + " to ".join(
            f"{said(i, '+.2f')} ({name})" for name, i in ends
        )
        clear = (found["low"] > 0) & (found["auroc_low"] > 0.5)
        told += f"; above 0, and AUROC above .5, in {clear.sum()} of {len(found)} cases of a prior and a stage"
        return int(found["n"].min()), told, bool(clear.all())

    return [
        (task, ["ambiguity"], lambda task=task: answer(task)) for task in _tasks(plan, "ambiguity")
    ]


def _alpha(plan: pd.DataFrame, records: dict) -> Asked:
    arms = [
        ("t2i", "alpha_kappa", "alpha=0.5 kappa=1.0"),
        *((task, "alpha_video", "alpha=0.5") for task in _tasks(plan, "alpha_video")),
    ]
    return [
        (task, [name], lambda at=(name, task, arm): settings.alpha(plan, records, *at))
        for task, name, arm in arms
    ]


def _priors(
    arm: str,
    base: str | None,
    holds: Callable[[Interval, float], bool],
    what: str,
    beside: Callable | None = None,
) -> Callable:
    """Asks how an arm of priors_* compares with the arm `base` (None: the task's own prior), p corrected over all arms.

    beside: (table of runs, task) -> (words, column), a second comparison that is told and does not decide.
    """

    def asked(plan: pd.DataFrame, records: dict) -> Asked:
        def answer(task: str) -> Answer:
            ended = evidence.final(plan, records, f"priors_{task}", task, PRIMARY)
            ended = ended.assign(
                grpo=evidence.so_far(plan, records, "ablation", task, PRIMARY)["grpo"]
            )
            to = base or OWN_PRIOR[task]
            gain, p = _less(ended, arm, to)
            told = f"{what} {said(gain)}"
            if beside:
                words, column = beside(ended, task)
                told += f"; {words} {said(paired(ended[arm].to_numpy(float), column.to_numpy(float)).difference)}"
            return gain.n, told, None if np.isnan(p) else bool(holds(gain, p))

        tasks = [
            name.partition("_")[2]
            for name in dict.fromkeys(plan["experiment"])
            if name.startswith("priors_")
        ]
        return [(task, [f"priors_{task}"], lambda task=task: answer(task)) for task in tasks]

    return asked


def _less_own(ended: pd.DataFrame, task: str) -> tuple[str, pd.Series]:
    return "less the task's own prior", ended[OWN_PRIOR[task]]


def _less_others(ended: pd.DataFrame, task: str) -> tuple[str, pd.Series]:
    return "less the mean of the other priors", ended.drop(
        columns=["grpo", "ceiling", "too_high"]
    ).mean(axis=1, skipna=False)


def _on_text_to_image(experiment: str, answer: Callable[[pd.DataFrame, dict], Answer]) -> Callable:
    return lambda plan, records: [("t2i", [experiment], lambda: answer(plan, records))]


ASKED: dict[str, Callable[[pd.DataFrame, dict], Asked]] = {
    "H1": _beats_grpo,
    "H2": _pace,
    "H3": _gaming,
    "H4": _mix,
    "H5": _signal,
    "H6": _alpha,
    "H7": _on_text_to_image("lambda_beta", settings.lambda_beta),
    "H8": _on_text_to_image("size_alpha", settings.size_alpha),
    "H9": _priors(
        "empirical_bayes",
        None,
        lambda gain, p: gain.high >= 0 or p >= 0.05,
        "accuracy, less the task's own prior",
    ),
    "H10": _priors(
        "ceiling",
        "grpo",
        lambda gain, p: gain.low > 0 and p < 0.05,
        "accuracy, less GRPO",
        _less_own,
    ),
    "H11": _priors(
        "too_high",
        "running_mean",
        lambda gain, p: gain.high < 0 and p < 0.05,
        "accuracy, less the running mean",
        _less_others,
    ),
    "H12": _on_text_to_image("failure_noise", failures.noise),
    "H13": _on_text_to_image("failure_normalisation", failures.normalisation),
    "H14": _on_text_to_image("signatures", failures.signs),
    "H15": _ten_seeds("bpgo", "ablation"),
    "H16": _ten_seeds("ceiling", "priors_{task}"),
}
