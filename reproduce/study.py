"""The study: every experiment of study.yaml, from one table of runs. PLAN.md says what each asks and what would refute it.

    python reproduce/study.py             run what is missing (again after any kill, without flags), then write the table
    python reproduce/study.py list        the table of runs, and which are there
    python reproduce/study.py run NAME    one run, by itself
    python reproduce/study.py again       three recorded runs (or those named) once more, elsewhere: do all numbers come again?

Results, in reproduce/results/study: runs/NAME.json, a record a run; runs.csv, which experiment and arm needs which run; table.csv, a
row for each run and evaluation, with its settings and the version of the code; claims.csv, what PLAN.md claims and what was found.
Training goes on in runs/study, which git ignores.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from bpgo.config import read_config, to_dict
from bpgo.files import read_log, write_atomic
from bpgo.records import code_version
from reproduce.analysis import claims, evidence
from reproduce.analysis.evidence import code_digest
from reproduce.notebooks import RequestError, locked, nearest

HERE = Path(__file__).resolve().parent
RESULTS, WORK = Path("reproduce/results/study"), Path("runs/study")
SILENT = {"guards"}  # settings that move no number, so that a run's name does not depend on them
OURS = {"mix", "rule", "corruption", "level"}  # settings of the study itself, see `trainer`
ENOUGH = 8  # samples of a prompt from which its group is looked at by itself
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


# ------------------------------------------------------------------------------------------------------ the table of runs


def arms(experiment):
    """{name: settings} of an experiment: its arms, or every combination of its grid."""
    if "arms" in experiment:
        return experiment["arms"]
    grid, found = experiment["grid"], {}
    for values in itertools.product(*grid.values()):
        named = list(zip(grid, values, strict=True))
        label = " ".join(
            f"{key.rpartition('.')[2]}={v['group_size'] if isinstance(v, dict) else v}"
            for key, v in named
        )
        found[label] = {
            k: v
            for key, value in named
            for k, v in (value.items() if isinstance(value, dict) else [(key, value)])
        }
    return found


def table(path=HERE / "study.yaml"):
    """[{experiment, arm, run, task, seed, settings}] in order. A run's name has its task, its seed and a digest of all its settings."""
    plan = yaml.safe_load(Path(path).read_text())
    for name, experiment in plan["experiments"].items():
        if unknown := experiment.keys() - {"tasks", "seeds", "arms", "grid"}:
            raise RequestError(
                f"{path}: {name} has an unknown key{nearest(min(unknown), ('tasks', 'seeds', 'arms', 'grid'))}"
            )
        if unknown := set(experiment["tasks"]) - plan["tasks"].keys():
            raise RequestError(
                f"{path}: {name} has an unknown task {min(unknown)!r}{nearest(min(unknown), plan['tasks'])}"
            )
    rows = []
    for name, experiment in plan["experiments"].items():
        for task, (arm, given) in itertools.product(experiment["tasks"], arms(experiment).items()):
            common = plan["tasks"][task]
            ours = {
                key: value
                for key, value in given.items()
                if key in OURS and value not in (None, "none")
            }
            config = configure(
                common["preset"],
                common["settings"] | {k: v for k, v in given.items() if k not in OURS},
            )
            settings = {key: value for key, value in to_dict(config).items() if key not in SILENT}
            digest = hashlib.sha256(
                json.dumps([settings, ours], sort_keys=True).encode()
            ).hexdigest()[:8]
            for seed in experiment["seeds"]:
                rows.append(
                    dict(
                        experiment=name,
                        arm=arm,
                        task=task,
                        seed=seed,
                        run=f"{task}-{config.objective.name}-{digest}-s{seed}",
                        preset=common["preset"],
                        settings=common["settings"] | given,
                    )
                )
    return rows


