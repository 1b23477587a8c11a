"""Calls of rewards that are repeated after a failure."""

import warnings

import pytest
import torch

from bpgo.config import RewardConfig
from bpgo.rewards import CallError, RewardError, load_rewards
from bpgo.rewards.retry import RetryWarning, retried
from tests.rewards.layouts import noisy_images

PIXELS, PROMPTS = noisy_images(8, 8), ["a", "b", "c"]
UNRELIABLE = "tests.rewards.own_rewards:Unreliable"


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds of all pauses, which are not waited for."""
    made = []
    monkeypatch.setattr("bpgo.rewards.retry.time.sleep", made.append)
    return made


@pytest.fixture
def load(tmp_path):
    def load(retries, failures):
        options = {"counter": str(tmp_path / "calls"), "failures": failures}
        config = RewardConfig(name=UNRELIABLE, options=options, retries=retries)
        return load_rewards([config])[UNRELIABLE]

    return load


def test_a_failed_call_is_repeated_and_announced(load, pauses):
    reward = load(retries=3, failures=2)
    with pytest.warns(RetryWarning, match="503 server busy") as told:
        values = reward(PIXELS, PROMPTS)
    torch.testing.assert_close(values, PIXELS.mean((1, 2, 3)))
    assert pauses == [1, 2]
    assert ["retry 1 of 3" in str(told[0].message), "retry 2 of 3" in str(told[1].message)] == [
        True
    ] * 2
    assert len(told) == 2


@pytest.mark.parametrize("retries", [0, 1])
def test_the_last_failure_is_raised(load, retries):
    with warnings.catch_warnings(record=True) as told, pytest.raises(CallError, match="503"):
        warnings.simplefilter("always")
        load(retries=retries, failures=2)(PIXELS, PROMPTS)
    assert len(told) == retries


def test_pauses_grow_up_to_a_minute(pauses):
    def never(pixels, prompts):
        raise CallError("reward 'mine' raised ConnectionError")

    with pytest.warns(RetryWarning), pytest.raises(CallError):
        retried(never, "mine", 9, PIXELS, PROMPTS)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize("error", [RewardError("returned nan"), MemoryError("no room")])
def test_what_would_come_again_is_not_repeated(error, pauses):
    calls = []

    def broken(pixels, prompts):
        calls.append(prompts)
        raise error

    with pytest.raises(type(error)):
        retried(broken, "mine", 5, PIXELS, PROMPTS)
    assert (len(calls), pauses) == (1, [])


def test_a_repetition_does_not_change_the_numbers_of_a_run(load):
    """Not even of a reward that draws random numbers before it fails."""
    after = []
    for failures in (0, 2):
        torch.manual_seed(0)
        reward = load(retries=2, failures=failures)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RetryWarning)
            reward(PIXELS, PROMPTS)
        after.append(torch.rand(1).item())
    assert after[0] == after[1]
