"""One run of the study: train it, measure it and write its record."""

import contextlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from bpgo.files import read_log, write_atomic
from bpgo.records import code_version
from reproduce.code_digest import code_digest
from reproduce.study_plan import RESULTS, WORK, configure, split_settings

GROUP_SIZE = 8  # samples per prompt, enough to measure its group
# What a record keeps of every iteration.
CURVES = (
    "reward",
    "reward_std",
    "prior",
    "k",
    "weight_mean",
    "weight_min",
    "weight_max",
    "rank_inversions",
    "zero_variance_groups",
    "effective_sample_size",
    "grad_norm",
    "clip_up",
    "clip_down",
)


def trainer(row):
    """The trainer of a run, which resumes if its folder contains a checkpoint."""
    import torch

    from reproduce.study_trainer import StudyTrainer, mixed

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    settings, own = split_settings(row["settings"] | {"seed": row["seed"]})
    config = configure(row["preset"], settings)
    mix = own.pop("mix", None)
    prompts = None if mix is None else mixed(config.prompts, mix)
    return StudyTrainer(config, WORK / row["run"], prompts=prompts, progress=False, **own)


def run(row):
    """Train a run, write its record, and delete what the record does not need."""
    print(f"{row['run']}: {json.dumps(row['settings'])}", flush=True)
    started = time.perf_counter()
    finished = trainer(row)
    finished.train()
    record = {
        "run": row["run"],
        "task": row["task"],
        "seed": row["seed"],
        "settings": row["settings"],
        "code": code_version() | {"digest": code_digest()},
        **measured(finished),
    }
    record["seconds"]["whole"] = round(time.perf_counter() - started)
    place = RESULTS / "runs" / f"{row['run']}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place, json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
    shutil.rmtree(finished.output)


def measured(finished):
    """The part of a record that comes from the logs of a trainer that has finished."""
    from reproduce.study_trainer import left_open, measure_groups

    folder = finished.output
    metrics, timing = read_log(folder / "metrics.jsonl"), read_log(folder / "timing.jsonl")
    evaluations = read_log(folder / "evaluations.jsonl")
    warnings = folder / "warnings.jsonl"
    scores = {entry["iteration"]: entry.pop("scores") for entry in evaluations}
    is_open = left_open(finished)
    for entry in evaluations:
        accuracy = scores[entry["iteration"]]["accuracy"]
        specified = [_mean(row) for row, open_ in zip(accuracy, is_open, strict=True) if not open_]
        entry["accuracy_specified"] = _mean(specified)
    last = scores[evaluations[-1]["iteration"]]
    seconds = sorted(line["seconds"] for line in timing)
    groups = {}
    if finished.config.evaluation.samples >= GROUP_SIZE:
        groups = {iteration: measure_groups(table) for iteration, table in scores.items()}
    return {
        "warnings": read_log(warnings) if warnings.exists() else [],
        "curves": {name: [_short(line[name]) for line in metrics] for name in CURVES},
        "evaluations": [
            {name: _short(value) for name, value in entry.items()} for entry in evaluations
        ],
        "prompts": {
            name: [_short(_mean(values)) for values in table] for name, table in last.items()
        },
        "groups": groups,
        "seconds": {"iteration": _short(seconds[len(seconds) // 2])},
    }


def _short(value):
    return None if value is None else float(f"{value:.5g}")


def _mean(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# ---------------------------------------------------------------------------------------- once more


def again(rows):
    """Repeat these runs in another folder. Returns how many runs differ from their records."""
    home, changed = Path.cwd(), 0
    for row in rows:
        file = RESULTS / "runs" / f"{row['run']}.json"
        with tempfile.TemporaryDirectory() as elsewhere, contextlib.chdir(elsewhere):
            os.environ["BPGO_CACHE"] = f"{elsewhere}/cache"  # so that priors are sampled again too
            run(row)
            old = numbers(json.loads((home / file).read_text(encoding="utf-8")))
            new = numbers(json.loads(file.read_text(encoding="utf-8")))
        different = [name for name in old | new if old.get(name) != new.get(name)]
        changed += bool(different)
        message = f"all {len(old)} numbers are the same"
        if different:
            first = different[0]
            message = (
                f"{len(different)} of {len(old)} numbers differ, such as {first}: "
                f"{old.get(first)} before, {new.get(first)} now"
            )
        print(f"{row['run']}: {message}", flush=True)
    return changed


def numbers(record, prefix=""):
    """{path: value} of what a record measured, without settings, code and times."""
    parts = ("curves", "evaluations", "prompts", "groups", "warnings")
    found = {}
    for key, value in record.items() if isinstance(record, dict) else enumerate(record):
        if not prefix and key not in parts:
            continue
        if isinstance(value, dict | list):
            found |= numbers(value, f"{prefix}{key}/")
        else:
            found[f"{prefix}{key}"] = value
    return found