def configure(preset, settings):
    return read_config(preset, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


# ------------------------------------------------------------------------------------------------------------------ a run


def trainer(row):
    """The trainer of a run.

    mix: share of ambiguous prompts among `MIXED` training prompts. rule: how advantages are made, of `RULES`. corruption, level: what is
    done to the reward in training, of `CORRUPTIONS`; measures stay as they are. (All of study_trainer.py.)
    """
    import torch

    from bpgo.__main__ import world_metrics
    from reproduce.study_trainer import StudyTrainer, mixed

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    given = row["settings"] | {"seed": row["seed"]}
    config = configure(
        row["preset"], {key: value for key, value in given.items() if key not in OURS}
    )
    ours = {
        key: given[key]
        for key in ("rule", "corruption", "level")
        if given.get(key) not in (None, "none")
    }
    prompts = mixed(config.prompts, given["mix"]) if given.get("mix") is not None else None
    return StudyTrainer(
        config,
        WORK / row["run"],
        metrics=world_metrics(config),
        prompts=prompts,
        progress=False,
        **ours,
    )


def run(row):
    """Train, measure, write the record, and drop what the record does not need."""
    from reproduce.study_trainer import by_group, opened

    print(f"{row['run']}: {json.dumps(row['settings'])}", flush=True)
    started = time.perf_counter()
    work = trainer(row)
    work.train()
    evaluations = read_log(work.output / "evaluations.jsonl")
    metrics = read_log(work.output / "metrics.jsonl")
    scores = {entry["iteration"]: entry.pop("scores") for entry in evaluations}
    last = scores[evaluations[-1]["iteration"]]
    specified = [not left_open for left_open in opened(work)]
    for entry in evaluations:
        right = scores[entry["iteration"]]["accuracy"]
        entry["accuracy_specified"] = _mean(
            [_mean(row) for row, clear in zip(right, specified, strict=True) if clear]
        )
    timing = [line["seconds"] for line in read_log(work.output / "timing.jsonl")]
    record = {
        "run": row["run"],
        "task": row["task"],
        "seed": row["seed"],
        "settings": row["settings"],
        "code": code_version() | {"digest": code_digest()},
        "warnings": read_log(work.output / "warnings.jsonl")
        if (work.output / "warnings.jsonl").exists()
        else [],
        "curves": {name: [_short(line[name]) for line in metrics] for name in CURVES},
        "evaluations": [
            {name: _short(value) for name, value in entry.items()} for entry in evaluations
        ],
        "prompts": {
            name: [_short(_mean(values)) for values in table] for name, table in last.items()
        },
        "groups": {i: by_group(table) for i, table in scores.items()}
        if work.config.evaluation.samples >= ENOUGH
        else {},
        "seconds": {
            "iteration": _short(sorted(timing)[len(timing) // 2]),
            "whole": round(time.perf_counter() - started),
        },
    }
    place = RESULTS / "runs" / f"{row['run']}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place, json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
    shutil.rmtree(work.output)


def _short(value):
    return None if value is None else float(f"{value:.5g}")


def _mean(values):
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def again(rows):
    """Run these once more in a folder of their own. Returns how many gave another number than their record."""
    home, changed = Path.cwd(), 0
    for row in rows:
        with tempfile.TemporaryDirectory() as elsewhere, contextlib.chdir(elsewhere):
            os.environ["BPGO_CACHE"] = str(
                Path(elsewhere) / "cache"
            )  # so that priors are sampled again too
            run(row)
            old, new = (
                _numbers(json.loads((at / RESULTS / "runs" / f"{row['run']}.json").read_text()))
                for at in (home, Path(elsewhere))
            )
        other = [name for name in old | new if old.get(name) != new.get(name)]
        changed += bool(other)
        told = f"all {len(old)} numbers came again"
        if other:
            told = f"{len(other)} of {len(old)} numbers differ, such as {other[0]}: {old.get(other[0])} before, {new.get(other[0])} now"
        print(f"{row['run']}: {told}", flush=True)
    return changed


def _numbers(record, prefix=""):
    """{path: value} of everything a record measured: not of what it was measured with, nor of times."""
    items = record.items() if isinstance(record, dict) else enumerate(record)
    found = {}
    for key, value in items:
        if prefix or key in ("curves", "evaluations", "prompts", "groups", "warnings"):
            found |= (
                _numbers(value, f"{prefix}{key}/")
                if isinstance(value, (dict, list))
                else {f"{prefix}{key}": value}
            )
    return found


# ----------------------------------------------------------------------------------------------------------- all the runs


def write_tables(rows):
    """runs.csv and table.csv of the records there are. Returns how many runs there are, and how many of these are of other code."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    _csv(
        RESULTS / "runs.csv",
        [{key: row[key] for key in ("experiment", "task", "arm", "seed", "run")} for row in rows],
    )
    lines, other, now = [], 0, code_digest()
    for row in {row["run"]: row for row in rows}.values():
        if (place := RESULTS / "runs" / f"{row['run']}.json").exists():
            record = json.loads(place.read_text())
            other += record["code"]["digest"] != now
            head = {
                "run": row["run"],
                "task": row["task"],
                "seed": row["seed"],
                "settings": json.dumps(record["settings"]),
                "code": record["code"]["digest"],
                "commit": record["code"]["commit"],
            }
            lines += [head | entry for entry in record["evaluations"]]
    _csv(RESULTS / "table.csv", lines)
    write_atomic(
        RESULTS / "claims.csv",
        claims.verdicts(*evidence.read(RESULTS)).to_csv(index=False, lineterminator="\n"),
    )
    return len({line["run"] for line in lines}), other


def _csv(place, lines):
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_atomic(place, text.getvalue())


def snakemake(rows, lock, options):
    """Run what has no record. It holds `lock` as long as it lives, whatever ends us."""
    write_atomic(WORK / "asked.json", json.dumps(list(dict.fromkeys(row["run"] for row in rows))))
    command = [sys.executable, "-m", "snakemake", "--snakefile", HERE / "Snakefile", "study"]
    command += ["--config", f"plan={options.plan}"]
    command += (
        ["--profile", options.cluster] if options.cluster else ["--cores", str(options.cores)]
    )
    # By what is there: checking records out, or editing a docstring, makes nobody train eight hours again.
    command += [
        "--keep-going",
        "--rerun-incomplete",
        "--rerun-triggers",
        "mtime",
        "--nolock",
        "--quiet",
        "host",
        "reason",
        "rules",
        "progress",
    ]
    subprocess.run(command, pass_fds=[lock.fileno()])


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = ["all", "list", "run", "again", "tables"]
    parser.add_argument(
        "verb", nargs="?", default="all", choices=verbs, metavar=" | ".join(verbs[1:])
    )
    parser.add_argument(
        "names", nargs="*", help="runs (of run and again), or experiments (else): all by default"
    )
    parser.add_argument("--plan", default=HERE / "study.yaml", help="another table of runs")
    parser.add_argument(
        "--root",
        type=Path,
        default=HERE.parent,
        help="the folder that gets reproduce/results and runs",
    )
    parser.add_argument("--cores", default="all", help="how many runs at a time (%(default)s)")
    parser.add_argument(
        "--cluster",
        type=Path,
        help="a folder with Snakemake's settings for a cluster, such as reproduce/slurm",
    )
    parser.add_argument("--renew", action="store_true", help="run again what other code has made")
    options = parser.parse_args(words)
    options.cluster = options.cluster and options.cluster.resolve()
    options.plan = Path(options.plan).resolve()
    os.chdir(options.root)
    try:
        rows = table(options.plan)
        known = {row["run" if options.verb in ("run", "again") else "experiment"] for row in rows}
        if unknown := set(options.names) - known:
            raise RequestError(f"there is no {min(unknown)!r}{nearest(min(unknown), known)}")
    except RequestError as error:
        print(f"study.py: {error}", file=sys.stderr)
        return 2
    if options.verb == "run":
        for row in {row["run"]: row for row in rows if row["run"] in options.names}.values():
            run(row)
        return 0
    if options.verb == "again":
        recorded = {
            row["run"]: row for row in rows if (RESULTS / "runs" / f"{row['run']}.json").exists()
        }
        names = options.names or random.sample(list(recorded), min(3, len(recorded)))
        if missing := set(names) - recorded.keys():
            print(f"study.py: {min(missing)} has no record to compare with", file=sys.stderr)
            return 2
        return int(again([recorded[name] for name in names]) > 0)
    chosen = [row for row in rows if not options.names or row["experiment"] in options.names]
    names = list(dict.fromkeys(row["run"] for row in chosen))
    records = {name: RESULTS / "runs" / f"{name}.json" for name in names}
    if options.verb == "list":
        for row in chosen:
            print(
                f"{'there  ' if records[row['run']].exists() else 'missing'}  {row['experiment']:22} {row['arm']:32} {row['run']}"
            )
    elif options.verb == "all":
        WORK.mkdir(parents=True, exist_ok=True)
        with locked(WORK / ".lock") as lock:
            if options.renew:
                now = code_digest()
                for place in records.values():
                    if place.exists() and json.loads(place.read_text())["code"]["digest"] != now:
                        place.unlink()
            for _, part in itertools.groupby(
                chosen, key=lambda row: (row["experiment"], row["task"])
            ):  # in the plan's order
                snakemake(list(part), lock, options)
    there, other = write_tables(rows)
    print(
        f"{there} of {len({row['run'] for row in rows})} runs are there"
        + (f", {other} of them made by other code" if other else "")
    )
    missing = (
        [name for name, place in records.items() if not place.exists()]
        if options.verb == "all"
        else []
    )
    for name in missing:
        log = WORK / "logs" / f"{name}.log"
        words = log.read_text().strip().splitlines()[-1:] if log.exists() else ["was not run"]
        print(f"FAILED {name}: {words[0] if words else 'said nothing'} ({log})", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
