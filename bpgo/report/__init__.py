"""One HTML page about one or several runs, complete in itself: no script, no font, no network.

It shows settings, curves, pictures, weights, warnings, cost, and the commands that follow. It can
be written at any time, also while a run is in progress. What cannot be read is listed on the page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from shlex import quote

import numpy as np
import torch
from jinja2 import Environment, PackageLoader

from bpgo.files import resolve, write_atomic
from bpgo.objective import ras_weights
from bpgo.report.charts import Series, line_chart, scatter_chart, swatch
from bpgo.report.folders import (
    RunFolder,
    differing,
    is_default,
    known_setting,
    label_groups,
    number,
    read_folder,
    value_of,
)
from bpgo.report.strips import read_strips

MOST_PICTURED = 8  # groups whose pictures are shown
# Names of metrics.jsonl that are shown at once, with a title and what they mean.
TRAINING = {
    "reward": ("Training reward", "mean over all samples of an iteration"),
    "weight_mean": ("Weight of a group", "mean; 1 leaves a group as it is"),
    "k": ("Sharpness k", "how fast the weight changes with the reward, per unit of reward"),
    "reward_std": ("Spread within groups", "standard deviation of the reward for one prompt"),
    "grad_norm": ("Gradient norm", "before it is clipped"),
    "clip_up": ("Clipped upwards", "fraction of importance ratios"),
    "clip_down": ("Clipped downwards", "fraction of importance ratios"),
    "approx_kl": ("Approximate KL", "of the policy from the one that sampled"),
}
EVALUATION = {
    "reward": ("Reward", "of the evaluation prompts"),
    "held_out": ("Held-out reward", "which the policy is not trained on"),
}
# What weights are shown against, with the label of the axis.
AGAINST = {
    "ambiguity": "bits that the prompt leaves open",
    "level": "mean reward of the prompt",
    "spread": "standard deviation of its rewards",
}
STAGES = {
    "sample": "sampling",
    "decode": "decoding",
    "score": "rewards",
    "advantages": "advantages",
    "update": "updates",
}


def write_report(runs: Sequence[str | Path], output: str | Path) -> Path:
    """Write the report of these run folders to the HTML file `output`, and return its path.

    Runs that differ only in their seed are averaged. Raises FileNotFoundError for a folder without
    a run, ValueError if there are no folders, and OSError if the file cannot be written.
    """
    output = Path(output)
    if output.is_dir():
        raise IsADirectoryError(f"{output} is a folder: name a file, such as {output}/report.html")
    folders = dict.fromkeys(Path(run).resolve() for run in runs)
    if not folders:
        raise ValueError("a report needs at least one run")
    found = [read_folder(folder) for folder in folders]
    environment = Environment(loader=PackageLoader("bpgo.report", "."), autoescape=True)
    environment.filters["percent"] = lambda share: f"{share:.0%}"
    page = environment.get_template("page.html").render(_contents(found))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, page)
    return output


def _contents(runs: list[RunFolder]) -> dict:
    """What the template shows."""
    groups = label_groups(runs)
    pictures = _pictures(groups)  # first, because it may note problems
    training = _charts(groups, "metrics", TRAINING)
    return {
        "title": runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "runs": [_summary(run) for run in runs],
        "problems": {run.name: run.problems for run in runs if run.problems},
        "legend": _legend(groups),
        "several_seeds": any(len(members) > 1 for members in groups.values()),
        "evaluation": _charts(groups, "evaluations", EVALUATION),
        "training": [chart for chart in training if chart["name"] in TRAINING],
        "more_training": [chart for chart in training if chart["name"] not in TRAINING],
        "pictures": pictures,
        "weights": _weights(groups),
        "warnings": [(run.name, row) for run in runs for row in run.warnings],
        "settings": _settings(groups),
        "cost": [_cost(run) for run in runs if run.timing],
        "commands": [_commands(run) for run in runs],
    }


def _summary(run: RunFolder) -> dict:
    """One row of the table of runs."""
    ancestry = ""
    if run.ancestry:
        changed = run.ancestry.get("changed")
        ancestry = f"{run.ancestry.get('parent')} at iteration {run.ancestry.get('iteration')}"
        ancestry += f", with {_words(changed)}" if changed else ""
    names = [name for name in ("reward", "held_out") if any(name in r for r in run.evaluations)]
    return {
        "name": run.name,
        "group": run.group,
        "seed": run.setting("seed"),
        "iteration": run.iteration,
        "iterations": run.setting("iterations"),
        "state": run.state,
        "changes": {EVALUATION[name][0]: _change(run.evaluations, name) for name in names},
        "ancestry": ancestry,
    }


def _change(rows: list[dict], name: str) -> str:
    values = [number(row.get(name)) for row in rows]
    values = [value for value in values if np.isfinite(value)]
    if not values:
        return "not defined"
    text = f"{values[0]:.4g}" if len(values) == 1 else f"{values[0]:.4g} → {values[-1]:.4g}"
    return text.replace("-", "−")


def _words(changed) -> str:
    if not isinstance(changed, dict):
        return ", ".join(map(str, changed)) if isinstance(changed, list) else str(changed)
    return ", ".join(f"{name}={value}" for name, value in changed.items())


# ----------------------------------------------------------------------------------------- curves


def _charts(groups: dict[str, list[RunFolder]], log: str, known: dict) -> list[dict]:
    """A chart of every number that a log has, those in `known` first."""
    rows = [row for members in groups.values() for run in members for row in getattr(run, log)]
    names = dict.fromkeys(name for row in rows for name in row)
    ordered = [*(n for n in known if n in names), *(n for n in names if n not in known)]
    charts = []
    for name in ordered:
        series = _series(groups, log, name)
        if name == "iteration" or not series:
            continue
        title, meaning = known.get(name, (_title(name), ""))
        picture = line_chart(title, series)
        charts.append({"name": name, "title": title, "meaning": meaning, "svg": picture})
    return charts


def _title(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _series(groups: dict[str, list[RunFolder]], log: str, name: str) -> list[Series]:
    """The curves of one number. Groups without it are left out."""
    found = []
    for index, (label, members) in enumerate(groups.items()):
        curves = []
        for run in members:
            points = [(row["iteration"], number(row.get(name))) for row in getattr(run, log)]
            x, y = np.array([i for i, _ in points]), np.array([v for _, v in points], dtype=float)
            if np.isfinite(y).any():
                curves.append((x[np.isfinite(y)], y[np.isfinite(y)]))
        if curves:
            found.append(Series(label, index, curves))
    return found


def _legend(groups: dict[str, list[RunFolder]]) -> list[dict]:
    return [
        {"label": label, "swatch": swatch(index), "runs": [run.name for run in members]}
        for index, (label, members) in enumerate(groups.items())
    ]


def _weights(groups: dict[str, list[RunFolder]]) -> list[dict]:
    """Charts of the weight of each evaluation prompt, against what may tell its ambiguity."""
    charts = []
    for name, x_label in AGAINST.items():
        series = []
        for index, (label, members) in enumerate(groups.items()):
            found = [_weights_of_prompts(run) for run in members]
            points = [(table[name], table["weight"]) for table in found if name in table]
            if points:
                series.append(Series(label, index, points))
        if series:
            title = f"Weight against {name}"
            svg = scatter_chart(title, x_label, "weight", series, 1.0)
            charts.append({"title": title, "meaning": "", "svg": svg})
    return charts


def _weights_of_prompts(run: RunFolder) -> dict[str, np.ndarray]:
    """Level, spread, ambiguity and RAS weight (P,) of the prompts of the last evaluation.

    The weight is that of equation 2 for the prior and k that were logged last. The ambiguity is in
    prompt files that grade their prompts. What cannot be computed is left out.
    """
    if run.setting("objective.name") not in ("ras", "bpgo") or not run.metrics:
        return {}
    try:
        rewards = torch.tensor(run.evaluations[-1]["scores"]["reward"], dtype=torch.float64)
        alpha, last = float(run.setting("objective.alpha")), run.metrics[-1]
        weights = ras_weights(rewards, float(last["prior"]), alpha, float(last["k"]))
    except (LookupError, TypeError, ValueError):  # not logged, or damaged
        return {}
    table = {"weight": weights.numpy(), "level": rewards.mean(1).numpy()}
    table["spread"] = rewards.std(1).numpy()
    bits = _bits(run)
    return table | ({"ambiguity": bits} if bits.shape == weights.shape else {})


def _bits(run: RunFolder) -> np.ndarray:
    """(P,) bits that each evaluation prompt leaves open. Empty if its file does not say so."""
    try:
        lines = Path(resolve(run.setting("evaluation.prompts"))).read_text(encoding="utf-8")
        rows = [json.loads(line) for line in lines.splitlines() if line.strip()]
        bits = np.array([number(row["bits"]) for row in rows])
    except (OSError, ValueError, LookupError, TypeError):  # another file, or made elsewhere
        return np.array([])
    return bits if np.isfinite(bits).all() else np.array([])


# --------------------------------------------------------------------------------------- pictures


def _pictures(groups: dict[str, list[RunFolder]]) -> dict:
    """Strips by prompt, of the first run of each group: {prompt: [(label, cells)]}."""
    by_prompt: dict[str, list] = {}
    for label, members in list(groups.items())[:MOST_PICTURED]:
        strips = {}
        for run in members:
            strips = read_strips(run.path / "samples", run.problems)
            if strips:
                break
        for prompt, cells in strips.items():
            by_prompt.setdefault(prompt, []).append((f"{label}, seed {run.setting('seed')}", cells))
    return {"prompts": by_prompt, "left_out": max(0, len(groups) - MOST_PICTURED)}


# --------------------------------------------------------------------------- settings, cost, advice


def _settings(groups: dict[str, list[RunFolder]]) -> dict:
    """Tables (name, values by group, meaning): what differs, what is no default, and everything."""
    tables = {label: members[0].settings for label, members in groups.items()}
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    different = differing(list(tables.values()))

    def rows(chosen: Callable[[str], bool]) -> list[dict]:
        return [
            {
                "name": name,
                "values": [value_of(table, name) for table in tables.values()],
                "meaning": setting.meaning if (setting := known_setting(name)) else "",
            }
            for name in names
            if name != "seed" and chosen(name)
        ]

    def is_set(name: str) -> bool:
        values = [table[name] for table in tables.values() if name in table]
        return name not in different and not all(is_default(name, value) for value in values)

    return {
        "groups": list(tables),
        "different": rows(lambda name: name in different),
        "set": rows(is_set),
        "default": rows(lambda name: name not in different and not is_set(name)),
    }


def _cost(run: RunFolder) -> dict:
    """Seconds per iteration, the share of each stage, and how many samples were drawn."""
    seconds = np.array([number(row.get("seconds")) for row in run.timing])
    stages = dict.fromkeys(name for row in run.timing for name in row)
    total = {s: np.nansum([number(row.get(s)) for row in run.timing]) for s in stages}
    total = {s: t for s, t in total.items() if s not in ("iteration", "seconds") and t > 0}
    everything = sum(total.values()) or 1.0
    shares = {STAGES.get(s, s): float(t / everything) for s, t in total.items()}
    return {
        "name": run.name,
        "median": float(np.nanmedian(seconds)) if np.isfinite(seconds).any() else float("nan"),
        "hours": float(np.nansum(seconds)) / 3600,
        "shares": shares,
        "calls": _model_calls(run),
    }


def _model_calls(run: RunFolder) -> dict[str, int]:
    """How often the generator was evaluated for one sample, as the settings say."""
    try:
        samples = int(run.setting("groups")) * int(run.setting("group_size")) * len(run.metrics)
        steps, window = int(run.setting("sampling.steps")), run.setting("sampling.window")
        share = float(run.setting("sampling.trained_share"))
        trained = int(window) if window != "null" else max(1, round(share * (steps - 1)))
        updates = samples * trained * int(run.setting("optimiser.epochs"))
    except ValueError:  # the settings are damaged
        return {}
    scores = [row.get("scores") for row in run.evaluations]
    drawn = sum(len(v) for s in scores if isinstance(s, dict) for v in s.get("reward", []))
    evaluations = drawn * int(run.setting("evaluation.steps"))
    return {"in rollouts": samples * steps, "in updates": updates, "in evaluations": evaluations}


def _commands(run: RunFolder) -> dict:
    """The checkpoints of a run, and what can be done with them."""
    folder = quote(str(run.path))
    commands = {}
    if run.state != "complete":
        commands["Resume"] = f"bpgo train {quote(str(run.path / 'config.json'))} --output {folder}"
    if run.checkpoints:
        last = run.checkpoints[-1]
        commands["Sample"] = f'bpgo sample {folder} "a prompt" -n 8 -o samples.png'
        commands["Export"] = f"bpgo export {folder} --at {last}"
        commands["Branch"] = f"bpgo branch {folder} --at {last} --output NEW key=value"
    return {"name": run.name, "checkpoints": run.checkpoints, "commands": commands}
