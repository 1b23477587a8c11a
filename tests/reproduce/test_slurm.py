"""The study through a real SLURM scheduler on this machine: `make test ARGS="-m slurm"`, as root.

Needs `apt-get install slurm-wlm munge` and `pip install snakemake-executor-plugin-slurm`. Everything listens on the loopback only.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_reproduce import ROOT

pytestmark = pytest.mark.slurm
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
    missing = [
        name
        for name in ("munged", "slurmctld", "slurmd")
        if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    ]
    if missing or os.geteuid():
        pytest.fail(
            f"this needs root and {', '.join(missing) or 'nothing else'}: apt-get install slurm-wlm munge"
        )
    folder = tmp_path_factory.mktemp("slurm")
    for part in (folder, *folder.parents):
        part.chmod(part.stat().st_mode | 0o055)  # slurm's own user must pass
    state, spool = folder / "state", folder / "spool"
    for place in (state, spool):
        place.mkdir()
    shutil.chown(state, "slurm")
    config = Path(
        "/etc/slurm/slurm.conf"
    )  # where srun looks for it inside a job, to which SLURM_CONF is not passed on
    if config.exists():
        pytest.fail(f"{config} is there already: this test would start a second scheduler")
    config.parent.mkdir(exist_ok=True)
    config.write_text(
        CONFIG.format(host=socket.gethostname().partition(".")[0], state=state, spool=spool)
    )
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge")
    environment = dict(os.environ)
    subprocess.run(
        ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged"], check=True
    )  # refuses to be a second one
    munged = int(Path("/run/munge/munged.pid").read_text())
    log = (folder / "log").open("w")
    daemons = [
        subprocess.Popen([name, "-D", "-f", config], env=environment, stdout=log, stderr=log)
        for name in ("slurmctld", "slurmd")
    ]
    try:
        for _ in range(100):
            said = subprocess.run(
                ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True
            ).stdout
            if "idle" in said:
                break
            time.sleep(0.2)
        else:
            pytest.fail(f"the scheduler did not come up: {(folder / 'log').read_text()[-2000:]}")
        yield environment
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(20)
        os.kill(munged, signal.SIGTERM)
        config.unlink()


def study(root, environment):
    command = [
        sys.executable,
        ROOT / "reproduce" / "run.py",
        "--root",
        root,
        "--cluster",
        ROOT / "reproduce" / "slurm",
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_each_seed_is_a_job_and_what_failed_is_run_again(scheduler, root):
    environment = scheduler | {"PYTHONPATH": str(ROOT)}
    (root / "fail1").touch()
    first = study(root, environment)
    assert first.returncode == 1, first.stderr
    assert "FAILED t2i-seed1" in first.stderr
    (root / "fail1").unlink()
    second = study(root, environment)
    assert second.returncode == 0, second.stderr
    ran = [int(line.split()[0]) for line in (root / "ran").read_text().splitlines()]
    assert sorted(ran) == [0, 1, 1, 2]
    assert (
        "| t2i | bpgo | 3 |" in (root / "reproduce" / "results" / "quick" / "table.md").read_text()
    )
