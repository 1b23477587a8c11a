"""The study: every experiment of study.yaml. PLAN.md says what each asks and what would refute it.

    study.py             run what is missing and write the tables; after a kill, the same again
    study.py list        the table of runs, and which of them are recorded
    study.py run NAME    one run
    study.py again       repeat three recorded runs (or those named): are all numbers the same?
    study.py tables      write the tables

Results are in reproduce/results/study: runs/NAME.json, one record per run; runs.csv, which run each
arm of an experiment needs; table.csv, one row per run and evaluation with its settings and code;
claims.csv, what PLAN.md claims and what was found. Training takes place in runs/study, which git
ignores.
"""

import argparse
import csv
import io
import itertools
import json
import os
import random
import sys

from bpgo.files import write_atomic
from reproduce.analysis import claims, evidence
from reproduce.code_digest import code_digest
from reproduce.common import RequestError, locked, nearest, path_argument, snakemake
from reproduce.study_plan import HERE, RESULTS, WORK, table, with_recorded_names
from reproduce.study_run import again, run

VERBS = ("all", "list", "run", "again", "tables")


def record_of(name):
    """The path of a run's record."""
    return RESULTS / "runs" / f"{name}.json"


def state_of(name, digest):
    """The state of a run: missing, recorded, or recorded by code of another digest (older code)."""
    if not record_of(name).exists():
        return "missing"
    made_by = json.loads(record_of(name).read_text(encoding="utf-8"))["code"]["digest"]
    return "recorded" if made_by == digest else "older code"


def distinct(rows):
    """One row per run."""
    return list({row["run"]: row for row in rows}.values())


# ----------------------------------------------------------------------------------------- commands


def list_runs(rows):
    """Print the state of every run."""
    digest, states = code_digest(), {}
    for row in rows:
        name = row["run"]
        states.setdefault(name, state_of(name, digest))
        print(f"{states[name]:10}  {row['experiment']:22} {row['arm']:32} {name}")
    print_counts(list(states.values()))


def print_counts(states):
    """Print how many runs are recorded, and how many of those by older code."""
    older, missing = states.count("older code"), states.count("missing")
    line = f"{len(states) - missing} of {len(states)} runs are recorded"
    print(line + (f", {older} of them by older code (--renew repeats those)" if older else ""))


def run_all(rows, options):
    """Run what has no record, in the order of the plan."""
    WORK.mkdir(parents=True, exist_ok=True)
    with locked(WORK / ".lock") as lock:
        for _, part in itertools.groupby(rows, lambda row: (row["experiment"], row["task"])):
            names = list(dict.fromkeys(row["run"] for row in part))
            write_atomic(WORK / "asked.json", json.dumps(names))
            # An existing record is not made again, so that neither a checkout nor an edited
            # docstring causes eight hours of training.
            targets = ["study", "--rerun-triggers", "mtime"]
            exit_code = snakemake(
                targets, f"plan={options.plan}", lock, options.cluster, options.cores
            )
            if exit_code == 130:
                break


def delete_older(rows):
    """Delete the records that older code has made."""
    digest = code_digest()
    for row in rows:
        if state_of(row["run"], digest) == "older code":
            record_of(row["run"]).unlink()


def print_failures(rows):
    """Print the last line of the log of each run without a record. Returns how many there are."""
    missing = [row["run"] for row in distinct(rows) if not record_of(row["run"]).exists()]
    for name in missing:
        log = WORK / "logs" / f"{name}.log"
        lines = (
            log.read_text(encoding="utf-8").strip().splitlines()
            if log.exists()
            else ["was not run"]
        )
        reason = lines[-1] if lines else "its log is empty"
        print(f"FAILED {name}: {reason} ({log})", file=sys.stderr)
    return len(missing)


def write_tables(rows):
    """Write runs.csv, table.csv and claims.csv from the existing records."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    columns = ("experiment", "task", "arm", "seed", "run")
    _write_csv(RESULTS / "runs.csv", [{key: row[key] for key in columns} for row in rows])
    lines = []
    for row in distinct(rows):
        if record_of(row["run"]).exists():
            record = evidence.read_run(record_of(row["run"]))
            head = {
                "run": row["run"],
                "task": row["task"],
                "seed": row["seed"],
                "settings": json.dumps(record["settings"]),
                "code": record["code"]["digest"],
                "commit": record["code"]["commit"],
            }
            lines += [head | entry for entry in record["evaluations"]]
    _write_csv(RESULTS / "table.csv", lines)
    verdicts = claims.verdicts(*evidence.read(RESULTS))
    write_atomic(RESULTS / "claims.csv", verdicts.to_csv(index=False, lineterminator="\n"))


def _write_csv(place, lines):
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_atomic(place, text.getvalue())


# ------------------------------------------------------------------------------------- command line


def main(arguments=None):
    """Run one command. Returns the exit code: 1 if runs failed or differ, 2 for a wrong request."""
    options = _parser().parse_args(arguments)
    options.cluster = options.cluster and options.cluster.resolve()
    options.plan = options.plan.resolve()
    os.chdir(options.root)
    try:
        rows = with_recorded_names(table(options.plan))
        _check_names(options, rows)
        if options.verb == "run":
            for row in distinct([row for row in rows if row["run"] in options.names]):
                run(row)
            return 0
        if options.verb == "again":
            return int(again(_to_repeat(options, rows)) > 0)
    except RequestError as error:
        print(f"study.py: {error}", file=sys.stderr)
        return 2
    chosen = _of_experiments(rows, options.names)
    if options.verb == "list":
        list_runs(chosen)
        return 0
    if options.verb == "all":
        if options.renew:
            delete_older(chosen)
            rows = with_recorded_names(table(options.plan))
            chosen = _of_experiments(rows, options.names)
        run_all(chosen, options)
    write_tables(rows)
    digest = code_digest()
    print_counts([state_of(row["run"], digest) for row in distinct(rows)])
    return int(options.verb == "all" and print_failures(chosen) > 0)


def _parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "verb", nargs="?", default="all", choices=VERBS, metavar=" | ".join(VERBS[1:])
    )
    parser.add_argument(
        "names", nargs="*", help="runs (for run and again) or experiments; default: all"
    )
    parser.add_argument(
        "--plan", type=path_argument, default=HERE / "study.yaml", help="another table of runs"
    )
    parser.add_argument(
        "--root",
        type=path_argument,
        default=HERE.parent,
        help="the folder of reproduce/results and runs",
    )
    parser.add_argument("--cores", default="all", help="how many runs at a time (%(default)s)")
    parser.add_argument(
        "--cluster",
        type=path_argument,
        help="a folder with Snakemake's settings for a cluster: reproduce/slurm",
    )
    parser.add_argument("--renew", action="store_true", help="repeat what older code has recorded")
    return parser


def _check_names(options, rows):
    kind = "run" if options.verb in ("run", "again") else "experiment"
    known = {row[kind] for row in rows}
    for name in options.names:
        if name not in known:
            raise RequestError(f"there is no {kind} {name!r}{nearest(name, known)}")


def _of_experiments(rows, names):
    return [row for row in rows if not names or row["experiment"] in names]


def _to_repeat(options, rows):
    """The named rows, or three recorded ones drawn at random."""
    recorded = {row["run"]: row for row in rows if record_of(row["run"]).exists()}
    names = options.names or random.sample(list(recorded), min(3, len(recorded)))
    for name in names:
        if name not in recorded:
            raise RequestError(f"{name} has no record to compare with")
    return [recorded[name] for name in names]


if __name__ == "__main__":
    sys.exit(main())
