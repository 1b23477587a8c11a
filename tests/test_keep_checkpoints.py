"""Which checkpoints of a run are deleted: all but the newest ones and the best one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpgo.checkpoint import best_checkpoint, checkpoint_folder, to_delete
from bpgo.config import ConfigError, read_config

RUN = Path("run")


def folders(*iterations):
    return [checkpoint_folder(RUN, n) for n in iterations]


def rows(**values):
    """Rows of evaluations.jsonl: at_20=0.5 is a reward of 0.5 at iteration 20."""
    return [{"iteration": int(k.removeprefix("at_")), "reward": v} for k, v in values.items()]


@pytest.mark.parametrize(
    ("keep", "best", "deleted"),
    [
        (1, None, [10, 20, 30]),
        (2, None, [10, 20]),
        (4, None, []),
        (9, None, []),
        (1, 20, [10, 30]),
        (2, 40, [10, 20]),
        (3, 10, []),
    ],
)
def test_all_but_the_newest_and_the_best_are_deleted(keep, best, deleted):
    kept_too = None if best is None else folders(best)[0]
    assert to_delete(folders(10, 20, 30, 40), keep, kept_too) == folders(*deleted)


def test_a_run_keeps_at_least_one_checkpoint():
    assert to_delete([], 1) == []
    with pytest.raises(ValueError, match="at least one checkpoint must be kept, not 0"):
        to_delete(folders(10), 0)


def test_the_best_has_the_highest_value_at_its_own_iteration():
    evaluations = rows(at_0=9.0, at_10=0.1, at_15=8.0, at_20=0.7, at_30=-1.0)
    best = best_checkpoint(folders(10, 20, 30, 40), evaluations, "reward")
    assert best == folders(20)[0], "0 and 15 have no checkpoint, and 40 no evaluation"
    assert best_checkpoint(folders(30, 40), evaluations, "reward") == folders(30)[0]


def test_of_equal_ones_the_oldest_is_the_best():
    evaluations = rows(at_10=0.1, at_20=0.7, at_30=0.7)
    assert best_checkpoint(folders(10, 20, 30), evaluations, "reward") == folders(20)[0]


@pytest.mark.parametrize(
    ("evaluations", "metric"),
    [([], "reward"), (rows(at_10=None), "reward"), (rows(at_10=1.0), "held_out")],
)
def test_without_a_value_there_is_no_best(evaluations, metric):
    assert best_checkpoint(folders(10, 20), evaluations, metric) is None


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.integers(1, 4))
def test_deleting_as_the_run_goes_on_never_loses_its_best(values, keep):
    """The evaluation at a checkpoint's iteration is logged only after the checkpoint is saved."""
    present = []
    for n in range(len(values)):
        present.append(checkpoint_folder(RUN, n))
        evaluations = [{"iteration": i, "reward": v} for i, v in enumerate(values[:n])]
        best = best_checkpoint(present, evaluations, "reward")
        present = [f for f in present if f not in to_delete(present, keep, best)]
        if n:
            assert checkpoint_folder(RUN, values.index(max(values[:n]))) in present
        assert len(present) <= keep + 1
        assert present[-1] == checkpoint_folder(RUN, n)


@pytest.mark.usefixtures("one_thread")
def test_a_best_by_a_metric_that_is_not_logged_is_refused(make):
    """One metric may log several values, and each of them may be the one."""

    def both(pixels, prompts):
        return {"colour": pixels.mean((1, 2, 3)), "shape": pixels.mean((1, 2, 3))}

    given = {"metrics": {"both": both}, "evaluation": {"every": 1}}
    assert make(keep_best="shape", **given).config.keep_best == "shape"
    with pytest.raises(ValueError, match=r"keep_best=both is not .*: .* reward, colour, shape$"):
        make(keep_best="both", **given)


def test_the_best_needs_evaluations_during_the_run():
    overrides = ["keep_best=reward", "checkpoint_every=10"]
    with pytest.raises(ConfigError, match=r"set evaluation.every to a multiple of .*every=10$"):
        read_config("t2i-tiny", [*overrides, "evaluation.every=null"])
    config = read_config("t2i-tiny", [*overrides, "evaluation.every=20", "keep_checkpoints=5"])
    assert (config.keep_best, config.keep_checkpoints) == ("reward", 5)
