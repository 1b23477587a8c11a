"""Two processes that train together, one of which fails."""

import os
import signal

import pytest

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
def test_a_reward_that_fails_in_one_process_ends_all(resume_presets, tmp_path, how):
    command = ["train", resume_presets["t2i"], "--output", tmp_path / "run"]
    found = runs.run_together(2, command, tmp_path / "log", *how, nan_in_the_second_process)
    (code, output), (failed, why) = found
    assert failed == 2
    assert "bpgo train: reward 'test' returned nan for prompt" in why
    assert code == 1
    assert "RuntimeError" in output
    assert "by peer" in output


def nan_in_the_second_process():
    # Calls: the trial, two for the evaluation, then the first iteration.
    if os.environ["RANK"] == "1":
        runs.register_reward(lambda values: values * float("nan"), 3)


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
