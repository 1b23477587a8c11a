"""When processes exchange gradients in an update: once per module, in its last backward pass."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from bpgo import update
from bpgo.config import read_config
from bpgo.objective import Advantages
from bpgo.rollout import Batch, Rollout, Steps, sample_groups
from bpgo.sde import FLOW_GRPO
from bpgo.update import update_policy

GRID = [1.0, 0.75, 0.5, 0.25, 0.0]


class OneModule:
    """A policy of one linear layer over latents of two numbers."""

    device = torch.device("cpu")

    def __init__(self):
        torch.manual_seed(0)
        self.modules = {"transformer": nn.Linear(2, 2)}

    def latent_shape(self):
        return (2,)

    def velocity(self, x, sigma, cond):
        return self.modules["transformer"](x)


class TwoExperts(OneModule):
    """As Wan2.2: the first expert predicts from sigma = 0.6 up, the second one below."""

    def __init__(self):
        super().__init__()
        self.modules["transformer_2"] = nn.Linear(2, 2)

    def expert(self, sigma):
        return "transformer" if sigma >= 0.6 else "transformer_2"

    def velocity(self, x, sigma, cond):
        return self.modules[self.expert(sigma)](x)


def exchanges(policy, trained, monkeypatch, updates=1):
    """The passes of an update over two micro-batches: (module, whether it exchanges), in order."""
    steps = Steps(GRID, [0.5, 0.5, 0.5, 0.0], FLOW_GRPO, trained)
    batch = Batch(["a", "b"], {"text": torch.zeros(2, 1)}, 2, steps, seeds=[1, 2, 3, 4])
    rollout = Rollout(batch, list(sample_groups(policy, batch, micro_batch=2)))
    main = torch.tensor([[1.0, -1.0], [0.5, -0.5]])
    advantages = Advantages(main, None, torch.ones(2), main)
    parameters = [p for module in policy.modules.values() for p in module.parameters()]
    calls = []
    monkeypatch.setattr(update, "exchange_gradients", lambda m, wanted: calls.append((m, wanted)))
    config = read_config("t2i-tiny", [f"optimiser.updates={updates}", "groups=2", "group_size=2"])
    optimiser = torch.optim.SGD(parameters, lr=0.0)
    update_policy(policy, optimiser, rollout, advantages, config, Accelerator(cpu=True))
    names = {module: name for name, module in policy.modules.items()}
    return [(names[module], wanted) for module, wanted in calls]


def test_a_single_module_exchanges_in_the_last_pass_of_the_last_micro_batch(monkeypatch):
    calls = exchanges(OneModule(), (0, 2), monkeypatch)
    assert [wanted for _, wanted in calls] == [False, False, False, True]


def test_every_update_ends_in_an_exchange(monkeypatch):
    calls = exchanges(OneModule(), (0, 2), monkeypatch, updates=2)
    assert [wanted for _, wanted in calls] == [False, True, False, True]


def test_each_expert_exchanges_in_its_own_last_pass(monkeypatch):
    # Steps 0 and 1 (sigma 1 and 0.75) use the first expert, and step 2 (sigma 0.5) the second.
    calls = exchanges(TwoExperts(), (0, 1, 2), monkeypatch)
    last_part = calls[len(calls) // 2 :]
    assert [wanted for _, wanted in calls[: len(calls) // 2]] == [False] * 6
    by_pass = [dict(last_part[i : i + 2]) for i in (0, 2, 4)]
    assert by_pass == [
        {"transformer": False, "transformer_2": False},
        {"transformer": True, "transformer_2": False},
        {"transformer": False, "transformer_2": True},
    ]


@pytest.mark.parametrize("trained", [(0,), (0, 1)])
def test_an_expert_that_no_trained_step_uses_never_exchanges(trained, monkeypatch):
    calls = exchanges(TwoExperts(), trained, monkeypatch)
    assert [wanted for name, wanted in calls if name == "transformer_2"] == [False] * len(
        calls[::2]
    )
    assert sum(wanted for name, wanted in calls if name == "transformer") == 1
