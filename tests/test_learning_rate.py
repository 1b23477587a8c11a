"""Learning rates: those of transformers' schedulers, before and after a kill."""

import signal
from functools import partial
from typing import get_args, get_type_hints

import pytest
import torch
from transformers import get_scheduler

from bpgo.checkpoint import CheckpointError
from bpgo.config import ConfigError, OptimiserConfig, read_config
from bpgo.files import read_log
from bpgo.learning_rate import depends_on_iterations, rate_factors
from tests import small_runs as runs
from tests.small_trainers import all_equal, assert_same_run, weights
from tests.test_resume import ITERATION_3

pytestmark = pytest.mark.usefixtures("one_thread")
SCHEDULES = get_args(get_type_hints(OptimiserConfig)["schedule"])
WARMUP = {"schedule": "constant_with_warmup", "warmup": 2}


def config_with(**optimiser):
    return read_config(
        "t2i-tiny",
        ["iterations=5", "groups=4", *(f"optimiser.{name}={v}" for name, v in optimiser.items())],
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rates_are_those_of_transformers(schedule):
    """Over 5 iterations of 2 updates and 3 epochs, as a loop over 30 optimiser steps has them."""
    warmup = 0 if schedule == "constant" else 7
    config = config_with(updates=2, epochs=3, schedule=schedule, warmup=warmup)
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, expected = get_scheduler(schedule, optimiser, warmup, 30), []
    for _ in range(30):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    assert [factor for n in range(5) for factor in rate_factors(config, n)] == expected
    assert rate_factors(config, 3) == expected[18:24]


def test_linear_and_cosine_rise_and_then_fall_to_zero():
    for schedule in ("linear", "cosine"):
        config = config_with(updates=1, schedule=schedule, warmup=2)
        first, second, top, *rest = (rate_factors(config, n)[0] for n in range(6))
        assert (first, second, top, rest[-1]) == (0.0, 0.5, 1.0, 0.0)
        assert top > rest[0] > rest[1] > rest[2]


def test_only_a_decay_depends_on_the_number_of_iterations():
    for schedule in SCHEDULES:
        overrides = [f"optimiser.schedule={schedule}"]
        short, long = (read_config("t2i-tiny", [*overrides, f"iterations={n}"]) for n in (10, 20))
        differs = [rate_factors(short, n) for n in range(10)] != [
            rate_factors(long, n) for n in range(10)
        ]
        assert depends_on_iterations(short) is differs


def test_a_warmup_without_effect_is_refused():
    with pytest.raises(ConfigError, match=r"optimiser: warmup=3 has no .*constant_with_warmup too"):
        config_with(warmup=3)


def test_the_default_is_one_constant_rate():
    config = config_with(updates=2, epochs=2)
    assert config.optimiser.schedule == "constant"
    assert rate_factors(config, 1000) == [1, 1, 1, 1]  # any number of steps


def test_the_optimiser_uses_the_rates_and_they_are_logged(make):
    """The first warm-up step has rate 0. AdamW's first moves are then at most the rate."""
    trainer = make(optimiser=WARMUP | {"learning_rate": 1e-3}, iterations=3)
    start = weights(trainer)
    assert trainer.step()["learning_rate"] == 0.0
    assert all_equal(start, weights(trainer))
    assert trainer.step()["learning_rate"] == 5e-4
    moves = [(start[name] - p).abs().max().item() for name, p in weights(trainer).items()]
    assert 4e-4 < max(moves) < 1e-3
    assert trainer.step()["learning_rate"] == 1e-3


def test_each_update_has_its_own_rate(make):
    """With two updates and rate 0 in the first, only the second one moves the weights."""
    trainer, seen = make(optimiser=WARMUP | {"updates": 2}), []
    trainer.optimiser.register_step_pre_hook(
        lambda optimiser, *_: seen.append([group["lr"] for group in optimiser.param_groups])
    )
    assert trainer.step()["learning_rate"] == 5e-4
    trainer.step()
    assert seen == [[0.0], [5e-4], [1e-3], [1e-3]]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_whose_rate_decays_to_its_end_cannot_be_extended(make, tmp_path, schedule):
    changes = {"output": tmp_path / "run", "optimiser": {"schedule": schedule}}
    trainer = make(iterations=2, **changes)
    trainer.step()
    trainer.save_checkpoint()
    if schedule in ("linear", "cosine"):
        with pytest.raises(CheckpointError, match=r"iterations: 2 -> 4.*bpgo branch"):
            make(iterations=4, **changes)
    else:
        assert make(iterations=4, **changes).iteration == 1


def test_a_killed_run_with_warmup_decay_and_kl_ends_as_the_undisturbed_one(train, tmp_path):
    """Killed in iteration 3, so that it resumes in the middle of the decay."""
    overrides = ["optimiser.schedule=cosine", "optimiser.warmup=1", "optimiser.updates=2"]
    overrides += ["objective.kl=10"]
    folder, expected = tmp_path / "run", tmp_path / "undisturbed"
    kill = partial(runs.register_reward, runs.kill, ITERATION_3)
    code, output = train(folder, kill, overrides=overrides)
    assert code == -signal.SIGKILL, output
    for place in (folder, expected):
        code, output = train(place, overrides=overrides)
        assert code == 0, output
    assert_same_run(folder, expected)
    rows = read_log(folder / "metrics.jsonl")
    rates = [row["learning_rate"] for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 4
    assert [row["kl"] > 0 for row in rows] == [False, True, True, True]
