"""The driver of a profile: which jobs it runs, how it resumes after a kill, and what it reports.

The notebook of these tests trains nothing.
"""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
from snakemake.utils import available_cpu_count

from reproduce import run, summary
from tests.reproduce import driver
from tests.reproduce.driver import (
    ROOT,
    end,
    ran,
    record_of,
    set_seeds,
    stamp_of,
    unfinished,
    wait_until,
)

needs_two_cores = pytest.mark.skipif(
    available_cpu_count() < 2, reason="the waiting job takes one core"
)


def start_until_only_seed_1_is_unfinished(root, start):
    """Start with seeds 0 and 1, of which seed 1 waits. Returns the process once seed 0 is done."""
    set_seeds(root, [0, 1])
    (root / "wait1").touch()
    process = start(root)
    wait_until(lambda: stamp_of(root, 0).exists() and "1" in ran(root), process)
    wait_until(lambda: all("seed1" in name for name in unfinished(root)), process)
    return process


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, start):
    """A profile that was killed when only seed 1 was unfinished, and started again with seed 2.

    In the second start seed 1 fails. Returns the folder, and exit code, output and errors of both.
    """
    root = driver.make_root(tmp_path_factory.mktemp("resumed"))
    first = start_until_only_seed_1_is_unfinished(root, start)
    os.killpg(first.pid, signal.SIGKILL)
    killed = end(first)
    (root / "wait1").unlink()
    (root / "fail1").touch()
    set_seeds(root, [0, 1, 2])
    return root, killed, end(start(root))


@needs_two_cores
def test_a_killed_study_resumes(resumed):
    root, (killed, _, _), (_, out, err) = resumed
    assert killed == -signal.SIGKILL
    assert [ran(root).count(seed) for seed in "012"] == [1, 2, 1], err
    threads = set((root / "ran").read_text().split()[1::2])
    assert threads == {"1"}
    assert "t2i" in out and "bpgo" in out


@needs_two_cores
def test_a_failure_stops_no_other_job_and_is_listed(resumed):
    root, _, (code, _, err) = resumed
    assert code == 1
    assert err.splitlines()[-1] == "FAILED t2i-seed1: ValueError: seed 1 was asked to fail"
    assert [record_of(root, seed).exists() for seed in range(3)] == [True, False, True]
    assert record_of(root, 1).with_suffix(".ipynb").exists()  # a person can read it
    results = root / "reproduce" / "results" / "quick"
    rows = list(csv.DictReader((results / "table.csv").open()))
    assert [row["objective"] for row in rows] == ["before", "grpo", "bpgo"]
    assert [float(row["mean"]) for row in rows] == [1, 2, 3]
    assert {row["seeds"] for row in rows} == {"2"}
    assert "| t2i | bpgo | 2 | 3.000 ± 12.706 |\n" in (results / "table.md").read_text()


@needs_two_cores
@pytest.mark.slow
def test_a_study_is_waited_for_if_only_its_driver_was_killed(root, start):
    process = start_until_only_seed_1_is_unfinished(root, start)
    process.kill()
    process.wait()
    again = start(root)
    assert again.stdout.readline().startswith(
        f"waiting for process {process.pid}, which is at work in runs/quick"
    )
    (root / "wait1").unlink()
    code, _, err = end(again)
    assert code == 0, err
    assert sorted(ran(root)) == ["0", "1"]


@pytest.mark.slow
def test_only_missing_and_outdated_jobs_are_run(root, start):
    def run_again():
        (root / "ran").unlink(missing_ok=True)
        code, _, err = end(start(root))
        assert code == 0, err
        return sorted(ran(root))

    assert run_again() == ["0", "1", "2"]
    set_seeds(root, [0, 1, 2, 3])
    assert run_again() == ["3"]
    script = root / "notebooks" / "02_train.py"
    os.utime(script)
    stamp_of(root, 1).unlink()  # as in a fresh clone that contains the record
    record_of(root, 2).unlink()
    assert run_again() == ["1", "2"]
    script.write_text(driver.NOTEBOOK.replace("seed + i", "seed - i"))
    assert run_again() == ["0", "1", "2", "3"]
    (root / "bpgo" / "module.py").write_text("a = 1\n")
    set_seeds(root, [2])
    assert run_again() == ["2"]


@pytest.mark.parametrize(
    ("profile", "message"),
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
def test_a_wrong_profile_is_refused_before_anything_runs(
    profile, message, root, capsys, monkeypatch
):
    monkeypatch.chdir(root)  # main() changes the folder, and this changes it back
    (root / "reproduce" / "quick.yaml").write_text(profile)
    assert run.main(["--root", str(root)]) == 2
    assert message in capsys.readouterr().err
    assert not (root / "runs").exists()


def test_an_unknown_profile_is_refused(root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    assert run.main(["--root", str(root), "--profile", "quik"]) == 2
    message = "there is no profile 'quik' in reproduce: did you mean 'quick'?"
    assert message in capsys.readouterr().err


# study.yaml is not a profile but the study's table of runs: see test_study.py.
@pytest.mark.parametrize(
    "profile", sorted({path.stem for path in (ROOT / "reproduce").glob("*.yaml")} - {"study"})
)
def test_our_own_profiles_fit_the_notebooks(profile, monkeypatch):
    monkeypatch.chdir(ROOT)
    work = run.jobs(profile)
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
    rows = summary.summary(work)
    assert [row[:2] for row in rows] == [("t2i", "before"), ("t2i", "grpo")]
    mean, width = summary.interval(rows[0][2]["reward"])
    t_quantile = 4.302652729911275  # of 2 degrees of freedom; the standard deviation is 1
    assert mean == 2 and width == pytest.approx(t_quantile / 3**0.5)
    head, before, grpo = summary.table(rows)
    assert head[:5] == ["experiment", "objective", "seeds", "reward", "held-out reward"]
    assert before[:5] == ["t2i", "before", "3", "2.000 ± 2.484", "-"]
    assert grpo[:5] == ["t2i", "grpo", "3", "4.000 ± 4.968", "0.500"]
    assert len(head) == len(before) == len(grpo) == 5  # no column that is empty in every row


def test_training_runs_of_other_code_or_parameters_are_not_resumed(root, monkeypatch):
    monkeypatch.chdir(root)
    work = run.jobs("quick")
    half = Path(next(iter(work.values()))["record"]).parent / "runs" / "grpo-0"
    half.mkdir(parents=True)
    run.clear_stale(work)  # nothing says which code made these runs
    assert not half.exists()
    half.mkdir()
    run.clear_stale(work)
    assert half.exists()
    profile = root / "reproduce" / "quick.yaml"
    profile.write_text(profile.read_text().replace("[grpo, bpgo]", "[grpo]"))
    work = run.jobs("quick")
    run.clear_stale(work)  # other parameters
    assert not half.exists()
    half.mkdir()
    script = root / "notebooks" / "02_train.py"
    script.write_text(script.read_text() + "\n# %%\nprint('changed')\n")
    run.clear_stale(work)
    assert not half.exists()


def test_a_job_that_could_not_start_is_listed_as_such(tmp_path):
    """A cluster leaves an empty log if its job never started: a notebook without an error."""
    empty = tmp_path / "executed.ipynb"
    empty.touch()
    for notebook in (empty, tmp_path / "none.ipynb"):
        assert run._reason(notebook, 0.0) == "was not run, or could not start: see above"
