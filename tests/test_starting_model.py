"""The KL term: torch's own divergence and its gradient, and which model it is measured from."""

import pytest
import torch
from torch.distributions import Normal

from bpgo.averaging import start_average
from bpgo.objective import Advantages, kl_divergence
from bpgo.starting_model import starting_means
from bpgo.update import update_policy
from tests.small_trainers import all_equal, rollout_of, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def torch_divergence(mean, start, std):
    return torch.distributions.kl_divergence(Normal(mean, std), Normal(start, std))


def move(trainer, part="", by=1.05):
    """Change the trained weights of a part."""
    with torch.no_grad():
        for name, p in trainer.parameters.items():
            if name.startswith(part):
                p.mul_(by)


def mean_of(policy, steps, part, n, cond):
    """The mean of a step of Flow-GRPO, written again."""
    i = steps.trained[n]
    s, sigma, dt = steps.noise_std[i], steps.sigmas[i], steps.sigmas[i + 1] - steps.sigmas[i]
    x = part.x[n]
    v = policy.velocity(x, sigma, cond)
    return x + v * dt + s**2 / (2 * sigma) * (x + (1 - sigma) * v) * dt, s * (-dt) ** 0.5


def conditions_of(batch):
    return {name: v.repeat_interleave(batch.group_size, 0) for name, v in batch.cond.items()}


def test_the_divergence_is_that_of_two_normal_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, start = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    mean.requires_grad_(True)
    found, expected = kl_divergence(mean, start, 0.3), torch_divergence(mean, start, 0.3)
    torch.testing.assert_close(found, expected.mean((1, 2)))
    (gradient,) = torch.autograd.grad(found.sum(), mean)
    torch.testing.assert_close(gradient, (mean - start).detach() / 0.3**2 / 12)
    assert kl_divergence(start, start, 0.3).tolist() == [0.0] * 5


def test_means_of_other_shapes_and_steps_without_noise_are_refused():
    with pytest.raises(ValueError, match=r"means \(2, 3\) and \(3,\) must have one shape"):
        kl_divergence(torch.zeros(2, 3), torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match=r"std = 0.0 has no density"):
        kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3), 0.0)


@pytest.mark.parametrize("micro_batch", [6, 2])
def test_the_gradient_of_the_term_is_that_of_the_divergence(make, micro_batch):
    """With advantages of 0 the loss is the term alone, and SGD at rate 1 moves by its gradient."""
    changes = {"sampling": {"micro_batch": micro_batch}, "optimiser": {"max_grad_norm": 1e9}}
    trainer = make(objective={"kl": 3.0}, **changes)
    rollout = rollout_of(trainer)
    batch, parts = rollout
    reference = []
    with torch.no_grad():
        for part in parts:
            cond = {name: v[part.rows] for name, v in conditions_of(batch).items()}
            trained = range(len(part.x))
            reference.append([mean_of(trainer.policy, batch.steps, part, n, cond) for n in trained])
    move(trainer)
    divergences = []
    for part, means in zip(parts, reference, strict=True):
        cond = {name: v[part.rows] for name, v in conditions_of(batch).items()}
        for n, (mean_start, std) in enumerate(means):
            mean, _ = mean_of(trainer.policy, batch.steps, part, n, cond)
            divergences.append(torch_divergence(mean, mean_start, std).mean())
    divergence = torch.stack(divergences).mean()
    gradients = torch.autograd.grad(3.0 * divergence, list(trainer.parameters.values()))

    moved, none = weights(trainer), torch.zeros(2, 3)
    found = starting_means(trainer.policy, rollout, trainer.parameters, trainer.start)
    metrics = update_policy(
        trainer.policy,
        torch.optim.SGD(trainer.parameters.values(), lr=1.0),
        rollout,
        Advantages(none, None, torch.ones(2), none),
        trainer.config,
        trainer.accelerator,
        starting_means=found,
    )
    assert metrics["kl"] == pytest.approx(divergence.item(), rel=1e-4)
    assert metrics["loss"] == pytest.approx(3 * divergence.item(), rel=1e-4)
    steps = torch.cat([(moved[n] - p).flatten() for n, p in weights(trainer).items()])
    expected = torch.cat([gradient.flatten() for gradient in gradients])
    assert expected.norm() > 1e-3
    assert (steps - expected).norm() < 1e-3 * expected.norm()


