"""Two processes that train together, one of which fails."""

import os
import signal
from functools import partial

import pytest

from bpgo import checkpoint
from tests import small_runs as runs

pytestmark = pytest.mark.usefixtures("shared_cache")
EITHER = pytest.mark.parametrize("how", [(), (runs.use_fsdp,)], ids=["copies", "shards"])


@EITHER
def test_a_process_that_dies_ends_the_run_with_an_error(resume_presets, tmp_path, how):
    """Without a launcher that would end the other process, it must notice for itself."""
    command = ["train", resume_presets["t2i"], "--output", tmp_path / "run"]
    found = runs.run_together(2, command, tmp_path / "log", *how, die_in_the_second_iteration)
    (code, output), (killed, _) = found
    assert killed == -signal.SIGKILL
    assert code == 1
    assert "RuntimeError" in output
    assert "by peer" in output


def die_in_the_second_iteration():
    """Kill process 1 at the start of the second iteration."""
    from bpgo.trainer import Trainer

    draw_batch = Trainer.draw_batch

    def dying(self):
        if self.iteration == 1 and os.environ["RANK"] == "1":
            runs.kill()
        return draw_batch(self)

    Trainer.draw_batch = dying


@EITHER
@pytest.mark.parametrize("call", [3, 4])
def test_a_reward_that_fails_in_one_process_ends_all_and_leaves_a_checkpoint(
    resume_presets, tmp_path, how, call
):
    """All processes see the error at the same point, so even shards can be gathered."""
    folder = tmp_path / "run"
    command = ["train", resume_presets["t2i"], "--output", folder, "evaluation.every=4"]
    fails = partial(nan_in_the_second_process, call)
    found = runs.run_together(2, command, tmp_path / "log", *how, fails)
    (code, output), (failed, why) = found
    assert (code, failed) == (2, 2)
    assert "bpgo train: reward 'test' returned nan for prompt" in why
    assert "bpgo train: process 1 has failed: reward 'test' returned nan for prompt" in output
    iteration = call - 3
    place = folder / f"checkpoint-{iteration:06d}"
    assert f"The state after iteration {iteration} is saved in {place}" in output
    tensors, state = checkpoint.load_state(place)
    assert state["iteration"] == iteration
    assert len([name for name in tensors if name.startswith("weights/")]) > 10
    code, output = runs.run(["train", resume_presets["t2i"], *command[2:]], tmp_path / "again")
    assert code == 0, output


def nan_in_the_second_process(call):
    # Calls: the trial, two for the evaluation, then one in each iteration.
    if os.environ["RANK"] == "1":
        runs.register_reward(lambda values: values * float("nan"), call)


def test_groups_that_do_not_divide_are_refused(resume_presets, tmp_path):
    command = ["train", resume_presets["t2i"], "--output", tmp_path / "run", "optimiser.updates=2"]
    says = "groups=2 cannot be divided evenly over optimiser.updates=2 times 2 processes"
    for code, output in runs.run_together(2, command, tmp_path / "log"):
        assert code == 2
        assert says in output


def test_a_configuration_that_would_leave_encoders_empty_is_refused(resume_presets, tmp_path):
    """It is the default of accelerate's launcher, and transformers follows it."""
    command = ["train", resume_presets["t2i"], "--output", tmp_path / "run"]
    for code, output in runs.run_together(
        2, command, tmp_path / "log", runs.use_fsdp, load_in_the_main_process_only
    ):
        assert code == 2
        assert "set fsdp_cpu_ram_efficient_loading: false" in output


def load_in_the_main_process_only():
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"
