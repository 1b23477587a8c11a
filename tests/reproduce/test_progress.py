"""The progress of a profile, and the reports that it ends with."""

import json
import re

from bpgo.config import read_config, to_dict
from reproduce import progress, run

NOTEBOOK = """\
# %% tags=["parameters"]
seeds: list = [0]  # one
objectives: list = ["grpo", "bpgo"]  # one run each
iterations: int = 10  # of a run
output: str = ""  # folder
"""


def log(folder, iterations):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"iteration": i + 1, "reward": 0.1}) + "\n" for i in range(iterations)]
    (folder / "metrics.jsonl").write_text("".join(lines))


def test_the_runs_of_a_job_are_those_of_its_parameters_and_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "02_train.py").write_text(NOTEBOOK)
    job = {"notebook": "02_train", "record": "results/a/x.json"}
    found = progress.runs_of(job | {"given": {"seeds": [3], "iterations": 24}})
    assert {str(folder): n for folder, n in found.items()} == {
        "results/a/runs/grpo-3": 24,
        "results/a/runs/bpgo-3": 24,
    }
    (tmp_path / "notebooks" / "02_train.py").write_text(NOTEBOOK.replace("iterations", "steps"))
    assert progress.runs_of(job | {"given": {}}) == {}


def test_a_run_is_complete_once_its_model_is_exported(tmp_path):
    folder = tmp_path / "run"
    assert progress.share(folder, 10) == 0
    log(folder, 4)
    assert progress.share(folder, 10) == 0.4
    log(folder, 10)
    assert 0.9 < progress.share(folder, 10) < 1
    (folder / "final").mkdir()
    assert progress.share(folder, 10) == 1


def test_jobs_without_runs_count_as_one_and_jobs_that_are_done_count_fully(tmp_path):
    record, stamp = tmp_path / "record", tmp_path / "stamp"
    runs = {tmp_path / "a": 10, tmp_path / "b": 10}
    log(tmp_path / "a", 5)
    assert progress.shares([(record, stamp, runs), (record, stamp, {})]) == [0.5, 0, 0]
    record.touch()
    stamp.touch()
    assert progress.shares([(record, stamp, runs), (record, stamp, {})]) == [1, 1, 1]


def test_the_line_says_how_many_runs_are_complete_and_the_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.01)
    runs = {tmp_path / name: 10 for name in "abcd"}
    with progress.shown([(tmp_path / "record", tmp_path / "stamp", runs)]):
        for name in "ab":
            log(tmp_path / name, 10)
            (tmp_path / name / "final").mkdir()
    last = re.split(r"[\r\n]+", capsys.readouterr().err.strip())[-1]
    assert re.fullmatch(
        r"2 of 4 runs are complete, 50 % of the work; elapsed [\d:]+, left [\d:]+", last.strip()
    )


def test_a_report_is_written_for_the_runs_of_each_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    work = {"other": {"experiment": "theory", "record": "results/theory/x.json"}}
    for seed in (0, 1):
        folder = tmp_path / "results" / f"t2i-seed{seed}" / "runs" / f"grpo-{seed}"
        log(folder, 3)
        config = to_dict(read_config("t2i-tiny", [f"seed={seed}"]))
        (folder / "config.json").write_text(json.dumps(config))
        record = f"results/t2i-seed{seed}/text_to_image.json"
        work[f"t2i-seed{seed}"] = {"experiment": "t2i", "record": record}
    run.write_reports("quick", work)
    assert capsys.readouterr().out == "report: runs/quick/t2i.html\n"
    page = (tmp_path / "runs" / "quick" / "t2i.html").read_text(encoding="utf-8")
    assert "grpo-0" in page and "grpo-1" in page and "2 runs" in page
