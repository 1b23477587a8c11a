"""The claims of reproduce/PLAN.md against the study's records: a finding and a verdict for each.

Thirteen claims, with what refutes each, were written before the first run; H14 before its own runs;
H15 and H16 before their new seeds. Where the rules left room, how they are computed was fixed when
part of the results had been seen: see *Changes* in the plan.

A claim "does not hold" if it is refuted as the plan defines it, which may be for want of evidence:
an interval that contains 0. Claims that settings are level (H6, H7, H9) can only be "not refuted",
because few seeds can show only large differences. Until all planned runs of a claim are recorded,
its verdict starts with "so far", or is "too few yet" or "not run". A difference counts as found if
its 95 % interval excludes 0 and its p-value, corrected within the claim's family, is below .05.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pandas as pd

from reproduce.analysis import failures, gains, learning, settings
from reproduce.analysis.answers import UNKNOWN, Asked, in_each_task, on_text_to_image

LEVEL = {"H6", "H7", "H9"}  # claims that settings are level
CLAIMS: dict[str, str] = {
    "H1": "BPGO beats GRPO",
    "H2": "RAS is slow and steady, CRT fast and unsteady, BPGO fast and steady",
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
ASKED: dict[str, Callable[[pd.DataFrame, dict], Asked]] = {
    "H1": gains.over_grpo,
    "H2": in_each_task("ablation", learning.pace),
    "H3": in_each_task("ablation", learning.gaming),
    "H4": on_text_to_image("mix", learning.mix),
    "H5": in_each_task("ambiguity", learning.reliability),
    "H6": settings.alpha,
    "H7": on_text_to_image("lambda_beta", settings.lambda_beta),
    "H8": on_text_to_image("size_alpha", settings.size_alpha),
    "H9": gains.of_prior(
        "empirical_bayes",
        None,
        lambda gain, p: gain.high >= 0 or p >= 0.05,
        "accuracy, minus the task's own prior",
    ),
    "H10": gains.of_prior(
        "ceiling",
        "grpo",
        lambda gain, p: gain.low > 0 and p < 0.05,
        "accuracy, minus GRPO",
        gains.minus_own_prior,
    ),
    "H11": gains.of_prior(
        "too_high",
        "running_mean",
        lambda gain, p: gain.high < 0 and p < 0.05,
        "accuracy, minus the running mean",
        gains.minus_others,
    ),
    "H12": on_text_to_image("failure_noise", failures.noise),
    "H13": on_text_to_image("failure_normalisation", failures.normalisation),
    "H14": on_text_to_image("signatures", failures.signs),
    "H15": gains.with_ten_seeds("bpgo", "ablation"),
    "H16": gains.with_ten_seeds("ceiling", "priors_{task}"),
}


def verdicts(
    plan: pd.DataFrame, records: dict, names: Iterable[str] = tuple(CLAIMS)
) -> pd.DataFrame:
    """One row per claim and task: claim, says, task, n, finding, verdict.

    names: the claims, all by default. n: independent units behind the finding.
    """
    rows = []
    for name in names:
        for task, experiments, answer in ASKED[name](plan, records):
            chosen = plan[plan["experiment"].isin(experiments) & (plan["task"] == task)]
            done = sum(run in records for run in set(chosen["run"]))
            n, finding, holds = answer() if done else UNKNOWN
            if holds is None:
                finding = ""
            rows.append(
                {
                    "claim": name,
                    "says": CLAIMS[name],
                    "task": task,
                    "n": n if finding else 0,
                    "finding": finding,
                    "verdict": _verdict(name, holds, done, chosen["run"].nunique()),
                }
            )
    return pd.DataFrame(rows)


def _verdict(name: str, holds: bool | None, done: int, planned: int) -> str:
    """The verdict on a claim with `done` of its `planned` runs recorded."""
    if holds is None:
        return f"too few yet ({done} of {planned} runs)" if done else "not run"
    if holds:
        verdict = "not refuted" if name in LEVEL else "holds"
    else:
        verdict = "does not hold"
    return verdict if done == planned else f"so far: {verdict} ({done} of {planned} runs)"


def told(table: pd.DataFrame) -> str:
    """`verdicts` as a Markdown list with one item per claim.

    An item has the verdict, the finding and n of each task with runs, and the tasks without.
    """
    items = []
    for (name, says), rows in table.groupby(["claim", "says"], sort=False):
        parts, not_run = [], []
        for row in rows.itertuples():
            if row.verdict == "not run":
                not_run.append(row.task)
            elif row.finding:
                parts.append(f"{row.task}: **{row.verdict}** ({row.finding}, n = {row.n})")
            else:
                parts.append(f"{row.task}: **{row.verdict}**")
        if not_run:
            parts.append("not run: " + ", ".join(not_run))
        items.append(f"- {name}, *{says}*. " + "; ".join(parts) + ".")
    return "\n".join(items)
