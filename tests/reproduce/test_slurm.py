"""The study through a real SLURM scheduler on this machine: `make test ARGS="-m slurm"`, as root.

Needs `apt-get install slurm-wlm munge` and `pip install snakemake-executor-plugin-slurm`. All parts
listen on the loopback interface only.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.reproduce.driver import ENVIRONMENT, ROOT, RUN, ran

pytestmark = pytest.mark.slurm
# srun looks here inside a job, to which SLURM_CONF is not passed on.
CONFIG_FILE = Path("/etc/slurm/slurm.conf")
CONFIG = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmUser=slurm
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={state}
SlurmdSpoolDir={spool}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MinJobAge=300
DefMemPerCPU=500
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 CoresPerSocket=2 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES MaxTime=300 State=UP
"""


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """A scheduler with one node, which is this machine."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    programs = ("munged", "slurmctld", "slurmd")
    missing = [name for name in programs if not shutil.which(name, path=path)]
    if missing or os.geteuid():
        needed = ", ".join(missing) or "nothing else"
        pytest.fail(f"this needs root and {needed}: apt-get install slurm-wlm munge")
    if CONFIG_FILE.exists():
        pytest.fail(f"{CONFIG_FILE} exists: this test would start a second scheduler")
    folder = tmp_path_factory.mktemp("slurm")
    for part in (folder, *folder.parents):
        part.chmod(part.stat().st_mode | 0o055)  # slurm's user must be able to enter
    with configured(folder), munge(), daemons(folder):
        yield


@contextmanager
def configured(folder):
    state, spool = folder / "state", folder / "spool"
    for place in (state, spool):
        place.mkdir()
    shutil.chown(state, "slurm")
    host = socket.gethostname().partition(".")[0]
    CONFIG_FILE.parent.mkdir(exist_ok=True)
    CONFIG_FILE.write_text(CONFIG.format(host=host, state=state, spool=spool))
    try:
        yield
    finally:
        CONFIG_FILE.unlink()


@contextmanager
def munge():
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge")
    # It refuses to start if another one is running.
    as_munge = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"]
    subprocess.run([*as_munge, "munged"], check=True)
    process = int(Path("/run/munge/munged.pid").read_text())
    try:
        yield
    finally:
        os.kill(process, signal.SIGTERM)


@contextmanager
def daemons(folder):
    with (folder / "log").open("w") as log:
        started = [
            subprocess.Popen([name, "-D", "-f", CONFIG_FILE], stdout=log, stderr=log)
            for name in ("slurmctld", "slurmd")
        ]
    try:
        for _ in range(100):
            if "idle" in node_states():
                break
            time.sleep(0.2)
        else:
            pytest.fail(f"the scheduler did not start: {(folder / 'log').read_text()[-2000:]}")
        yield
    finally:
        for daemon in started:
            daemon.terminate()
            daemon.wait(20)


def node_states():
    return subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout


def run_study(root):
    command = [sys.executable, RUN, "--root", root, "--cluster", ROOT / "reproduce" / "slurm"]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_each_seed_is_a_job_and_what_failed_is_run_again(scheduler, root):
    (root / "fail1").touch()
    first = run_study(root)
    assert first.returncode == 1, first.stderr
    assert "FAILED t2i-seed1" in first.stderr
    (root / "fail1").unlink()
    second = run_study(root)
    assert second.returncode == 0, second.stderr
    assert sorted(ran(root)) == ["0", "1", "1", "2"]
    table = root / "reproduce" / "results" / "quick" / "table.md"
    assert "| t2i | bpgo | 3 |" in table.read_text()
