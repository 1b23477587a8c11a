"""Invariant 6: a run that is killed or fails, and is then resumed, equals an undisturbed one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from bpgo import checkpoint, update
from bpgo.files import read_log
from tests import small_runs as runs
from tests.small_trainers import all_equal, assert_same_run

pytestmark = pytest.mark.usefixtures("one_thread")

# Calls of the reward in a text-to-image run: 0 is the trial before training, 1 and 2 are the first
# evaluation, 3 and 4 the first two iterations, 5 and 6 an evaluation, 7 and 8 the last two
# iterations.
ITERATION_2, EVALUATION, ITERATION_3, ITERATION_4 = 4, 6, 7, 8


def names(folder):
    return [place.name for place in checkpoint.checkpoints(folder)]


def nan_in_the_second(values):
    return torch.where(torch.arange(len(values)) == 1, torch.nan, values)


# ----------------------------------------------------------------------------------------- killed


def test_killed_at_every_kind_of_moment_it_ends_as_the_undisturbed_run(
    train, undisturbed, tmp_path
):  # invariant 6
    folder = tmp_path / "run"
    rename = partial(runs.kill_before, "rename")
    moments = [
        (partial(runs.register_reward, runs.kill, ITERATION_2), []),
        (partial(runs.kill_while_writing, "checkpoint-000002"), []),
        (partial(runs.kill_before, "fsync", "checkpoint-000002"), []),
        (partial(rename, "checkpoint-000002"), []),
        (partial(runs.register_reward, runs.kill, ITERATION_4), ["checkpoint-000002"]),
        (partial(runs.kill_while_writing, "checkpoint-000004"), ["checkpoint-000002"]),
        (partial(rename, "checkpoint-000004"), ["checkpoint-000002"]),
        (runs.kill_in_export, ["checkpoint-000002", "checkpoint-000004"]),
        (partial(rename, ".final.partial"), ["checkpoint-000002", "checkpoint-000004"]),
    ]
    for moment, expected in moments:
        code, output = train(folder, moment)
        assert code == -signal.SIGKILL, output
        assert names(folder) == expected
        for place in checkpoint.checkpoints(folder):
            checkpoint.load_state(place)
        assert not (folder / "final").exists()
    code, output = train(folder)
    assert code == 0, output
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_a_killed_run_on_videos_ends_as_the_undisturbed_run(train, tmp_path, task):  # invariant 6
    """With two experts, one of them has no optimiser state at first."""
    # The prior scores the images of the prompts before training.
    first = 1 if task == "i2v" else 0
    in_reward = [
        partial(runs.register_reward, runs.kill, first + ITERATION_2),
        partial(runs.register_reward, runs.kill, first + ITERATION_3),
    ]
    moments = [
        (in_reward[0], []),
        (partial(runs.kill_while_writing, "checkpoint-000002"), []),
        (in_reward[1], ["checkpoint-000002"]),
        (runs.kill_in_export, ["checkpoint-000002", "checkpoint-000004"]),
    ]
    folder, expected = tmp_path / "run", tmp_path / "undisturbed"
    for moment, kept in moments:
        code, output = train(folder, moment, task=task)
        assert code == -signal.SIGKILL, output
        assert names(folder) == kept
    for place in (folder, expected):
        code, output = train(place, task=task)
        assert code == 0, output
    assert_same_run(folder, expected)

    early, _ = checkpoint.load_state(expected / "checkpoint-000002")
    late, state = checkpoint.load_state(expected / "checkpoint-000004")
    experts = ["transformer", "transformer_2"] if task == "i2v" else ["transformer"]
    for kind in ("weights/", "ema/", "optimiser/exp_avg_sq/"):
        stored = [name.removeprefix(kind) for name in late if name.startswith(kind)]
        assert {name.split(".")[0] for name in stored} == set(experts)
    assert state["prior"].keys() == ({"mean"} if task == "t2v" else set())
    optimised = {name.split("/")[2].split(".")[0] for name in early if name.startswith("optimiser")}
    assert len(optimised) == 1, "when checkpoint 2 was written, one expert had been trained"


@pytest.mark.slow
def test_the_command_line_killed_from_outside(resume_presets, tmp_path):
    """`python -m bpgo train`, killed after three iterations and run again."""
    overrides = ["reward.name=clip"]
    command = [sys.executable, "-m", "bpgo", "train", resume_presets["t2i"], *overrides, "--output"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = {"env": environment, "check": True, "capture_output": True}
    subprocess.run([*command, tmp_path / "expected"], **quiet)
    process = subprocess.Popen(
        [*command, tmp_path / "run"], env=environment, stderr=subprocess.DEVNULL
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, tmp_path / "run"], **quiet)
    assert_same_run(tmp_path / "run", tmp_path / "expected")


# ----------------------------------------------------------------------------------- interrupted

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_saves_the_state_and_says_where(train, undisturbed, tmp_path, number):
    """At once where nothing is lost, or else when the iteration or the checkpoint is complete."""
    folder = tmp_path / "run"
    in_reward = [
        partial(runs.register_reward, partial(runs.send, number), call)
        for call in (ITERATION_2, 2)  # 2 is that of iteration 3, after the evaluation, if resumed
    ]
    moments = [
        (in_reward[0], "checkpoint-000001"),
        (partial(runs.send_after_the_update, number, 1), "checkpoint-000002"),
        (in_reward[1], "checkpoint-000002"),
        (partial(runs.send_while_writing, number, "checkpoint-000004"), "checkpoint-000004"),
    ]
    for moment, saved in moments:
        code, output = train(folder, moment)
        message = output.rpartition("bpgo train: ")[2]
        assert code == CODES[number], output
        assert message.startswith(f"interrupted by {number.name}\nThe state after iteration ")
        assert f"is saved in {folder / saved}. Rerun the same command to resume" in message
        assert "Traceback" not in output
        assert names(folder)[-1] == saved
        assert {".lock", ".lock-owner"}.isdisjoint(place.name for place in folder.iterdir())
    code, output = train(folder)
    assert code == 0, output
    assert_same_run(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["t2i", "t2v", "i2v"])
def test_interrupted_at_twenty_random_moments_it_ends_as_the_undisturbed_run(
    resume_presets, train, tmp_path, task
):
    """Each moment is random, from the start of the process on. Seed 0."""
    rng, count, log = random.Random(0), 0, tmp_path / "log"
    code, output = train(tmp_path / "expected", task=task)
    assert code == 0, output
    started = time.monotonic()
    train(tmp_path / "timed", task=task)
    longest = time.monotonic() - started
    while count < 20:
        folder = tmp_path / f"run-{count}"
        while not (folder / "final").exists():
            process = runs.start(["train", resume_presets[task], "--output", folder], log)
            number, moment = rng.choice(list(CODES)), rng.uniform(0, longest)
            process.join(moment if count < 20 else None)
            if process.is_alive():
                os.kill(process.pid, number)
                count += 1
            process.join()
            assert process.exitcode in (0, CODES[number]), log.read_text()
        assert_same_run(folder, tmp_path / "expected")


# --------------------------------------------------------------------------- extended and complete


def test_a_shorter_run_can_be_extended_and_equals_the_longer_one(
    train, undisturbed, shorter, tmp_path
):
    folder = shutil.copytree(shorter, tmp_path / "run")
    assert (folder / "final").exists()
    assert [row["iteration"] for row in read_log(folder / "evaluations.jsonl")] == [0, 2]
    # If it is killed at its end, it must not keep the export of the shorter run.
    code, output = train(folder, runs.kill_in_export)
    assert code == -signal.SIGKILL, output
    assert not (folder / "final").exists()
    code, output = train(folder)
    assert code == 0, output
    assert_same_run(folder, undisturbed)


def test_a_complete_run_is_left_unchanged(train, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    code, output = train(folder)
    assert code == 0, output
    assert files_of(folder) == files_of(undisturbed)
    for file in files_of(undisturbed):
        assert (folder / file).read_bytes() == (undisturbed / file).read_bytes(), file


def files_of(folder):
    """All files of a run, in order."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(found) > 10
    return found


