"""Trajectories of small policies, each number of which is computed again here."""

import hashlib
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from bpgo.registry import TABLES, find
from bpgo.rollout import (
    Batch,
    Part,
    Steps,
    integrate,
    micro_batches,
    row_noise,
    sample_groups,
    seed_of,
    select,
)
from bpgo.sde import noise_levels, sigma_grid

examples = settings(max_examples=60, deadline=None, derandomize=True)


class Elementwise:
    """A policy in which each output depends on one input and on the condition of its row.

    It notes its calls.
    """

    device = "cpu"

    def __init__(self):
        self.calls = []

    def latent_shape(self):
        return 2, 3, 4

    def velocity(self, x, sigma, cond):
        assert len(cond["bias"]) == len(x), "one condition per row"
        self.calls.append((len(x), sigma))
        return torch.tanh(x) * sigma + cond["bias"][:, None, None, None]


class Mixing(Elementwise):
    """A policy in which each output depends on the whole row, as in a network."""

    def velocity(self, x, sigma, cond):
        self.calls.append((len(x), sigma))
        width = x[0].numel()
        matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(9)) / width**0.5
        mixed = torch.tanh(x.flatten(1) @ matrix).view_as(x)
        return mixed + sigma * cond["bias"][:, None, None, None]


PROMPTS, GROUP, STEPS = ["a", "b", "c"], 4, 6
BIAS = torch.tensor([0.5, -1.0, 2.0])
SEEDS = [seed_of("test", i, j) for i in range(len(PROMPTS)) for j in range(GROUP)]
ROWS = len(SEEDS)
SCHEDULES = list(TABLES["schedule"])


class Trajectories(NamedTuple):
    """All parts of a rollout, joined."""

    latents: Tensor
    x: Tensor
    x_next: Tensor
    log_prob: Tensor


def steps_of(schedule="dance-grpo", level=0.5, trained=(1, 3), carrying=None, steps=STEPS):
    sigmas = sigma_grid(steps, 3.0)
    carrying = set(range(steps - 1)) if carrying is None else carrying
    found = find("schedule", schedule)
    noise = noise_levels(found, sigmas, level, carrying)
    return Steps(sigmas.tolist(), noise, found, tuple(trained))


def batch_of(steps=None, seeds=SEEDS, bias=BIAS, group=GROUP, start_seeds=None):
    prompts = PROMPTS[: len(bias)]
    return Batch(prompts, {"bias": bias}, group, steps or steps_of(), seeds, start_seeds)


def sample(policy=None, micro_batch=None, **given):
    parts = list(sample_groups(policy or Elementwise(), batch_of(**given), micro_batch))
    latents = torch.cat([part.latents for part in parts])
    kept = [torch.cat([getattr(part, name) for part in parts], 1) for name in Part._fields[2:]]
    return Trajectories(latents, *kept)


