"""A run's folder has one run and one process at a time."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import warnings

import pytest

from bpgo.checkpoint import CheckpointError
from bpgo.config import build_config, read_config, to_dict
from bpgo.run_folder import (
    RunLockedError,
    check_same_run,
    close_run,
    differences,
    lock_run,
    open_run,
    read_settings,
)
from tests.small_trainers import merged


@pytest.fixture
def config_of(trees):
    """A config with sections as keywords."""

    def config_of(**changes):
        return build_config(merged(trees["t2i"], changes))

    return config_of


@pytest.fixture
def run_of(tmp_path):
    """A folder of a run with these settings that has completed some iterations."""

    def run_of(settings, iterations=2, checkpoints=(2,)):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(settings))
        rows = [json.dumps({"iteration": n + 1}) + "\n" for n in range(iterations)]
        (folder / "metrics.jsonl").write_text("".join(rows))
        for number in checkpoints:
            (folder / f"checkpoint-{number:06d}").mkdir()
        return folder

    return run_of


def opens(folder, config, identity=None):
    """Open the folder for a run with these settings and data, and close it."""
    lock = open_run(folder)
    try:
        check_same_run(folder, config, identity or {})
    finally:
        close_run(lock)


# --------------------------------------------------------------------------------------- settings


def test_a_new_folder_is_made_and_left_empty(config_of, tmp_path):
    folder = tmp_path / "a" / "run"
    opens(folder, config_of())
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"iterations": 9},
        {"checkpoint_every": 3},
        {"keep_checkpoints": 5},
        {"tracker": "wandb"},
        {"guards": False},
        {"evaluation": {"pictures": 0}},
        {"generator": {"vae_tiling": True}},
        {"generator": {"offload": True}},
        {"generator": {"gradient_checkpointing": True}},
        {"reward": {"time_limit": 5.0}},
        {"reward": {"process": True}},
        {"reward": {"retries": 2}},
        {"reward": {"device": "cpu"}},
    ],
    ids=json.dumps,
)
def test_settings_that_do_not_change_the_result_may_change(config_of, run_of, changes):
    opens(run_of(to_dict(config_of())), config_of(**changes))


def test_the_settings_of_each_of_several_rewards_may_change(config_of, run_of):
    rewards = [{"name": "clip"}, {"name": "hpsv2", "time_limit": 5.0}]
    held_out = [{"name": "clip"}, {"name": "pickscore"}]
    before = config_of(evaluation={"held_out": held_out})
    before = build_config(to_dict(before) | {"reward": rewards})
    after = to_dict(before)
    after["reward"][1]["time_limit"] = 9.0
    after["evaluation"]["held_out"][0]["device"] = "cpu"
    folder = run_of(to_dict(before))
    opens(folder, build_config(after))
    after["reward"][1]["scale"] = 2.0
    with pytest.raises(CheckpointError, match=r"other settings \(reward\.1\.scale: 1\.0 -> 2\.0\)"):
        opens(folder, build_config(after))


def test_the_end_of_a_schedule_may_change_only_if_the_schedule_does_not_depend_on_it(
    config_of, run_of
):
    for schedule, refused in (("constant_with_warmup", False), ("cosine", True)):
        before = config_of(optimiser={"schedule": schedule})
        folder = run_of(to_dict(before))
        longer = config_of(optimiser={"schedule": schedule}, iterations=90)
        if refused:
            with pytest.raises(CheckpointError, match="iterations: 2 -> 90"):
                opens(folder, longer)
        else:
            opens(folder, longer)


def test_other_settings_are_refused_by_name_with_the_command_that_can_use_them(config_of, run_of):
    folder = run_of(to_dict(config_of()))
    changed = config_of(seed=1, objective={"name": "ras"}, iterations=90)
    with pytest.raises(CheckpointError) as refused:
        opens(folder, changed)
    message = str(refused.value)
    assert "(objective.name: 'bpgo' -> 'ras'; seed: 0 -> 1)" in message
    command = f"bpgo branch {folder} --at 2 --output NEW objective.name=ras seed=1"
    assert message.endswith(command)
    assert "delete" not in message


def test_before_its_first_iteration_a_run_may_be_replaced(config_of, run_of):
    """It failed early, and the settings that the message names may now be changed."""
    folder = run_of(to_dict(config_of()), iterations=0, checkpoints=[0])
    opens(folder, config_of())
    assert (folder / "checkpoint-000000").is_dir()
    opens(folder, config_of(sampling={"micro_batch": 1}))
    assert not (folder / "checkpoint-000000").exists()


def test_settings_that_are_newer_than_a_run_have_their_defaults(run_of):
    """A run without them can be resumed. One with another value is refused."""
    config = read_config("t2v-tiny")
    older = to_dict(config)
    del older["generator"]["offload"], older["sampling"]["shared_noise"]
    older["reward"] = older["reward"][0]  # as it was written when there was only one
    with pytest.raises(CheckpointError, match=r"\(sampling\.shared_noise: False -> True\)"):
        opens(run_of(older), config)
    older["sampling"]["shared_noise"] = True
    opens(run_of(older), config)


def test_damaged_settings_are_read_from_the_newest_checkpoint(config_of, run_of):
    folder = run_of(to_dict(config_of()))
    (folder / "config.json").write_text("")
    message = r"config\.json is damaged \(.*empty.*no checkpoint of the run contains its settings"
    state = {"iteration": 2, "prior": {}, "sha256": ""}
    (folder / "checkpoint-000002" / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=message):
        opens(folder, config_of())
    state["settings"] = to_dict(config_of(seed=3))
    (folder / "checkpoint-000002" / "state.json").write_text(json.dumps(state))
    assert read_settings(folder) == config_of(seed=3)
    opens(folder, config_of(seed=3))
    with pytest.raises(CheckpointError, match="seed: 3 -> 0"):
        opens(folder, config_of())


def test_differences_have_the_keys_of_overrides():
    old = {"a": 1, "b": {"c": 2, "d": {}}, "r": [{"s": 1}], "q": [{"s": 1}, {"s": 2}], "l": [1, 2]}
    new = {
        "a": 1,
        "b": {"c": 3, "d": {"e": 1}},
        "r": [{"s": 2}],
        "q": [{"s": 1}, {"s": 3}],
        "l": [1],
    }
    found = differences(old, new)
    assert found["b.c"] == (2, 3)
    assert found["r.s"] == (1, 2)
    assert found["q.1.s"] == (2, 3)
    assert found["l"] == ([1, 2], [1])
    assert {"a", "q.0.s"}.isdisjoint(found)


# ------------------------------------------------------------------------------------------- data


def test_changed_data_are_refused_by_the_setting_that_names_them(config_of, run_of):
    folder, before = run_of(to_dict(config_of())), {"prompts": "1", "reward.path": "2"}
    (folder / "identity.json").write_text(json.dumps(before))
    opens(folder, config_of(), before)
    with pytest.raises(CheckpointError, match=r"the content of prompts has changed .*bpgo branch"):
        opens(folder, config_of(), before | {"prompts": "3"})


def test_equal_data_may_be_at_another_place(config_of, run_of):
    folder = run_of(to_dict(config_of()))
    moved = config_of(prompts="/elsewhere/prompts.txt")
    (folder / "identity.json").write_text(json.dumps({"prompts": "1"}))
    opens(folder, moved, {"prompts": "1"})
    with pytest.raises(CheckpointError, match="other settings"):
        opens(folder, moved, {})  # their content is not known


def test_changed_code_is_reported_and_a_damaged_identity_too(config_of, run_of):
    folder = run_of(to_dict(config_of()))
    (folder / "identity.json").write_text(json.dumps({"code of mine:reward": "1"}))
    with pytest.warns(UserWarning, match="the code of mine:reward has changed"):
        opens(folder, config_of(), {"code of mine:reward": "2"})
    (folder / "identity.json").write_text("{")
    with pytest.warns(UserWarning, match=r"identity\.json is damaged"):
        opens(folder, config_of(), {"prompts": "1"})


# ------------------------------------------------------------------------------------------- lock


def hold(folder, held):
    lock = lock_run(folder)
    held.send(os.getpid())
    signal.pause()
    close_run(lock)


@pytest.fixture
def other_process(tmp_path):
    """A process that has locked the folder."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork, if there are threads
        process = context.Process(target=hold, args=(tmp_path, there))
        process.start()
    assert here.recv() == process.pid
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_with_the_name_of_the_first(other_process, tmp_path):
    with pytest.raises(RunLockedError) as refused:
        open_run(tmp_path)
    assert f"process {other_process.pid} on {socket.gethostname()}" in str(refused.value)
    (tmp_path / ".lock-owner").write_text("")  # as if it had not yet been written
    with pytest.raises(RunLockedError, match="is in use by another process"):
        open_run(tmp_path)


def test_a_lock_ends_with_a_process_that_is_killed(other_process, config_of, tmp_path):
    os.kill(other_process.pid, signal.SIGKILL)
    other_process.join()
    opens(tmp_path, config_of())
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_refused_does_not_keep_the_lock(make):
    trainer = make(iterations=1)
    trainer.train()
    with pytest.raises(CheckpointError, match="seed"):
        make(iterations=1, seed=1, output=trainer.output)
    assert not (trainer.output / ".lock").exists()


def test_a_process_may_open_its_own_folder_again(tmp_path):
    first, second = open_run(tmp_path), open_run(tmp_path)
    close_run(first)
    close_run(second)
    assert list(tmp_path.iterdir()) == []
