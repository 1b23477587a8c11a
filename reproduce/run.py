"""Run a profile of the study, side by side on all cores, and print its table.

    python reproduce/run.py [--profile quick] [--cluster reproduce/slurm]

`reproduce/<profile>.yaml` lists experiments, {name: {notebook, record, parameters, seeds}}. Each seed is a
job of its own, handed to the notebook as `seeds=[seed]`, that leaves its record and the executed notebook in
`reproduce/results/<profile>/<job>/`. Only missing or outdated jobs are run; a run that was killed, in any
way, goes on where it was when it is started again.

Exit code 0: all is there; 1: some jobs failed, and are listed; 2: the request was wrong, nothing was run.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import yaml
from scipy.stats import t as student

from bpgo.files import write_atomic
from bpgo.records import aligned, read_record
from reproduce.notebooks import (
    RequestError,
    Yaml,
    check_parameters,
    locked,
    nearest,
    parameters,
    read,
    source,
)

HERE = Path(__file__).resolve().parent
SETTINGS = {"notebook", "record", "parameters", "seeds"}
# A record with values {"before": {metric: number}, objective: {metric: number}, ...} goes into the table.
METRICS = {
    "reward": "reward",
    "held_out": "held-out reward",
    "accuracy": "oracle accuracy",
    "accuracy_specified": "specified only",
    "motion": "motion",
    "visual": "visual quality",
    "overall": "overall",
    "flicker": "flicker",
    "first_frame": "first-frame distance",
    "diversity": "diversity",
    "distance": "distance",
    "seconds_per_iteration": "s/iteration",
}


def jobs(profile):
    """{job name: {experiment, notebook, record, given}} of a profile; `record` is the path it is to leave.

    Raises RequestError for a profile, setting, notebook or parameter that does not exist or does not fit.
    """
    path = Path("reproduce") / f"{profile}.yaml"
    if not path.exists():
        near = nearest(profile, [other.stem for other in path.parent.glob("*.yaml")])
        raise RequestError(f"there is no profile {profile!r} in {path.parent}{near}")
    found = {}
    for experiment, settings in yaml.load(path.read_text(), Yaml).items():
        for key in settings.keys() - SETTINGS:
            raise RequestError(
                f"{path}: {experiment} has an unknown key {key!r}{nearest(key, SETTINGS)}"
            )
        for key in {"notebook", "record"} - settings.keys():
            raise RequestError(f"{path}: {experiment} does not say which {key}: add `{key}: name`")
        for seed in settings.get("seeds", [None]):
            name = experiment if seed is None else f"{experiment}-seed{seed}"
            folder = f"reproduce/results/{profile}/{name}"
            given = settings.get("parameters", {}) | ({} if seed is None else {"seeds": [seed]})
            notebook = source(settings["notebook"], ".")
            given = check_parameters(
                given | {"output": folder}, parameters(read(notebook)), notebook.stem
            )
            record = f"{folder}/{settings['record']}.json"
            found[name] = dict(
                experiment=experiment, notebook=notebook.stem, record=record, given=given
            )
    return found


def arguments(job):
    """A job's parameters, as the shell hands them to `notebooks.py run`."""
    return " ".join(
        f"-p {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in job["given"].items()
    )


def stamp(record):
    """The file, which git ignores, that says that a record was made here."""
    return record.replace("reproduce/results/", "runs/", 1).removesuffix(".json") + ".made"


def code(job):
    """{part: digest} of the files that a job's numbers depend on: its notebook, the package, and what both read."""
    parts = {"notebook": [source(job["notebook"], ".")]}
    parts |= {folder: sorted(Path(folder).rglob("*")) for folder in ("bpgo", "bpgo/presets")}
    return {part: _digest(paths) for part, paths in parts.items()}


