"""What the commands in this folder share: refused requests, hints, locks and Snakemake."""

import argparse
import contextlib
import difflib
import fcntl
import os
import subprocess
import sys
from pathlib import Path

from bpgo.files import expand
from bpgo.text_files import read_yaml


class RequestError(ValueError):
    """A request that cannot be carried out. The message says what, where and what to do instead."""


def read_table(path):
    """The mapping in a YAML file. Raises RequestError with the line of what is wrong."""
    try:
        table = read_yaml(path)
    except ValueError as error:
        raise RequestError(str(error)) from error
    if not isinstance(table, dict):
        raise RequestError(f"{path} has no entries: write lines of `key: value`")
    return table


def path_argument(text):
    """A path on the command line, with `~` expanded."""
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def nearest(word, known):
    """The end of an error message: the known name that `word` is most like, or all known names."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f": did you mean {near[0]!r}?"
    return f": there are {', '.join(sorted(known)) or 'none'}"


@contextlib.contextmanager
def locked(path):
    """Hold the lock file `path`, and yield it open. If another process holds it, name it and wait.

    The lock is released when the process ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            print(
                f"waiting for process {file.read()}, which is at work in {path.parent}", flush=True
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file


def snakemake(options, config, lock, cluster=None, cores="all"):
    """Run the Snakefile of this folder. Returns Snakemake's exit code, or 130 if interrupted.

    options: targets and further options. config: the `key=value` that the Snakefile reads.
    cluster: a folder with Snakemake's settings for a cluster; without one, `cores` of this machine
    are used. Snakemake inherits the file `lock`, so the lock is held until Snakemake ends, even if
    this process is killed first.
    """
    snakefile = Path(__file__).resolve().parent / "Snakefile"
    command = [sys.executable, "-m", "snakemake", "--snakefile", snakefile, *options]
    command += ["--config", config]
    command += ["--profile", cluster] if cluster else ["--cores", str(cores)]
    command += ["--keep-going", "--rerun-incomplete"]
    # Snakemake's own lock would survive a kill and stop the next run. Our lock does not.
    command += ["--nolock", "--quiet", "host", "reason", "rules", "progress"]
    process = subprocess.Popen(command, pass_fds=[lock.fileno()])
    try:
        return process.wait()
    except KeyboardInterrupt:
        # The terminal has interrupted Snakemake too: wait until it has ended its jobs.
        process.wait()
        return 130
