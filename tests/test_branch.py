"""A new run from a checkpoint of another one, with other settings."""

import json
import shutil

import pytest

from bpgo import checkpoint
from bpgo.branch import make_branch
from bpgo.checkpoint import CheckpointError, find_checkpoint
from bpgo.config import ConfigError
from bpgo.files import read_log
from bpgo.registry import TABLES
from tests import small_runs as runs
from tests.small_trainers import all_equal

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def reward_of_the_runs(monkeypatch):
    monkeypatch.setitem(TABLES["reward"], "test", None)  # removed after the test
    runs.register_reward()


def trees_of(folder):
    """Every file of a folder with its content."""
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def branch(*arguments, log):
    return runs.run(["branch", *arguments], log)


def test_a_branch_without_changes_equals_the_run(undisturbed, tmp_path):
    """It trains the same iterations to the same weights, and leaves the parent as it was."""
    before, folder = trees_of(undisturbed), tmp_path / "new"
    code, output = branch(undisturbed, "--at", 2, "--output", folder, log=tmp_path / "log")
    assert code == 0, output
    tensors, state = checkpoint.load_state(folder / "checkpoint-000004")
    expected, expected_state = checkpoint.load_state(undisturbed / "checkpoint-000004")
    assert all_equal(tensors, expected)
    assert state == expected_state
    for name in ("metrics", "evaluations"):
        assert read_log(folder / f"{name}.jsonl") == read_log(undisturbed / f"{name}.jsonl")
    assert trees_of(undisturbed) == before


def test_a_branch_records_where_it_came_from_and_resumes(undisturbed, tmp_path):
    folder, log = tmp_path / "new", tmp_path / "log"
    command = [undisturbed, "--at", 2, "--output", folder, "optimiser.learning_rate=0.01"]
    code, output = branch(*command, log=log)
    assert code == 0, output
    ancestry = json.loads((folder / "ancestry.json").read_text())
    assert ancestry["parent"] == str(undisturbed.resolve())
    assert ancestry["iteration"] == 2
    assert ancestry["changed"] == {"optimiser.learning_rate": [0.001, 0.01]}
    rows, expected = (read_log(place / "metrics.jsonl") for place in (folder, undisturbed))
    assert rows[:2] == expected[:2]
    assert rows[2] != expected[2]
    code, output = branch(*command, log=log)  # again: it is complete
    assert code == 0
    assert "is complete" in output

    grandchild = tmp_path / "newer"
    make_branch(folder, grandchild, 4, ["iterations=5"])
    found = json.loads((grandchild / "ancestry.json").read_text())
    assert found["changed"] == {"iterations": [4, 5]}
    assert found["ancestry"] == ancestry


def test_another_prior_starts_anew_and_the_same_prior_continues(undisturbed, tmp_path):
    for override, restarts in (("prior.momentum=0.5", True), ("optimiser.beta1=0.8", False)):
        folder = tmp_path / override
        make_branch(undisturbed, folder, 2, [override])
        state = checkpoint.read_state(folder / "checkpoint-000002")
        assert (state["prior"] is None) == restarts


def test_what_cannot_be_branched_is_refused_and_nothing_is_written(undisturbed, tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of iteration 3\. Its checkpoints: 2, 4$"
    ):
        make_branch(undisturbed, folder, 3, [])
    with pytest.raises(CheckpointError, match=r"there is no run in .*nowhere"):
        make_branch(tmp_path / "nowhere", folder, None, [])
    with pytest.raises(ConfigError, match="did you mean 'optimiser"):
        make_branch(undisturbed, folder, None, ["optimizer.learning_rate=0.1"])
    assert not folder.exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="mine is not empty and contains another run"):
        make_branch(undisturbed, mine, None, [])
    assert [place.name for place in mine.iterdir()] == ["notes.txt"]
    make_branch(undisturbed, folder, 2, ["seed=1"])
    with pytest.raises(CheckpointError, match="contains another run"):
        make_branch(undisturbed, folder, 2, ["seed=2"])


def test_weights_that_do_not_fit_the_new_settings_are_refused(undisturbed, tmp_path):
    folder, log = tmp_path / "new", tmp_path / "log"
    code, output = branch(undisturbed, "--output", folder, "generator.lora_rank=2", log=log)
    assert code == 2, output
    assert "the checkpoint does not fit this model" in output
    assert "lora_rank" in output


def test_a_branch_may_start_or_stop_averaging(undisturbed, tmp_path):
    expected, _ = checkpoint.load_state(undisturbed / "checkpoint-000004")
    assert any(name.startswith("ema/") for name in expected)
    folder = tmp_path / "without"
    overrides = ["optimiser.ema_decay=0", "iterations=5"]
    code, output = branch(undisturbed, "--output", folder, *overrides, log=tmp_path / "log")
    assert code == 0, output
    tensors, _ = checkpoint.load_state(folder / "checkpoint-000005")
    assert not any(name.startswith("ema/") for name in tensors)
    again = tmp_path / "with"
    overrides = ["optimiser.ema_decay=0.5", "iterations=6"]
    code, output = branch(folder, "--output", again, *overrides, log=tmp_path / "log")
    assert code == 0, output
    tensors, _ = checkpoint.load_state(again / "checkpoint-000006")
    start, _ = checkpoint.load_state(folder / "checkpoint-000005")
    name = next(name.removeprefix("ema/") for name in tensors if name.startswith("ema/"))
    # One update of an average that starts from the weights, with decay 0.5.
    mean = (start[f"weights/{name}"] + tensors[f"weights/{name}"]) / 2
    assert (tensors[f"ema/{name}"] - mean).abs().max() <= 1e-6


def test_the_newest_checkpoint_is_the_default(undisturbed, tmp_path):
    assert find_checkpoint(undisturbed).name == "checkpoint-000004"
    assert find_checkpoint(undisturbed, 2).name == "checkpoint-000002"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"has no checkpoint yet$"):
        find_checkpoint(empty)


def test_a_run_in_the_place_of_a_branch_is_left_alone(undisturbed, tmp_path):
    other = shutil.copytree(undisturbed, tmp_path / "other")
    before = trees_of(other)
    with pytest.raises(CheckpointError, match="contains another run"):
        make_branch(undisturbed, other, 2, [])
    assert trees_of(other) == before
