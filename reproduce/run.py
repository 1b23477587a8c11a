"""Run the notebooks of a profile side by side on all cores, and print its table and its reports.

    python reproduce/run.py [--profile quick] [--cluster reproduce/slurm]

`reproduce/<profile>.yaml` lists experiments, {name: {notebook, record, parameters, seeds}}. Each
seed is a job. It runs the notebook with `seeds=[seed]` and leaves a record and the executed
notebook in `reproduce/results/<profile>/<job>/`. Only missing and outdated jobs are run. After a
kill, the same command resumes. While it works, a line says how many training runs are complete and
how much time is left. At the end, `bpgo report` is written for the runs of each experiment.

Exit code 0: all jobs are done. 1: some failed, and are listed. 2: the request was wrong and nothing
was run.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

from bpgo.files import write_atomic
from bpgo.records import aligned
from reproduce import progress
from reproduce.common import (
    RequestError,
    locked,
    nearest,
    path_argument,
    read_table,
    snakemake,
)
from reproduce.notebook_source import check_parameters, parameters, read, source
from reproduce.summary import summary, table, write_tables

HERE = Path(__file__).resolve().parent
SETTINGS = {"notebook", "record", "parameters", "seeds"}


def jobs(profile):
    """The jobs of a profile, {name: {experiment, notebook, record, given}}.

    `record` is the path of the record that the job writes, `given` are the notebook's parameters.
    Raises RequestError for a profile, setting, notebook or parameter that does not exist, and for
    a parameter of the wrong type.
    """
    path = Path("reproduce") / f"{profile}.yaml"
    if not path.exists():
        near = nearest(profile, [other.stem for other in path.parent.glob("*.yaml")])
        raise RequestError(f"there is no profile {profile!r} in {path.parent}{near}")
    found = {}
    for experiment, settings in read_table(path).items():
        for key in settings.keys() - SETTINGS:
            raise RequestError(
                f"{path}: {experiment} has an unknown key {key!r}{nearest(key, SETTINGS)}"
            )
        for key in {"notebook", "record"} - settings.keys():
            raise RequestError(f"{path}: {experiment} does not say which {key}: add `{key}: name`")
        for seed in settings.get("seeds", [None]):
            name = experiment if seed is None else f"{experiment}-seed{seed}"
            found[name] = _job(experiment, settings, seed, f"reproduce/results/{profile}/{name}")
    return found


def _job(experiment, settings, seed, folder):
    """One job: an experiment with a seed, or without one if `seed` is None."""
    notebook = source(settings["notebook"], ".")
    given = settings.get("parameters", {}) | {"output": folder}
    if seed is not None:
        given["seeds"] = [seed]
    return {
        "experiment": experiment,
        "notebook": notebook.stem,
        "record": f"{folder}/{settings['record']}.json",
        "given": check_parameters(given, parameters(read(notebook)), notebook.stem),
    }


def write_jobs(profile, work):
    """Write down the jobs of a profile for the Snakefile."""
    found = {}
    for name, job in work.items():
        pairs = [f"{key}={json.dumps(value)}" for key, value in job["given"].items()]
        found[name] = {
            "notebook": job["notebook"],
            "record": job["record"],
            "stamp": stamp(job["record"]),
            "arguments": " ".join(f"-p {shlex.quote(pair)}" for pair in pairs),
            "code": code(job),
        }
    write_atomic(Path("runs") / profile / "jobs.json", json.dumps(found, indent=1) + "\n")


def stamp(record):
    """The path of the file that marks a record as made on this machine. Git ignores it."""
    return record.replace("reproduce/results/", "runs/", 1).removesuffix(".json") + ".made"


def code(job):
    """{part: digest} of the files that a job's numbers depend on: its notebook and the package."""
    return {
        "notebook": _digest([source(job["notebook"], ".")]),
        "bpgo": _digest(sorted(Path("bpgo").rglob("*"))),
    }


def _digest(paths):
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path.as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def clear_stale(work):
    """Delete training runs made with other code or parameters, so that no job resumes from them."""
    for job in work.values():
        runs = Path(job["record"]).parent / "runs"
        mark, now = runs / "code.json", json.dumps([code(job), job["given"]])
        if runs.exists() and not (mark.exists() and mark.read_text(encoding="utf-8") == now):
            shutil.rmtree(runs)
        runs.mkdir(parents=True, exist_ok=True)
        write_atomic(mark, now)


def failures(work, started):
    """{job: reason} of the jobs without a record. The reason is the last error in the notebook."""
    failed = {}
    for name, job in work.items():
        if not (os.path.exists(job["record"]) and os.path.exists(stamp(job["record"]))):
            failed[name] = _reason(Path(job["record"]).with_suffix(".ipynb"), started)
    return failed


def _reason(notebook, started):
    # A cluster's executor creates the log as an empty file before the job starts.
    if not notebook.exists() or not notebook.stat().st_size or notebook.stat().st_mtime < started:
        return "was not run, or could not start: see above"
    errors = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        errors += [out for out in cell.get("outputs", ()) if out["output_type"] == "error"]
    if not errors:
        return f"see above, and {notebook}"
    return f"{errors[-1]['ename']}: {errors[-1]['evalue']}"


def write_reports(profile, work):
    """Write a report of the training runs of each experiment, and print where they are."""
    folders = {}
    for job in work.values():
        found = sorted(Path(job["record"]).parent.glob("runs/*/config.json"))
        folders.setdefault(job["experiment"], []).extend(file.parent for file in found)
    for experiment, runs in folders.items():
        if not runs:
            continue
        from bpgo.report import write_report  # imports torch

        file = Path("runs") / profile / f"{experiment}.html"
        try:
            print(f"report: {write_report(runs, file)}")
        except OSError as error:
            print(f"the report {file} could not be written: {error}", file=sys.stderr)


def main(arguments=None):
    """Run a profile. Returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.cluster and not Path(options.cluster, "config.yaml").is_file():
        print(
            f"run.py: {options.cluster} contains no config.yaml for Snakemake: "
            f"give a folder such as reproduce/slurm",
            file=sys.stderr,
        )
        return 2
    cluster = options.cluster and Path(options.cluster).resolve()
    os.chdir(options.root)
    try:
        work = jobs(options.profile)
    except RequestError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    with locked(Path("runs") / options.profile / ".lock") as lock:
        started = time.time()
        clear_stale(work)
        write_jobs(options.profile, work)
        with progress.shown(
            [(j["record"], stamp(j["record"]), progress.runs_of(j)) for j in work.values()]
        ):
            exit_code = snakemake([], f"profile={options.profile}", lock, cluster)
        failed, rows = failures(work, started), summary(work)
        if rows:
            lines = table(rows)
            folder = Path("reproduce/results") / options.profile
            write_tables(folder, rows, lines, options.profile)
            print(f"\n{aligned(lines)}\n(also {folder}/table.md and table.csv)")
        write_reports(options.profile, work)
    for name, reason in failed.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    if exit_code and not failed:
        print(
            f"FAILED: Snakemake ended with code {exit_code}; the numbers may be out of date",
            file=sys.stderr,
        )
    return 1 if exit_code or failed else 0


def _parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--profile", default="quick", help="the name of a file reproduce/*.yaml (%(default)s)"
    )
    parser.add_argument(
        "--cluster",
        type=path_argument,
        help="a folder with Snakemake's settings for a cluster: reproduce/slurm",
    )
    parser.add_argument(
        "--root",
        type=path_argument,
        default=HERE.parent,
        help="the folder that contains notebooks/ and reproduce/",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