def test_the_first_update_is_that_without_the_term_bit_for_bit(make):
    """There the divergence and its gradient are exactly 0."""
    without, with_term = make(), make(objective={"kl": 5.0})
    expected, found = without.step(), with_term.step()
    assert "kl" not in expected
    assert found == expected | {"kl": 0.0}
    assert all_equal(weights(without), weights(with_term))
    without.step()
    assert with_term.step()["kl"] > 0
    assert not all_equal(weights(without), weights(with_term))


def test_a_strong_term_keeps_the_policy_near_the_start(make):
    """Weak enough to change nothing visible, the term shows how far the policy goes without it."""
    last = {}
    for kl in (1e-6, 1e4):
        trainer = make(objective={"kl": kl}, iterations=8)
        last[kl] = [trainer.step()["kl"] for _ in range(8)][-1]
    assert last[1e4] < 0.2 * last[1e-6]


def test_without_the_term_nothing_is_copied_or_computed(make):
    trainer = make()
    assert trainer.start == {}
    assert starting_means(None, None, trainer.parameters, trainer.start) is None


@pytest.mark.parametrize("task", ["t2i", "i2v"])
def test_of_adapters_the_starting_model_is_the_one_without_them(make, task):
    """As diffusers computes it with the adapters disabled."""
    trainer = make(task, generator={"lora_rank": 2}, objective={"kl": 1.0})
    rollout = rollout_of(trainer)
    (part,) = rollout.parts
    with torch.no_grad():
        for p in trainer.parameters.values():
            p.add_(0.1)
    moved = weights(trainer)
    (found,) = starting_means(trainer.policy, rollout, trainer.parameters, trainer.start)
    assert all_equal(moved, weights(trainer))
    cond, steps = conditions_of(rollout.batch), rollout.batch.steps
    with torch.no_grad():
        for on in (True, False):
            for module in trainer.policy.modules.values():
                module.enable_adapters() if on else module.disable_adapters()
            for n in range(len(steps.trained)):
                mean, _ = mean_of(trainer.policy, steps, part, n, cond)
                distance = (mean - found[n]).abs().max()
                assert distance > 1e-3 if on else distance < 1e-5


def test_each_expert_is_compared_with_its_own_start(make):
    """Only the low-noise expert has moved, so only its steps differ from the starting model."""
    trainer = make("i2v", objective={"kl": 1.0}, sampling={"trained_share": 1.0})
    rollout = rollout_of(trainer)
    steps, (part,) = rollout.batch.steps, rollout.parts
    move(trainer, "transformer_2.")
    (found,) = starting_means(trainer.policy, rollout, trainer.parameters, trainer.start)
    cond = conditions_of(rollout.batch)
    experts = [trainer.policy.expert(steps.sigmas[i]) for i in steps.trained]
    assert set(experts) == {"transformer", "transformer_2"}
    with torch.no_grad():
        for n, expert in enumerate(experts):
            mean, _ = mean_of(trainer.policy, steps, part, n, cond)
            moved = (mean - found[n]).abs().max().item() > 1e-4
            assert moved is (expert == "transformer_2")


def test_with_offloading_the_means_wait_on_the_cpu_and_the_step_is_the_same(make):
    changes = {"objective": {"kl": 2.0}, "optimiser": {"epochs": 2}}
    here, parked = (make(generator={"offload": flag}, **changes) for flag in (False, True))
    for _ in range(2):
        assert here.step() == parked.step()
    assert all_equal(weights(here), weights(parked))


def test_the_start_is_taken_before_a_checkpoint_is_restored(make, tmp_path):
    changes = {"objective": {"kl": 1.0}, "generator": {"lora_rank": 2}, "checkpoint_every": 1}
    first = make(output=tmp_path / "kept", iterations=2, **changes)
    start = weights(first)
    first.step()
    first.save_checkpoint()
    expected = first.step()
    again = make(output=tmp_path / "kept", iterations=2, **changes)
    assert again.iteration == 1
    assert all_equal(again.start, start)
    assert not all_equal(again.start, weights(again))
    assert again.step() == expected
    assert expected["kl"] > 0


def test_the_start_is_a_copy_that_training_does_not_change(make):
    trainer = make(objective={"kl": 1.0})
    before = start_average(trainer.start)
    trainer.step()
    assert all_equal(before, trainer.start)