def by_hand(steps, start_seeds=None):
    """All states (steps + 1, B, ...), row by row in numpy float64, from the published formulas."""
    rows = []
    for r, seed in enumerate(SEEDS):
        noisy = [s for s in steps.noise_std if s > 0]
        noise = row_noise([seed], (2, 3, 4), 1 + len(noisy))[:, 0].double().numpy()
        x, left = noise[0], list(noise[1:])
        if start_seeds is not None:
            x = row_noise([start_seeds[r]], (2, 3, 4), 1)[0, 0].double().numpy()
        states = [x]
        for (sigma, after), s in zip(pairwise(steps.sigmas), steps.noise_std, strict=True):
            dt = after - sigma
            v = np.tanh(x) * sigma + BIAS[r // GROUP].item()
            e = x + (1 - sigma) * v
            if not s:
                x = x + v * dt
            elif steps.schedule is find("schedule", "cps"):
                x0 = x - sigma * v
                x = (1 - after) * x0 + np.sqrt(after**2 - s**2) * e + s * left.pop(0)
            else:
                x = x + v * dt + s**2 / (2 * sigma) * e * dt + s * np.sqrt(-dt) * left.pop(0)
            states.append(x)
        rows.append(states)
    return np.array(rows).swapaxes(0, 1)


def distinct(states):
    """How many rows of (B, ...) differ from each other."""
    return len({tuple(row.flatten().tolist()) for row in states})


# ------------------------------------------------------------------------------------- trajectories


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("carrying", [None, {2, 3}], ids=["every step", "window"])
def test_a_rollout_is_the_published_recursion_and_keeps_the_trained_steps(schedule, carrying):
    trained = (0, 2, 4) if carrying is None else (2, 3)
    steps = steps_of(schedule, trained=trained, carrying=carrying)
    rollout = sample(steps=steps)
    states = by_hand(steps)
    assert rollout.latents.shape == (ROWS, 2, 3, 4)
    assert rollout.x.shape == rollout.x_next.shape == (len(trained), ROWS, 2, 3, 4)
    assert rollout.log_prob.shape == (len(trained), ROWS)
    np.testing.assert_allclose(rollout.latents.numpy(), states[-1], atol=1e-5)
    for kept, i in enumerate(trained):
        np.testing.assert_allclose(rollout.x[kept].numpy(), states[i], atol=1e-5)
        np.testing.assert_allclose(rollout.x_next[kept].numpy(), states[i + 1], atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("policy", [Elementwise, Mixing])
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_the_stored_log_prob_is_computed_again_exactly(schedule, policy, micro_batch):
    """Invariant 1: with the same batches, the ratio before the first update is exactly 1."""
    steps, policy = steps_of(schedule, trained=(0, 1, 3)), policy()
    parts = list(sample_groups(policy, batch_of(steps), micro_batch))
    assert [part.rows for part in parts] == list(micro_batches(ROWS, micro_batch))
    for part in parts:
        cond = select({"bias": BIAS}, part.rows, GROUP)
        for kept, i in enumerate(steps.trained):
            velocity = policy.velocity(part.x[kept], steps.sigmas[i], cond)
            again = steps.take(i, part.x[kept], velocity, x_next=part.x_next[kept])
            assert torch.equal(again.log_prob, part.log_prob[kept])
            mean, x_next = again.mean.numpy(), part.x_next[kept].numpy()
            density = stats.norm.logpdf(x_next, mean, again.std).mean((1, 2, 3))
            np.testing.assert_allclose(part.log_prob[kept], density, rtol=1e-4, atol=1e-5)
        assert torch.equal(part.x_next[0], part.x[1]), "steps 0 and 1 follow each other"
        assert not any(t.requires_grad for t in part[1:])


def test_the_last_state_kept_leads_to_the_latents():
    steps = steps_of(trained=(STEPS - 2,))
    rollout, policy = sample(steps=steps), Elementwise()
    cond = select({"bias": BIAS}, slice(0, ROWS), GROUP)
    velocity = policy.velocity(rollout.x_next[0], steps.sigmas[-2], cond)
    end = steps.take(STEPS - 1, rollout.x_next[0], velocity)
    assert torch.equal(end.x_next, rollout.latents)


@pytest.mark.parametrize("micro_batch", [1, 4, 5, 12, 100])
def test_the_size_of_micro_batches_changes_nothing(micro_batch):
    for a, b in zip(sample(micro_batch=micro_batch), sample(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(sample(Mixing(), micro_batch), sample(Mixing()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_policy_is_called_once_per_step_and_micro_batch_at_the_sigma_of_the_step():
    policy = Elementwise()
    sample(policy, micro_batch=5)
    sigmas = steps_of().sigmas[:-1]
    assert policy.calls == [(rows, sigma) for rows in (5, 5, 2) for sigma in sigmas]


def test_a_part_is_handed_over_as_soon_as_it_is_sampled():
    policy = Elementwise()
    parts = sample_groups(policy, batch_of(), 5)
    for number, part in enumerate(parts, 1):
        assert len(policy.calls) == number * STEPS
        assert torch.is_grad_enabled(), "the reader of the parts keeps its gradients"
        assert part.rows == slice(5 * (number - 1), min(5 * number, ROWS))
    assert number == 3


def test_trained_states_are_kept_on_the_device_that_is_asked_for():
    (part,) = sample_groups(Elementwise(), batch_of(), None, "meta")
    assert {part.x.device.type, part.x_next.device.type} == {"meta"}
    assert {part.latents.device.type, part.log_prob.device.type} == {"cpu"}


def test_row_i_g_plus_j_is_sample_j_of_prompt_i():
    """A velocity that is the condition moves a start to start - condition."""

    class Constant(Elementwise):
        def velocity(self, x, sigma, cond):
            return cond["bias"][:, None, None, None].expand_as(x)

    rollout = sample(Constant(), steps=steps_of(level=0.0))
    start = row_noise(SEEDS, (2, 3, 4), 1)[0]
    moved = (start - rollout.latents).mean((1, 2, 3)).view(len(PROMPTS), GROUP)
    expected = BIAS[:, None].expand(len(PROMPTS), GROUP)
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-5)
    assert batch_of().prompts_of(slice(3, 9)) == ["a", "b", "b", "b", "b", "c"]


def test_a_row_depends_on_its_own_seed_and_prompt_only():
    whole = sample()
    one = sample(seeds=SEEDS[GROUP : GROUP + 1], bias=BIAS[1:2], group=1)
    assert torch.equal(one.latents[0], whole.latents[GROUP])
    seeds = [*SEEDS[:5], seed_of("other"), *SEEDS[6:]]
    changed = (sample(seeds=seeds).latents != whole.latents).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [5]


def test_half_the_prompts_in_another_process_give_the_same_trajectories():
    whole, first = sample(), sample(seeds=SEEDS[:GROUP], bias=BIAS[:1])
    rest = sample(seeds=SEEDS[GROUP:], bias=BIAS[1:])
    assert torch.equal(torch.cat([first.latents, rest.latents]), whole.latents)
    assert torch.equal(torch.cat([first.log_prob, rest.log_prob], 1), whole.log_prob)


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_equal_start_seeds_share_the_initial_noise_of_a_group_and_nothing_else(micro_batch):
    starts = [seed_of("start", i) for i in range(len(PROMPTS)) for _ in range(GROUP)]
    steps = steps_of(trained=(0, 1))
    rollout = sample(steps=steps, start_seeds=starts, micro_batch=micro_batch)
    start = rollout.x[0].view(len(PROMPTS), GROUP, 2, 3, 4)
    assert torch.equal(start, start[:, :1].expand_as(start))
    assert distinct(start[:, 0]) == len(PROMPTS)
    assert distinct(rollout.x_next[0]) == ROWS, "fresh noise differs from row to row"
    expected = by_hand(steps, start_seeds=starts)[-1]
    np.testing.assert_allclose(rollout.latents.numpy(), expected, atol=1e-5)


def test_without_start_seeds_every_row_starts_elsewhere():
    assert distinct(sample(steps=steps_of(trained=(0,))).x[0]) == ROWS


@pytest.mark.parametrize("start", range(STEPS - 2))
def test_outside_the_window_the_rollout_follows_the_ode(start):
    window = (start, start + 1)
    rollout = sample(steps=steps_of(trained=window, carrying=set(window)))
    sigmas = sigma_grid(STEPS, 3.0)
    cond = select({"bias": BIAS}, slice(0, ROWS), GROUP)
    x = row_noise(SEEDS, (2, 3, 4), 3)[0]
    before = integrate(Elementwise(), x, cond, sigmas[: start + 1])
    assert torch.equal(rollout.x[0], before)
    after = integrate(Elementwise(), rollout.x_next[1], cond, sigmas[start + 2 :])
    assert torch.equal(rollout.latents, after)
    euler = integrate(Elementwise(), rollout.x[0], cond, sigmas[start : start + 2])
    assert (rollout.x_next[0] - euler).std() > 0.05, "inside the window there is noise"


@pytest.mark.parametrize("count", [0, 1, 11, 13, 24])
def test_a_wrong_number_of_seeds_is_refused(count):
    expected = rf"^{count} seeds for 3 prompts with 4 samples each: give 12$"
    with pytest.raises(ValueError, match=expected):
        sample(seeds=[seed_of(i) for i in range(count)])


@pytest.mark.parametrize("count", [0, 1, 3, 11, 13])
def test_a_wrong_number_of_start_seeds_is_refused(count):
    expected = rf"^{count} start_seeds for 3 prompts with 4 samples each: give 12$"
    with pytest.raises(ValueError, match=expected):
        sample(start_seeds=[seed_of(i) for i in range(count)])


# ------------------------------------------------------------------------------------------ the ODE


@pytest.mark.parametrize("micro_batch", [None, 1, 3, 100])
def test_integrate_is_the_euler_method(micro_batch):
    x = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    sigmas = sigma_grid(7, 3.0)
    found = integrate(Elementwise(), x, {"bias": bias}, sigmas, micro_batch)
    y, s = x.numpy(), sigmas.double().numpy()
    for i in range(7):
        y = y + (s[i + 1] - s[i]) * (np.tanh(y) * s[i] + bias.numpy()[:, None, None, None])
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), y, rtol=1e-12)


def test_a_rollout_without_noise_is_the_ode():  # invariant 2, with test_flux and test_wan
    steps = steps_of(level=0.0, trained=(0,))
    cond = select({"bias": BIAS}, slice(0, ROWS), GROUP)
    start = row_noise(SEEDS, (2, 3, 4), 1)[0]
    expected = integrate(Elementwise(), start, cond, sigma_grid(STEPS, 3.0))
    assert torch.equal(sample(steps=steps).latents, expected)


def test_integrate_converges_to_the_solution_of_the_ode():
    """v = x: x(0) = x(1) exp(-1), with an error of the order of the step."""

    class Growth(Elementwise):
        def velocity(self, x, sigma, cond):
            return x

    x = torch.ones(1, 1, dtype=torch.float64)
    errors = [integrate(Growth(), x, {}, sigma_grid(n)).item() - np.exp(-1) for n in (50, 100)]
    assert abs(errors[1]) < 0.01 and errors[1] / errors[0] == pytest.approx(0.5, rel=0.05)


# -------------------------------------------------------------------------- seeds, noise and slices


def test_seed_of_is_the_first_63_bits_of_a_sha256():
    """`printf "('rollout', 3, 1)" | sha256sum` begins with e2dd61020fd0950a."""
    assert seed_of("rollout", 3, 1) == 0xE2DD61020FD0950A >> 1
    digest = hashlib.sha256(b"(0, 'iteration', 7)").hexdigest()
    assert seed_of(0, "iteration", 7) == int(digest[:16], 16) >> 1


def test_seeds_differ_and_fit_a_generator():
    seeds = [seed_of(i, g, j) for i in range(20) for g in range(8) for j in range(12)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 23) != seed_of(12, 3) and seed_of("1") != seed_of(1)


def test_row_noise_depends_on_its_own_seed_only_and_leaves_the_generator_of_torch():
    state = torch.get_rng_state()
    whole = row_noise(SEEDS, (2, 3), 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert whole.shape == (4, len(SEEDS), 2, 3)
    for r, seed in enumerate(SEEDS):
        assert torch.equal(row_noise([seed], (2, 3), 4)[:, 0], whole[:, r])
    assert torch.equal(row_noise(SEEDS[::-1], (2, 3), 4), whole.flip(1))


def test_row_noise_is_standard_normal_and_independent():
    noise = row_noise([seed_of(i) for i in range(100)], (4, 25), 4).double()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    for axis in range(4):
        vectors = noise.movedim(axis, 0).flatten(1)
        correlation = torch.corrcoef(vectors) - torch.eye(len(vectors))
        pairs = len(vectors) * (len(vectors) - 1) / 2
        limit = stats.norm.isf(0.0005 / pairs) / vectors.shape[1] ** 0.5  # Bonferroni
        assert correlation.abs().max() < limit


@examples
@given(st.integers(1, 50), st.one_of(st.none(), st.integers(1, 60)))
def test_micro_batches_cover_the_rows_in_order(rows, size):
    parts = list(micro_batches(rows, size))
    assert [r for part in parts for r in range(rows)[part]] == list(range(rows))
    assert all(part.stop - part.start == min(size or rows, rows) for part in parts[:-1])
    assert 1 <= parts[-1].stop - parts[-1].start <= (size or rows)


@examples
@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_select_repeats_the_conditions_of_a_prompt_for_its_samples(prompts, group, data):
    first = data.draw(st.integers(0, prompts * group - 1))
    last = data.draw(st.integers(first + 1, prompts * group))
    cond = {"text": torch.rand(prompts, 3, 2), "pooled": torch.rand(prompts, 4)}
    found = select(cond, slice(first, last), group)
    for name, value in cond.items():
        assert torch.equal(found[name], value.repeat_interleave(group, 0)[first:last])
