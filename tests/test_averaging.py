"""Averaged weights against their closed form, and their exchange with the trained ones."""

import pytest
import torch

from bpgo.averaging import start_average, swapped, update_average
from tests.small_trainers import all_equal, weights


def parameters(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in (("weight", (3, 2)), ("bias", (3,)))
    }


def test_the_average_is_its_closed_form():
    decay, trained = 0.6, parameters(0)
    average, seen = start_average(trained), [{n: p.detach().clone() for n, p in trained.items()}]
    assert all_equal(average, seen[0])
    for seed in (1, 2, 3):
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(parameters(seed)[name])
        seen.append({name: p.detach().clone() for name, p in trained.items()})
        update_average(average, trained, decay)
    for name, value in average.items():
        recent = sum(decay ** (3 - i) * seen[i][name] for i in (1, 2, 3))
        expected = decay**3 * seen[0][name] + (1 - decay) * recent
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
        assert not value.requires_grad  # otherwise the graph of the whole run would be kept
    assert all_equal(trained, seen[-1])


def test_weights_are_swapped_and_come_back_after_an_error():
    trained, average = parameters(0), start_average(parameters(1))
    before, kept = start_average(trained), start_average(average)
    with pytest.raises(ZeroDivisionError), swapped(trained, average):
        assert all_equal(trained, kept)
        assert trained["bias"].requires_grad
        raise ZeroDivisionError
    assert all_equal(trained, before)
    assert all_equal(average, kept)
    assert not all_equal(before, kept)


def test_without_an_average_the_weights_stay():
    trained, average = parameters(0), {}
    before = start_average(trained)
    update_average(average, trained, 0.9)
    with swapped(trained, average):
        assert all_equal(trained, before)
    assert average == {}


def test_a_trainer_averages_once_per_iteration(make, one_thread):
    decay = 0.6
    trainer = make(optimiser={"ema_decay": decay, "updates": 2})
    seen = [weights(trainer)]
    for _ in range(2):
        trainer.step()
        seen.append(weights(trainer))
    assert trainer.average.keys() == trainer.parameters.keys()
    for name, value in trainer.average.items():
        recent = decay * seen[1][name] + seen[2][name]
        expected = decay**2 * seen[0][name] + (1 - decay) * recent
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    with trainer.averaged_weights():
        assert all_equal(weights(trainer), trainer.average)
    assert all_equal(weights(trainer), seen[-1])
    assert make().average == {}
