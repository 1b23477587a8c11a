"""What a run logs: one file per kind, one JSON object per line."""

import json

import pytest
import torch

from bpgo.evaluation import Scores
from bpgo.files import read_log
from bpgo.logs import FILES, append_row, drop_rows_after, evaluation_row


def iterations(run, name):
    return [row["iteration"] for row in read_log(run / f"{name}.jsonl")]


def test_rows_are_appended_and_read_back(tmp_path):
    rows = [{"iteration": 1, "reward": 0.1}, {"iteration": 2, "reward": 1 / 3, "note": "ü\n"}]
    for row in rows:
        append_row(tmp_path, "metrics", row)
    assert read_log(tmp_path / "metrics.jsonl") == rows
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_rows_after_a_checkpoint_are_dropped_and_its_own_evaluation_too(tmp_path):
    for name in FILES:
        for iteration in range(5):
            append_row(tmp_path, name, {"iteration": iteration})
    drop_rows_after(tmp_path, 2)
    assert iterations(tmp_path, "evaluations") == [0, 1]  # it precedes the iteration's updates
    for name in ("metrics", "timing", "warnings"):
        assert iterations(tmp_path, name) == [0, 1, 2]
    drop_rows_after(tmp_path, 0)
    assert iterations(tmp_path, "evaluations") == []
    assert iterations(tmp_path, "metrics") == [0]


@pytest.mark.parametrize("rest", ['{"itera', '{"iteration": 2, "reward": 0.5}'])
def test_a_line_without_its_end_is_dropped(tmp_path, rest):
    append_row(tmp_path, "metrics", {"iteration": 1})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write(rest)
    drop_rows_after(tmp_path, 9)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 1}\n'


def test_missing_logs_stay_missing_and_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.jsonl").write_text("mine")
    drop_rows_after(tmp_path, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.jsonl"]
    assert (tmp_path / "notes.jsonl").read_text() == "mine"


def test_a_row_of_an_evaluation_has_every_score_and_null_for_what_is_not_defined():
    nan = float("nan")
    scores = {
        "reward": torch.tensor([[1.0, 2.0], [3.0, 6.0]]),
        "sometimes": torch.tensor([[nan, nan], [0.5, 1.5]]),
        "nowhere": torch.full((2, 2), nan),
    }
    row = evaluation_row(7, Scores(torch.empty(0), scores))
    line = json.dumps(row)
    assert "NaN" not in line
    assert json.loads(line) == {
        "iteration": 7,
        "reward": 3.0,
        "sometimes": 1.0,
        "nowhere": None,
        "scores": {
            "reward": [[1.0, 2.0], [3.0, 6.0]],
            "sometimes": [[None, None], [0.5, 1.5]],
            "nowhere": [[None, None], [None, None]],
        },
    }


# ------------------------------------------------------------------------------ logs of a trainer


def test_a_run_logs_metrics_times_and_evaluations(make, one_thread):
    def sometimes(pixels, prompts):
        return torch.tensor([float("nan") if p == "a shape" else 1.5 for p in prompts])

    def nowhere(pixels, prompts):
        return torch.full((len(prompts),), torch.nan)

    metrics = {"sometimes": sometimes, "nowhere": nowhere}
    trainer = make(metrics=metrics, evaluation={"every": 1}, tracker="tensorboard")
    trainer.train()
    evaluations = read_log(trainer.output / "evaluations.jsonl")
    assert [row["iteration"] for row in evaluations] == [0, 1, 2]
    expected = [[None, None] if p == "a shape" else [1.5, 1.5] for p in trainer.prompts]
    for row in evaluations:
        assert row["sometimes"] == 1.5
        assert row["nowhere"] is None
        assert row["scores"]["sometimes"] == expected
        flat = [value for values in row["scores"]["reward"] for value in values]
        assert len(flat) == 8
        assert row["reward"] == pytest.approx(sum(flat) / 8, rel=1e-5)
    logged = read_log(trainer.output / "metrics.jsonl")
    assert [row["iteration"] for row in logged] == [1, 2]
    timing = read_log(trainer.output / "timing.jsonl")
    assert [row.pop("iteration") for row in timing] == [1, 2]
    for row in timing:
        assert {"sample", "decode", "score", "update"} <= row.keys()
        assert min(row.values()) > 0
        assert row.pop("seconds") == pytest.approx(sum(row.values()))

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = trainer.output.rglob("events.out.tfevents.*")
    tracked = EventAccumulator(str(events.parent)).Reload()
    assert {"reward", "evaluation/reward", "grad_norm"} <= set(tracked.Tags()["scalars"])
    values = [scalar.value for scalar in tracked.Scalars("reward")]
    assert values == pytest.approx([row["reward"] for row in logged], rel=1e-6)