# ---------------------------------------------------------------------------------------- failed


@pytest.mark.parametrize("call", [ITERATION_2, EVALUATION, ITERATION_3])
def test_a_run_whose_reward_failed_between_checkpoints_resumes_as_if_it_had_not(
    bpgo_train, train, undisturbed, tmp_path, call
):
    """The state is that from before the iteration and its evaluation, which draw random numbers."""
    folder = tmp_path / "run"
    code, message = bpgo_train(folder, "checkpoint_every=4", reward=(nan_in_the_second, call))
    assert (code, "nan" in message) == (2, True)
    expected = "checkpoint-000001" if call == ITERATION_2 else "checkpoint-000002"
    assert names(folder) == [expected]
    code, output = train(folder)
    assert code == 0, output
    assert_same_run(folder, undisturbed)


def test_an_error_after_the_first_optimiser_step_saves_nothing(make, monkeypatch):
    """The state from before the iteration is gone by then."""
    trainer, loss = make(optimiser={"updates": 2}), update.surrogate_loss

    def failing(*given):
        if trainer.optimiser_steps == 3:
            raise ValueError("in the second update of the second iteration")
        return loss(*given)

    monkeypatch.setattr(update, "surrogate_loss", failing)
    with pytest.raises(ValueError, match="in the second update"):
        trainer.train()
    assert names(trainer.output) == []


