"""The study: its table of runs, one run and its record, records of older code, and kills."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from bpgo.config import to_dict
from bpgo.files import SHIPPED
from reproduce import study, study_plan
from reproduce.analysis import evidence
from reproduce.code_digest import code_digest
from tests.reproduce.driver import ENVIRONMENT, ROOT, wait_until

PLAN = """\
tasks:
  t2i: {preset: t2i-tiny, settings: {SETTINGS}}
experiments:
  first:
    tasks: [t2i]
    seeds: [0]
    arms: {ceiling: {rule: ceiling}, noisy: {corruption: noise, rule: raw}}
  second: {tasks: [t2i], seeds: [0, 1], grid: {mix: [0.5], rule: [ceiling, none]}}
"""
PROMPTS = 4  # evaluation prompts of the small plan, half of which leave something open


def write_plan(folder):
    """A plan of six runs of two iterations, with few prompts. Returns its path."""
    rows = (SHIPPED / "prompts" / "evaluation.jsonl").read_text().splitlines()
    closed = [row for row in rows if json.loads(row)["bits"] == 0]
    is_open = [row for row in rows if json.loads(row)["bits"] > 0]
    few = folder / "few.jsonl"
    few.write_text("\n".join(closed[: PROMPTS // 2] + is_open[: PROMPTS // 2]) + "\n")
    settings = {
        "iterations": 2,
        "evaluation.every": 1,
        "evaluation.prompts": str(few),
        "evaluation.samples": 8,
        "evaluation.steps": 2,
        "groups": 2,
        "group_size": 4,
        "sampling.steps": 3,
        "checkpoint_every": 1,
    }
    plan = folder / "plan.yaml"
    plan.write_text(PLAN.replace("{SETTINGS}", json.dumps(settings)))
    return plan


def record_of(root, run):
    return root / "reproduce" / "results" / "study" / "runs" / f"{run}.json"


# -------------------------------------------------------------------------------- the table of runs


def test_the_table_of_runs_is_that_of_the_plan():
    rows = study_plan.table()
    plan = (ROOT / "reproduce" / "PLAN.md").read_text()
    for experiment in {row["experiment"] for row in rows}:
        assert experiment in plan or f"{experiment.partition('_')[0]}_*" in plan, experiment
    seeds = {}
    for row in rows:
        if row["experiment"] in ("ablation", "digits"):
            seeds.setdefault(row["task"], set()).add(row["seed"])
    assert seeds.keys() == {"t2i", "t2v", "i2v", "digits"}
    assert all(len(found) >= 5 for found in seeds.values())
    assert all(row["seed"] != 100 for row in rows)  # the seed of the pilots


def test_experiments_that_need_the_same_run_share_it():
    rows = study_plan.table()
    run = {(r["experiment"], r["arm"], r["seed"]): r["run"] for r in rows if r["task"] == "t2i"}
    shared = run["ablation", "bpgo", 0]
    assert shared == run["priors_t2i", "running_mean", 0]
    assert shared == run["alpha_kappa", "alpha=0.5 kappa=1.0", 0]
    assert shared == run["lambda_beta", "lam=5.0 beta=0.5", 0]
    assert shared != run["ablation", "bpgo", 1]


def test_runs_with_other_settings_have_other_names():
    by_run = {}
    for row in study_plan.table():
        settings, own = study_plan.split_settings(row["settings"])
        complete = to_dict(study_plan.configure(row["preset"], settings)), own, row["seed"]
        assert by_run.setdefault(row["run"], complete) == complete
    distinct = [json.dumps(settings, sort_keys=True) for settings in by_run.values()]
    assert len(set(distinct)) == len(distinct)


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        (
            "{tasks: [t2x], seeds: [0], arms: {a: {}}}",
            "unknown task 't2x': did you mean 't2i'?",
        ),
        ("{tasks: [t2i], seed: [0], arms: {a: {}}}", "unknown key: did you mean 'seeds'?"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_runs(
    experiment, message, tmp_path, capsys, monkeypatch
):
    plan = tmp_path / "plan.yaml"
    task = "{preset: t2i-tiny, settings: {}}"
    plan.write_text(f"tasks: {{t2i: {task}}}\nexperiments: {{a: {experiment}}}\n")
    monkeypatch.chdir(tmp_path)
    assert study.main(["list", "--plan", str(plan), "--root", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_experiment_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert study.main(["list", "ablatoin", "--root", str(tmp_path)]) == 2
    assert "there is no experiment 'ablatoin': did you mean 'ablation'?" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ one run


@pytest.fixture(scope="module")
def ceiling(tmp_path_factory):
    """A folder with the record of a run whose weights come from the truth, and its row."""
    root = tmp_path_factory.mktemp("study")
    plan = write_plan(root)
    row = next(row for row in study_plan.table(plan) if row["arm"] == "ceiling")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert study.main(["run", row["run"], "--plan", str(plan), "--root", str(root)]) == 0
    return root, plan, row


def test_a_run_leaves_its_record(ceiling):
    root, _, row = ceiling
    record = json.loads(record_of(root, row["run"]).read_text())
    assert record["run"] == row["run"] and record["code"]["digest"] == code_digest()
    assert record["settings"] == row["settings"] and record["settings"]["rule"] == "ceiling"
    assert [entry["iteration"] for entry in record["evaluations"]] == [0, 1, 2]
    for entry in record["evaluations"]:
        assert 0 <= entry["accuracy_specified"] <= 1
    assert list(record["groups"]) == ["0", "1", "2"]
    assert len(record["groups"]["0"]["agreement"]) == PROMPTS
    for columns in (record["curves"], record["groups"]["2"]):
        numbers = [value for values in columns.values() for value in values if value is not None]
        assert numbers and np.isfinite(numbers).all()
    weights = record["curves"]
    assert 0.5 <= min(weights["weight_min"]) < max(weights["weight_max"]) <= 1.5
    assert not (root / "runs" / "study" / row["run"]).exists()  # what the record needs is kept only


def test_the_tables_hold_what_is_recorded(ceiling, monkeypatch, capsys):
    root, plan, row = ceiling
    monkeypatch.chdir(root)
    assert study.main(["tables", "--plan", str(plan), "--root", str(root)]) == 0
    assert "1 of 6 runs are recorded\n" in capsys.readouterr().out
    folder = root / "reproduce" / "results" / "study"
    assert row["run"] in (folder / "runs.csv").read_text()
    assert (folder / "table.csv").read_text().count("\n") == 1 + 3  # head and evaluations


def test_again_finds_a_changed_number_and_no_other(ceiling, tmp_path, monkeypatch, capsys):
    root, plan, row = ceiling
    monkeypatch.chdir(root)
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))  # `again` sets it
    place = record_of(root, row["run"])
    original = place.read_text()
    record = json.loads(original)
    record["curves"]["reward"][1] = 0.123
    place.write_text(json.dumps(record))
    try:
        code = study.main(["again", row["run"], "--plan", str(plan), "--root", str(root)])
    finally:
        place.write_text(original)
    assert code == 1
    out = capsys.readouterr().out
    assert f"{row['run']}: 1 of " in out and "such as curves/reward/1: 0.123 before" in out


def test_again_needs_a_record(ceiling, monkeypatch, capsys):
    root, plan, _ = ceiling
    monkeypatch.chdir(root)
    other = next(row for row in study_plan.table(plan) if row["arm"] == "noisy")
    assert study.main(["again", other["run"], "--plan", str(plan), "--root", str(root)]) == 2
    assert "has no record to compare with" in capsys.readouterr().err


# --------------------------------------------------------------------------- records of older code


def test_records_of_older_code_are_listed_as_such(ceiling, monkeypatch, capsys):
    root, plan, _ = ceiling
    monkeypatch.chdir(root)

    def states():
        assert study.main(["list", "first", "--plan", str(plan), "--root", str(root)]) == 0
        *lines, counts = capsys.readouterr().out.splitlines()
        return {line.split()[-2]: line[:11].strip() for line in lines}, counts

    assert states()[0] == {"ceiling": "recorded", "noisy": "missing"}
    monkeypatch.setattr(study, "code_digest", lambda: "of another version")
    found, counts = states()
    assert found == {"ceiling": "older code", "noisy": "missing"}
    assert counts == "1 of 2 runs are recorded, 1 of them by older code (--renew repeats those)"


def test_renew_deletes_the_records_of_older_code_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "code_digest", lambda: "new")
    for run, digest in {"a": "old", "b": "new"}.items():
        place = record_of(tmp_path, run)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"code": {"digest": digest}}))
    study.delete_older([{"run": run} for run in ("a", "b", "missing", "a")])
    assert not record_of(tmp_path, "a").exists() and record_of(tmp_path, "b").exists()


def test_a_record_with_older_names_counts_for_its_run(tmp_path):
    settings = {"objective.name": "bgpo", "prior": {"kind": "constant", "value": 0.5}}
    record = {"task": "t2i", "seed": 3, "settings": settings}
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "t2i-bgpo-1234-s3.json").write_text(json.dumps(record))
    present = {"objective.name": "teleboost", "prior": {"name": "constant", "value": 0.5}}
    row = {"task": "t2i", "preset": "t2i-tiny", "settings": present}
    rows = [row | {"run": study_plan.run_name(*row.values(), seed)} for seed in (3, 4)]
    found, other = study_plan.with_recorded_names(rows, tmp_path)
    assert found == rows[0] | {"run": "t2i-bgpo-1234-s3"}
    assert other == rows[1] and other["run"].startswith("t2i-teleboost-")


def test_every_committed_record_is_that_of_a_planned_run():
    rows = study_plan.with_recorded_names(study_plan.table(), evidence.RESULTS)
    plan, records = evidence.read()
    columns = list(plan.columns)
    assert [tuple(row[name] for name in columns) for row in rows] == [*plan.itertuples(index=False)]
    assert {row["run"] for row in rows} == records.keys()


# ----------------------------------------------------------------------------------------- all runs


def start(root):
    command = [sys.executable, ROOT / "reproduce" / "study.py", "all"]
    command += ["--plan", write_plan(root.parent), "--root", root]
    return subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def results(root):
    folder = root / "reproduce" / "results" / "study"
    records = [json.loads(place.read_text()) for place in sorted((folder / "runs").glob("*.json"))]
    for record in records:
        record.pop("seconds")
    return (folder / "table.csv").read_text(), (folder / "runs.csv").read_text(), records


@pytest.mark.slow
def test_a_study_killed_three_times_ends_as_an_undisturbed_one(tmp_path):
    """SIGKILL to the driver and all that it started; then the same command again."""
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    for folder in (calm, disturbed):
        folder.mkdir()
    process = start(calm)
    assert "6 of 6 runs are recorded" in process.communicate()[0] and process.returncode == 0

    def found(pattern):
        return len(list(disturbed.glob(pattern)))

    records = "reproduce/results/study/runs/*.json"
    for condition in (
        lambda: found("runs/study/*/checkpoint-*"),
        lambda: found(records) >= 1,
        lambda: found(records) >= 3,
    ):
        process = start(disturbed)
        wait_until(condition, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process = start(disturbed)
    assert "6 of 6 runs are recorded" in process.communicate()[0] and process.returncode == 0
    assert results(disturbed) == results(calm)
    table, _, found_records = results(calm)
    assert table.count("\n") == 1 + 6 * 3
    for record in found_records:
        assert len(record["groups"]) == 3
        if record["settings"].get("rule") == "ceiling":
            curves = record["curves"]
            assert 0.5 <= min(curves["weight_min"]) < max(curves["weight_max"]) <= 1.5