def _digest(paths):
    digest = hashlib.sha256()
    for path in (path for path in paths if path.is_file() and path.suffix != ".pyc"):
        digest.update(f"{path.as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def clear_stale(work):
    """Delete the training runs, finished or not, of other code or parameters: a job goes on only from runs of its own."""
    for job in work.values():
        runs, now = Path(job["record"]).parent / "runs", json.dumps([code(job), job["given"]])
        mark = runs / "code.json"
        if runs.exists() and not (mark.exists() and mark.read_text() == now):
            shutil.rmtree(runs)
        runs.mkdir(parents=True, exist_ok=True)
        write_atomic(mark, now)


def snakemake(profile, lock, cluster=None):
    """Run what is to be run; Snakemake's exit code. It holds `lock` as long as it lives, whatever ends us."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        HERE / "Snakefile",
        "--config",
        f"profile={profile}",
    ]
    command += ["--profile", cluster] if cluster else ["--cores", "all"]
    command += ["--keep-going", "--rerun-incomplete"]
    # Snakemake's own lock outlives a kill and then stops the next run; ours serves as well, and does not.
    command += ["--nolock", "--quiet", "host", "reason", "rules", "progress"]
    process = subprocess.Popen(command, pass_fds=[lock.fileno()])
    try:
        return process.wait()
    except KeyboardInterrupt:  # which the terminal sent Snakemake as well: let it end its jobs
        return process.wait()


def failures(work, started):
    """{job: why} of the jobs without a record; the reason is the last error in the executed notebook."""
    return {
        name: _reason(Path(job["record"]).with_suffix(".ipynb"), started)
        for name, job in work.items()
        if not (os.path.exists(job["record"]) and os.path.exists(stamp(job["record"])))
    }


def _reason(notebook, started):
    # A cluster's executor makes the log's empty file before the job begins.
    if not notebook.exists() or not notebook.stat().st_size or notebook.stat().st_mtime < started:
        return "was not run, or could not begin: see above"
    cells = nbformat.read(notebook, as_version=4).cells
    errors = [
        out for cell in cells for out in cell.get("outputs", ()) if out.output_type == "error"
    ]
    return f"{errors[-1].ename}: {errors[-1].evalue}" if errors else f"see above, and {notebook}"


def summary(work):
    """[(experiment, row, {metric: values over seeds})] of the records there are, in the profile's order."""
    rows = {}
    for job in work.values():
        values = read_record(job["record"])["values"] if os.path.exists(job["record"]) else {}
        for row, measured in values.items() if "before" in values else ():
            per_metric = rows.setdefault(
                (job["experiment"], row), {metric: [] for metric in METRICS}
            )
            for metric in METRICS:
                if measured.get(metric) is not None:
                    per_metric[metric].append(measured[metric])
    return [(*key, per_metric) for key, per_metric in rows.items()]


def interval(values):
    """Mean and half width of its 95 % t interval over seeds; the width is None for a single seed."""
    if len(values) < 2:
        return statistics.fmean(values), None
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(student.ppf(0.975, len(values) - 1)) * error


def table(rows):
    """The summary as lines of text cells: mean, or mean ± half width of the 95 % interval, of each metric that any row has."""
    metrics = [metric for metric in METRICS if any(measured[metric] for _, _, measured in rows)]
    lines = [["experiment", "objective", "seeds", *(METRICS[metric] for metric in metrics)]]
    for experiment, row, measured in rows:
        seeds = str(max(map(len, measured.values())))
        lines.append([experiment, row, seeds, *(_cell(measured[metric]) for metric in metrics)])
    return lines


def _cell(values):
    if not values:
        return "-"
    mean, width = interval(values)
    return f"{mean:.3f}" if width is None else f"{mean:.3f} ± {width:.3f}"


def write_tables(folder, rows, lines, profile):
    """`table.md` for people and `table.csv`, one line a number, for machines."""
    note = f"Mean ± half width of its 95 % t interval over seeds. `make reproduce ARGS='--profile {profile}'`"
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    write_atomic(
        folder / "table.md", "\n".join([note, "", head, "|---" * len(lines[0]) + "|", *body]) + "\n"
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["experiment", "objective", "metric", "seeds", "mean", "half_width"])
    for experiment, row, measured in rows:
        for metric, values in measured.items():
            if values:
                writer.writerow([experiment, row, metric, len(values), *interval(values)])
    write_atomic(folder / "table.csv", text.getvalue())


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--profile", default="quick", help="the name of a reproduce/*.yaml (%(default)s)"
    )
    parser.add_argument(
        "--cluster",
        help="a folder with Snakemake's settings for a cluster, such as reproduce/slurm",
    )
    parser.add_argument(
        "--root", default=HERE.parent, help="the folder that holds notebooks/ and reproduce/"
    )
    options = parser.parse_args(words)
    if options.cluster and not Path(options.cluster, "config.yaml").is_file():
        print(
            f"reproduce/run.py: {options.cluster} holds no config.yaml for Snakemake: give a folder such as reproduce/slurm",
            file=sys.stderr,
        )
        return 2
    cluster = options.cluster and Path(options.cluster).resolve()
    os.chdir(options.root)
    try:
        work = jobs(options.profile)
    except RequestError as error:
        print(f"reproduce/run.py: {error}", file=sys.stderr)
        return 2
    with locked(Path("runs") / options.profile / ".lock") as lock:
        started = time.time()
        clear_stale(work)
        ended = snakemake(options.profile, lock, cluster)
        failed, rows = failures(work, started), summary(work)
        if rows:
            lines = table(rows)
            folder = Path("reproduce/results") / options.profile
            write_tables(folder, rows, lines, options.profile)
            print(f"\n{aligned(lines)}\n(also {folder}/table.md and table.csv)")
    for name, why in failed.items():
        print(f"FAILED {name}: {why}", file=sys.stderr)
    if ended and not failed:
        print(
            f"FAILED: Snakemake ended with code {ended}; the numbers may be out of date",
            file=sys.stderr,
        )
    return 1 if ended or failed else 0


if __name__ == "__main__":
    sys.exit(main())