def test_an_error_after_the_prior_has_learnt_saves_what_it_had_learnt_before(make):
    trainer = make()
    objective, priors = trainer.objective, []

    def failing(rewards, prior, k):
        priors.append(trainer.prior.state())
        if len(priors) == 2:
            raise ValueError("after the prior has learnt")
        return objective(rewards, prior, k)

    trainer.objective = failing
    with pytest.raises(ValueError, match="after the prior has learnt"):
        trainer.train()
    assert priors[0] != priors[1]
    _, state = checkpoint.load_state(trainer.output / "checkpoint-000001")
    assert state == state | {"iteration": 1, "prior": priors[0]}


FAILURES = {
    "nan": (nan_in_the_second, "returned nan for prompt"),
    "infinity": (lambda values: values / 0, "inf for prompt"),
    "shape": (lambda values: values[:-1], "returned shape (5,) for 6 images"),
    "two dimensions": (lambda values: values[:, None], "returned shape (6, 1) for 6 images"),
    "ValueError": (lambda values: int("no number"), "raised ValueError: invalid literal"),
    "ZeroDivisionError": (lambda values: 1 / 0, "raised ZeroDivisionError: division by zero"),
    "None": (lambda values: None, "returned NoneType, not numbers"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_reward_that_fails_is_named_and_leaves_the_state_before_it(
    bpgo_train, shorter, tmp_path, kind
):
    act, says = FAILURES[kind]
    folder = shutil.copytree(shorter, tmp_path / "run")
    code, message = bpgo_train(folder, reward=(act, 3))  # the trial, an evaluation, iteration 3
    assert code == 2
    assert message.startswith("reward 'test'")
    assert says in message
    assert message.count("reward 'test'") == 1
    found, state = checkpoint.load_state(folder / "checkpoint-000002")
    expected, expected_state = checkpoint.load_state(shorter / "checkpoint-000002")
    assert all_equal(found, expected)
    assert state == expected_state
    assert len(read_log(folder / "metrics.jsonl")) == 2


def test_a_full_disk_leaves_the_last_checkpoint_intact(train, undisturbed, shorter, tmp_path):
    folder = shutil.copytree(shorter, tmp_path / "run")
    too_small = 5_000_000  # a checkpoint has 17 MB
    code, output = train(folder, partial(runs.limit_file_size, too_small))
    assert code == 2, output
    assert "checkpoint-000004" in output.rpartition("bpgo train: ")[2]
    assert names(folder) == ["checkpoint-000002"]
    checkpoint.load_state(folder / "checkpoint-000002")
    assert not list(folder.glob(".checkpoint*"))
    # Now a line of a log does not fit, and half of it is written. Of the files that are written
    # before, all others are smaller.
    size = (folder / "metrics.jsonl").stat().st_size - 20
    code, output = train(folder, partial(runs.limit_file_size, size))
    assert code == 2, output
    assert "File too large" in output.rpartition("bpgo train: ")[2]
    assert not (folder / "metrics.jsonl").read_text().endswith("\n")
    code, output = train(folder)
    assert code == 0, output
    assert_same_run(folder, undisturbed)


def test_a_disk_too_full_for_the_export_leaves_none(train, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(folder / "final")
    code, output = train(folder, partial(runs.limit_file_size, 1_000_000))
    assert code == 2, output
    assert "final" in output.rpartition("bpgo train: ")[2]
    assert not (folder / "final").exists()
    code, output = train(folder)
    assert code == 0, output
    assert_same_run(folder, undisturbed)


def test_a_damaged_newest_checkpoint_is_refused_and_the_one_before_is_resumed(
    bpgo_train, undisturbed, tmp_path
):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(folder / "final")
    newest = folder / "checkpoint-000004"
    data = (newest / "state.safetensors").read_bytes()
    (newest / "state.safetensors").write_bytes(data[:-1000])
    code, message = bpgo_train(folder)
    assert code == 2
    assert "checkpoint-000004 is damaged" in message
    assert (folder / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    shutil.rmtree(newest)
    code, message = bpgo_train(folder)
    assert code == 0, message
    assert_same_run(folder, undisturbed)
