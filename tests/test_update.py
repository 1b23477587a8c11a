"""The policy update: its gradient against equation 5 written again, and its optimiser steps."""

from itertools import pairwise

import pytest
import torch

from bpgo import update
from bpgo.rollout import Part, Rollout
from bpgo.update import log_ratio_of, update_policy
from tests.small_trainers import all_equal, rollout_of, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def standardised(r):
    return (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True)


def cut(part, places):
    """A part as several, at these rows."""
    return [
        Part(slice(a, b), part.latents[a:b], *(tensor[:, a:b] for tensor in part[2:]))
        for a, b in pairwise(places)
    ]


def equation_5(trainer, rollout, rewards, prior, alpha, k, lam, beta):
    """The gradient of equation 5 at ratio 1, with the density of torch's own Normal."""
    steps, (part,) = rollout.batch.steps, rollout.parts
    weight = 1 + alpha * (2 * torch.sigmoid(k * (rewards.mean(1, keepdim=True) - prior)) - 1)
    transformed = (lam * (rewards - prior) + (rewards > prior)) * rewards.exp()
    effective = weight * standardised(rewards) + beta * standardised(transformed)
    group_size = rewards.shape[1]
    cond = {name: v.repeat_interleave(group_size, 0) for name, v in rollout.batch.cond.items()}
    densities = []
    for n, i in enumerate(steps.trained):
        s, sigma, dt = steps.noise_std[i], steps.sigmas[i], steps.sigmas[i + 1] - steps.sigmas[i]
        x = part.x[n]
        v = trainer.policy.velocity(x, sigma, cond)
        mean = x + v * dt + s**2 / (2 * sigma) * (x + (1 - sigma) * v) * dt
        normal = torch.distributions.Normal(mean, s * (-dt) ** 0.5)
        densities.append(normal.log_prob(part.x_next[n]).flatten(1).mean(1))
    loss = -(effective.flatten() * torch.stack(densities)).mean()
    gradients = torch.autograd.grad(loss, list(trainer.parameters.values()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def test_the_gradient_is_equation_5_for_every_micro_batch(make):  # invariant 4
    """6 rows as one part, as 4 and 2 (a part across groups), and one by one."""
    hyperparameters = {"alpha": 0.4, "k": 0.7, "lam": 2.0, "beta": 0.3}
    trainer = make(
        objective={"name": "bpgo", "clip_range": 1e-3} | hyperparameters,
        optimiser={"max_grad_norm": 1e9},
    )
    rollout = rollout_of(trainer)
    scores = torch.arange(6.0) ** 2 / 10
    advantages, _ = trainer.compute_advantages(rollout.batch, {"reward": scores})
    rewards = scores.view(2, 3)
    expected = equation_5(trainer, rollout, rewards, rewards.mean(), **hyperparameters)
    assert expected.norm() > 1e-3

    start = weights(trainer)
    for places in ([0, 6], [0, 4, 6], [0, 1, 2, 3, 4, 5, 6]):
        # One step of gradient descent at rate 1 is minus the gradient.
        descent = torch.optim.SGD(trainer.parameters.values(), lr=1.0)
        parts = cut(rollout.parts[0], places)
        metrics = update_policy(
            trainer.policy,
            descent,
            Rollout(rollout.batch, parts),
            advantages,
            trainer.config,
            trainer.accelerator,
        )
        steps = [(start[name] - p).flatten() for name, p in weights(trainer).items()]
        assert (torch.cat(steps) - expected).norm() < 1e-3 * expected.norm()
        assert metrics["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-3)
        with torch.no_grad():
            for name, p in trainer.parameters.items():
                p.copy_(start[name])


def test_the_log_ratio_is_that_of_the_moved_weights(make):
    trainer = make(sampling={"trained_share": 1.0})
    rollout = rollout_of(trainer)
    steps, (part,) = rollout.batch.steps, rollout.parts
    cond = {name: v.repeat_interleave(3, 0) for name, v in rollout.batch.cond.items()}
    for n in range(len(steps.trained)):
        ratio = log_ratio_of(trainer.policy, cond, steps, part, n)
        assert torch.equal(ratio, torch.zeros(6))
        assert ratio.requires_grad
    with torch.no_grad():
        for p in trainer.parameters.values():
            p.mul_(1.01)
    assert log_ratio_of(trainer.policy, cond, steps, part, 0).abs().min() > 1e-6


def test_more_updates_and_epochs_leave_the_old_policy_and_are_clipped(make):
    trainer = make(
        optimiser={"updates": 2, "epochs": 2, "learning_rate": 3e-3}, objective={"clip_range": 1e-4}
    )
    metrics = trainer.step()
    assert metrics["first_log_ratio"] == 0.0
    for name in ("clip_up", "clip_down", "approx_kl"):
        assert metrics[name] > 0
    steps = {int(trainer.optimiser.state[p]["step"]) for p in trainer.parameters.values()}
    assert steps == {4}
    assert trainer.optimiser_steps == 4
    # Gradients would take memory in the next rollout.
    assert all(p.grad is None for p in trainer.parameters.values())


def test_one_update_is_not_clipped(make):
    metrics = make().step()
    assert [metrics[name] for name in ("clip_up", "clip_down", "approx_kl")] == [0, 0, 0]


def test_each_update_uses_its_share_of_the_prompts(make, monkeypatch):
    """Two epochs of two updates on 2 groups of 3, in parts of one row."""
    trainer = make(optimiser={"updates": 2, "epochs": 2}, sampling={"micro_batch": 1, "window": 1})
    rows, by_step = [], []
    trained_step = update.trained_step

    def noted(policy, cond, steps, part, n):
        rows.append(part.rows.start)
        return trained_step(policy, cond, steps, part, n)

    def stepped(*_):
        by_step.append(list(rows))
        rows.clear()

    monkeypatch.setattr(update, "trained_step", noted)
    trainer.optimiser.register_step_post_hook(stepped)
    metrics = trainer.step()
    assert by_step == [[0, 1, 2], [3, 4, 5]] * 2
    assert metrics["gradient_accumulation"] == 3


def test_gradients_are_clipped_to_their_norm(make):
    free, clipped = (make(optimiser={"max_grad_norm": norm, "beta1": 0.0}) for norm in (1e9, 1e-3))
    expected, found = free.step(), clipped.step()
    assert found["grad_norm"] == expected["grad_norm"] > 2e-3
    # Without momentum, the first moment of Adam is the clipped gradient.
    moments = [clipped.optimiser.state[p]["exp_avg"] for p in clipped.parameters.values()]
    norm = torch.stack([moment.norm() for moment in moments]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_gradients_of_an_interrupted_update_do_not_reach_the_next(make):
    clean, interrupted = make(), make()
    for p in interrupted.parameters.values():
        p.grad = torch.ones_like(p)
    assert clean.step() == interrupted.step()
    assert all_equal(weights(clean), weights(interrupted))


def test_an_interrupted_update_makes_no_step_of_an_expert_that_the_next_does_not_reach(make):
    """With one trained step, an update reaches one of the two experts."""
    trainer = make("i2v", sampling={"window": 1})
    for p in trainer.parameters.values():
        p.grad = torch.ones_like(p)
    trainer.step()
    state = trainer.optimiser.state
    stepped = {name.split(".")[0] for name, p in trainer.parameters.items() if state[p]}
    assert len(stepped) == 1


def test_what_is_logged_is_the_mean_over_optimiser_steps(make, monkeypatch):
    """Of gradient norms, as torch's clipping returns them."""
    norms, clip_gradients = [], update.clip_gradients

    def noted(*given):
        norms.append(clip_gradients(*given))
        return norms[-1]

    monkeypatch.setattr(update, "clip_gradients", noted)
    metrics = make(optimiser={"updates": 2, "epochs": 2}).step()
    assert len(norms) == 4
    assert metrics["grad_norm"] == pytest.approx(sum(norms).item() / 4, rel=1e-5)


def test_gradient_checkpointing_does_not_change_the_gradient(make):
    plain, saving = (
        make(generator={"gradient_checkpointing": flag}).step() for flag in (False, True)
    )
    assert saving["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-5)
    assert saving["loss"] == plain["loss"]


def test_a_gradient_that_is_not_finite_changes_no_weight(make, monkeypatch):
    trainer = make()
    start, loss = weights(trainer), update.surrogate_loss
    monkeypatch.setattr(update, "surrogate_loss", lambda *given: loss(*given) * float("nan"))
    with pytest.raises(FloatingPointError, match="gradient is not finite"):
        trainer.step()
    assert all_equal(start, weights(trainer))
    assert trainer.optimiser_steps == 0
    assert all(p.grad is None for p in trainer.parameters.values())
