"""The study's table of runs, made from study.yaml."""

import hashlib
import itertools
import json
from functools import cache
from pathlib import Path

from bpgo.config import ConfigError, read_config, to_dict
from reproduce.analysis import evidence
from reproduce.common import RequestError, nearest, read_table

HERE = Path(__file__).resolve().parent
RESULTS, WORK = Path("reproduce/results/study"), Path("runs/study")
KEYS = ("tasks", "seeds", "arms", "grid")  # of an experiment
# Settings that change no number, so that the name of a run does not depend on them.
WITHOUT_EFFECT = {"guards"}
# Settings of the study itself. All others are settings of bpgo.
#   mix: fraction of ambiguous prompts among the training prompts (study_trainer.mixed)
#   rule: how advantages are made (study_trainer.RULES)
#   corruption, level: what is done to the training reward, and how strongly (CORRUPTIONS)
OWN_SETTINGS = {"mix", "rule", "corruption", "level"}


def table(path=HERE / "study.yaml"):
    """The planned runs in order, [{experiment, arm, task, seed, run, preset, settings}].

    The name of a run consists of its task, its objective, a digest of all its settings and its
    seed. Experiments that need the same run therefore share it. Raises RequestError for an unknown
    key or task.
    """
    plan = read_table(path)
    _check(plan, path)
    rows = []
    for name, experiment in plan["experiments"].items():
        for task, (arm, given) in itertools.product(experiment["tasks"], arms(experiment).items()):
            preset = plan["tasks"][task]["preset"]
            settings = plan["tasks"][task]["settings"] | given
            for seed in experiment["seeds"]:
                rows.append(
                    {
                        "experiment": name,
                        "arm": arm,
                        "task": task,
                        "seed": seed,
                        "run": run_name(task, preset, settings, seed),
                        "preset": preset,
                        "settings": settings,
                    }
                )
    return rows


def _check(plan, path):
    for name, experiment in plan["experiments"].items():
        for key in sorted(experiment.keys() - set(KEYS)):
            raise RequestError(f"{path}: {name} has an unknown key{nearest(key, KEYS)}")
        for task in sorted(set(experiment["tasks"]) - plan["tasks"].keys()):
            raise RequestError(
                f"{path}: {name} has an unknown task {task!r}{nearest(task, plan['tasks'])}"
            )


def arms(experiment):
    """{name: settings} of an experiment: its arms, or every combination of its grid.

    A value in a grid is the value of its key, or a dict of several settings.
    """
    if "arms" in experiment:
        return experiment["arms"]
    grid, found = experiment["grid"], {}
    for values in itertools.product(*grid.values()):
        labels, settings = [], {}
        for key, value in zip(grid, values, strict=True):
            several = isinstance(value, dict)
            settings |= value if several else {key: value}
            labels.append(f"{key.rpartition('.')[2]}={value['group_size'] if several else value}")
        found[" ".join(labels)] = settings
    return found


def split_settings(settings):
    """The settings of bpgo, and those of the study that are in effect."""
    package, own = {}, {}
    for key, value in settings.items():
        if key not in OWN_SETTINGS:
            package[key] = value
        elif value not in (None, "none"):
            own[key] = value
    return package, own


def configure(preset, settings):
    """The config of a preset with settings of bpgo, {key: value}."""
    return read_config(preset, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def run_name(task, preset, settings, seed):
    """The name of a run."""
    return f"{_stem(task, preset, json.dumps(settings))}-s{seed}"


@cache
def _stem(task, preset, settings):
    package, own = split_settings(json.loads(settings))
    config = configure(preset, package)
    complete = {k: value for k, value in to_dict(config).items() if k not in WITHOUT_EFFECT}
    text = json.dumps([complete, own], sort_keys=True)
    return f"{task}-{config.objective.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# ------------------------------------------------------------------------- records of earlier code


def with_recorded_names(rows, folder=RESULTS):
    """The rows, with the name of its record for each run that is recorded under another name.

    The name of a run changes when a setting is added or renamed. A record made before that still
    counts if its settings are those of the run.
    """
    presets = {row["task"]: row["preset"] for row in rows}
    present = {row["run"] for row in rows}
    recorded = {}
    for place in sorted((folder / "runs").glob("*.json")):
        if place.stem in present:
            recorded[place.stem] = place.stem
            continue
        record = evidence.read_run(place)
        task = record["task"]
        try:
            name = run_name(task, presets[task], record["settings"], record["seed"])
        except (KeyError, ConfigError):  # a task or a setting that no longer exists
            continue
        recorded.setdefault(name, place.stem)
    return [row | {"run": recorded.get(row["run"], row["run"])} for row in rows]
