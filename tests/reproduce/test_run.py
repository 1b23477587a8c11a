"""The study's driver, on a notebook that trains nothing: what it runs, and what it makes of kills and failures."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reproduce import run as reproduce

PATIENCE = (
    600  # seconds, on a machine that is busy with something else; a minute is plenty otherwise
)
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = """\
# ---
# jupyter:
#   kernelspec: {display_name: Python 3 (ipykernel), language: python, name: python3}
# ---

# %% tags=["parameters"]
seeds: list = [0]  # one
objectives: list = ["grpo"]  # rows of the table
output: str = ""  # folder of the record

# %%
import os, time
from bpgo.records import record

(seed,) = seeds
with open("ran", "a") as log:
    log.write(f"{seed} {os.environ['OMP_NUM_THREADS']}\\n")
while os.path.exists(f"wait{seed}"):
    time.sleep(0.1)
if os.path.exists(f"fail{seed}"):
    raise ValueError(f"seed {seed} was asked to fail")

# %%
values = {row: {"reward": seed + i, "held_out": None} for i, row in enumerate(["before", *objectives])}
whole = record("text_to_image", values, output=output)
"""
PROFILE = "t2i: {notebook: 02_train, record: text_to_image, parameters: {objectives: [grpo, bpgo]}, seeds: SEEDS}\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A small study: three seeds of one notebook, which waits while `wait<seed>` exists and fails for `fail<seed>`."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for folder in ("notebooks", "reproduce", "bpgo"):
        (tmp_path / folder).mkdir()
    (tmp_path / "notebooks" / "02_train.py").write_text(NOTEBOOK)
    (tmp_path / "reproduce" / "quick.yaml").write_text(PROFILE.replace("SEEDS", "[0, 1, 2]"))
    return tmp_path


@pytest.fixture
def start(root):
    """Starts the study, each time in a process group of its own; whatever is left of them ends with the test."""
    command = [sys.executable, ROOT / "reproduce" / "run.py", "--root", root]
    pipe, started = subprocess.PIPE, []

    def popen():
        started.append(
            subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        )
        return started[-1]

    yield popen
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def end(process):
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def ran(root):
    """The seeds whose notebook was begun, in order, as text."""
    log = root / "ran"
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def record_of(root, seed):
    return root / "reproduce" / "results" / "quick" / f"t2i-seed{seed}" / "text_to_image.json"


def stamp_of(root, seed):
    return root / "runs" / "quick" / f"t2i-seed{seed}" / "text_to_image.made"


def start_and_wait_until_seed_1_is_alone_unfinished(root, start):
    (root / "wait1").touch()
    process = start()
    deadline = time.monotonic() + PATIENCE
    while not (stamp_of(root, 0).exists() and stamp_of(root, 2).exists() and "1" in ran(root)):
        assert time.monotonic() < deadline and process.poll() is None, (
            "the study did not get under way"
        )
        time.sleep(0.1)
    return process


needs_two_cores = pytest.mark.skipif(
    (os.cpu_count() or 1) < 2, reason="the waiting job takes one core"
)


@needs_two_cores
def test_a_killed_study_goes_on_where_it_was(root, start):
    process = start_and_wait_until_seed_1_is_alone_unfinished(root, start)
    os.killpg(process.pid, signal.SIGKILL)
    assert end(process)[0] == -signal.SIGKILL
    (root / "wait1").unlink()
    code, out, err = end(start())
    assert code == 0, err
    times = [ran(root).count(seed) for seed in "012"]
    assert (
        times[1] == 2 and min(times) == 1
    )  # the kill may come before Snakemake has noted the last to finish
    assert set((root / "ran").read_text().split()[1::2]) == {"1"}  # threads a job
    assert "t2i" in out and "bpgo" in out


@needs_two_cores
@pytest.mark.slow
def test_a_study_whose_driver_alone_was_killed_is_waited_for(root, start):
    process = start_and_wait_until_seed_1_is_alone_unfinished(root, start)
    process.kill()
    process.wait()
    again = start()
    assert again.stdout.readline().startswith(
        f"waiting for process {process.pid}, which is at work in runs/quick"
    )
    (root / "wait1").unlink()
    code, _, err = end(again)
    assert code == 0, err
    assert sorted(ran(root)) == ["0", "1", "2"]


def test_a_failure_stops_no_other_job_and_is_listed(root, start):
    (root / "fail1").touch()
    code, _, err = end(start())
    assert code == 1
    assert err.splitlines()[-1] == "FAILED t2i-seed1: ValueError: seed 1 was asked to fail"
    assert [record_of(root, seed).exists() for seed in range(3)] == [True, False, True]
    assert record_of(root, 1).with_suffix(".ipynb").exists()  # to be read
    rows = list(csv.DictReader((root / "reproduce" / "results" / "quick" / "table.csv").open()))
    assert [row["objective"] for row in rows] == ["before", "grpo", "bpgo"]
    assert [float(row["mean"]) for row in rows] == [1, 2, 3] and {row["seeds"] for row in rows} == {
        "2"
    }
    assert (
        "| t2i | bpgo | 2 | 3.000 ± 12.706 |\n"
        in (root / "reproduce/results/quick/table.md").read_text()
    )


@pytest.mark.slow
def test_only_what_is_missing_or_outdated_is_run(root, start):
    def runs():
        (root / "ran").unlink(missing_ok=True)
        code, _, err = end(start())
        assert code == 0, err
        return sorted(ran(root))

    assert runs() == ["0", "1", "2"]
    profile = root / "reproduce" / "quick.yaml"
    profile.write_text(PROFILE.replace("SEEDS", "[0, 1, 2, 3]"))
    assert runs() == ["3"]
    script = root / "notebooks" / "02_train.py"
    os.utime(script)
    stamp_of(root, 1).unlink()  # as in a fresh clone that brought the record along
    record_of(root, 2).unlink()
    assert runs() == ["1", "2"]
    script.write_text(NOTEBOOK.replace("seed + i", "seed - i"))
    assert runs() == ["0", "1", "2", "3"]
    (root / "bpgo" / "module.py").write_text("a = 1\n")
    profile.write_text(PROFILE.replace("SEEDS", "[2]"))
    assert runs() == ["2"]


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        (
            "a: {notebok: 02_train, record: x}",
            "a has an unknown key 'notebok': did you mean 'notebook'?",
        ),
        ("a: {notebook: 02_train}", "a does not say which record"),
        ("a: {notebook: 02_tran, record: x}", "did you mean '02_train'?"),
        (
            "a: {notebook: 02_train, record: x, parameters: {objectvs: [a]}}",
            "did you mean 'objectives'?",
        ),
        (
            "a: {notebook: 02_train, record: x, seeds: [one]}",
            "parameter seeds of notebook 02_train",
        ),
    ],
)
def test_a_wrong_profile_is_refused_before_anything_runs(profile, says, root, capsys, monkeypatch):
    monkeypatch.chdir(root)  # main() goes there, and the test comes back
    (root / "reproduce" / "quick.yaml").write_text(profile)
    assert reproduce.main(["--root", str(root)]) == 2
    assert says in capsys.readouterr().err
    assert not (root / "runs").exists()


def test_an_unknown_profile_is_refused(root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    assert reproduce.main(["--root", str(root), "--profile", "quik"]) == 2
    assert (
        "there is no profile 'quik' in reproduce: did you mean 'quick'?" in capsys.readouterr().err
    )


# study.yaml is the study's table of runs: tests/test_study.py
@pytest.mark.parametrize(
    "profile", sorted({path.stem for path in (ROOT / "reproduce").glob("*.yaml")} - {"study"})
)
def test_our_own_profiles_fit_the_notebooks(profile, monkeypatch):
    monkeypatch.chdir(ROOT)
    work = reproduce.jobs(profile)
    assert len({job["record"] for job in work.values()}) == len(work) > 1


def test_the_table_has_means_and_t_intervals(tmp_path):
    work = {}
    for seed, reward in enumerate([1.0, 2.0, 3.0]):
        path = tmp_path / f"{seed}.json"
        values = {
            "before": {"reward": reward},
            "grpo": {"reward": 2 * reward, "held_out": 0.5 if seed == 0 else None},
        }
        path.write_text(json.dumps({"name": "t", "values": values, "rtol": 0, "atol": 0}))
        work[f"t2i-seed{seed}"] = {"experiment": "t2i", "record": str(path)}
    work["t2i-seed3"] = {"experiment": "t2i", "record": str(tmp_path / "failed.json")}
    rows = reproduce.summary(work)
    assert [row[:2] for row in rows] == [("t2i", "before"), ("t2i", "grpo")]
    mean, width = reproduce.interval(rows[0][2]["reward"])
    assert mean == 2 and width == pytest.approx(
        4.302652729911275 / 3**0.5
    )  # t of 2 degrees of freedom, sd 1
    head, before, grpo = reproduce.table(rows)
    assert head[:5] == ["experiment", "objective", "seeds", "reward", "held-out reward"]
    assert before[:5] == ["t2i", "before", "3", "2.000 ± 2.484", "-"]
    assert grpo[:5] == ["t2i", "grpo", "3", "4.000 ± 4.968", "0.500"]
    assert len(head) == len(before) == len(grpo) == 5  # no column that is empty in every row


def test_training_runs_of_other_code_or_parameters_are_not_gone_on_with(root, monkeypatch):
    monkeypatch.chdir(root)
    work = reproduce.jobs("quick")
    half = Path(next(iter(work.values()))["record"]).parent / "runs" / "grpo-0"
    half.mkdir(parents=True)
    reproduce.clear_stale(work)  # nobody knows which code these were made by
    assert not half.exists()
    half.mkdir()
    reproduce.clear_stale(work)
    assert half.exists()
    profile = root / "reproduce" / "quick.yaml"
    profile.write_text(profile.read_text().replace("[grpo, bpgo]", "[grpo]"))
    work = reproduce.jobs("quick")
    reproduce.clear_stale(work)  # of other parameters
    assert not half.exists()
    half.mkdir()
    script = root / "notebooks" / "02_train.py"
    script.write_text(script.read_text() + "\n# %%\nprint('changed')\n")
    reproduce.clear_stale(work)
    assert not half.exists()


def test_a_job_that_could_not_begin_is_listed_as_that(tmp_path):
    """A cluster leaves an empty log where its job never began: no notebook to read an error from."""
    empty = tmp_path / "executed.ipynb"
    empty.touch()
    assert (
        reproduce._reason(empty, 0.0)
        == reproduce._reason(tmp_path / "none.ipynb", 0.0)
        == "was not run, or could not begin: see above"
    )
