"""Groups of trajectories under small policies whose every number can be computed again here."""

import hashlib
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bpgo.rollout import (
    Plan,
    integrate,
    micro_batches,
    plan,
    row_noise,
    sample_groups,
    seed_of,
    select,
)
from bpgo.sde import SCHEDULES, noise_levels, sigma_grid

examples = settings(max_examples=60, deadline=None, derandomize=True)


class Elementwise:
    """A policy each of whose outputs reads one input and its row's condition; it notes what it was called with."""

    device = "cpu"

    def __init__(self):
        self.calls = []

    def latent_shape(self):
        return 2, 3, 4

    def velocity(self, x, sigma, cond):
        assert len(cond["bias"]) == len(x), "one condition a row"
        self.calls.append((len(x), sigma))
        return torch.tanh(x) * sigma + cond["bias"][:, None, None, None]


class Mixing(Elementwise):
    """A policy whose outputs read the whole row through a matrix product, as a network's do."""

    def velocity(self, x, sigma, cond):
        self.calls.append((len(x), sigma))
        width = x[0].numel()
        matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(9)) / width**0.5
        return (
            torch.tanh(x.flatten(1) @ matrix).view_as(x) + sigma * cond["bias"][:, None, None, None]
        )


PROMPTS, GROUP, STEPS = 3, 4, 6
BIAS = torch.tensor([0.5, -1.0, 2.0])
SEEDS = [seed_of("test", i, j) for i in range(PROMPTS) for j in range(GROUP)]


def plan_of(schedule="dance-grpo", level=0.5, trained=(1, 3), carrying=None, steps=STEPS):
    sigmas = sigma_grid(steps, 3.0)
    carrying = set(range(steps - 1)) if carrying is None else carrying
    return Plan(
        sigmas.tolist(), noise_levels(schedule, sigmas, level, carrying), schedule, tuple(trained)
    )


def sample(policy=None, scheme=None, seeds=SEEDS, bias=BIAS, group=GROUP, **options):
    return sample_groups(
        policy or Elementwise(), {"bias": bias}, group, scheme or plan_of(), seeds, **options
    )


def by_hand(scheme, seeds=SEEDS, starts=None):
    """Every state on the way (steps + 1, B, ...), row by row in numpy float64, from the published formulas."""
    rows = []
    for r, seed in enumerate(seeds):
        noisy = [s for s in scheme.noise if s > 0]
        noise = row_noise([seed], (2, 3, 4), 1 + len(noisy))[:, 0].double().numpy()
        x, left = noise[0], list(noise[1:])
        if starts is not None:
            x = row_noise([starts[r]], (2, 3, 4), 1)[0, 0].double().numpy()
        states = [x]
        for i, s in enumerate(scheme.noise):
            sigma, after = scheme.sigmas[i], scheme.sigmas[i + 1]
            v = np.tanh(x) * sigma + BIAS[r // GROUP].item()
            if not s:
                x = x + v * (after - sigma)
            elif scheme.schedule == "cps":
                x = (
                    (1 - after) * (x - sigma * v)
                    + np.sqrt(after**2 - s**2) * (x + (1 - sigma) * v)
                    + s * left.pop(0)
                )
            else:
                dt = after - sigma
                x = (
                    x
                    + v * dt
                    + s**2 / (2 * sigma) * (x + (1 - sigma) * v) * dt
                    + s * np.sqrt(-dt) * left.pop(0)
                )
            states.append(x)
        rows.append(states)
    return np.array(rows).swapaxes(0, 1)


def assert_same(a, b):
    for field, x, y in zip(a._fields, a, b, strict=True):
        assert torch.equal(x, y), field


# ------------------------------------------------------------------------------------ trajectories


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("carrying", [None, {2, 3}], ids=["every step", "window"])
def test_a_rollout_is_the_published_recursion_and_keeps_the_trained_steps(schedule, carrying):
    trained = (0, 2, 4) if carrying is None else (2, 3)
    scheme = plan_of(schedule, trained=trained, carrying=carrying)
    rollout = sample(scheme=scheme)
    states = by_hand(scheme)
    rows = PROMPTS * GROUP
    assert rollout.latents.shape == (rows, 2, 3, 4)
    assert rollout.x.shape == rollout.x_next.shape == (len(trained), rows, 2, 3, 4)
    assert rollout.log_prob.shape == (len(trained), rows)
    np.testing.assert_allclose(rollout.latents.numpy(), states[-1], atol=1e-5)
    for kept, i in enumerate(trained):
        np.testing.assert_allclose(rollout.x[kept].numpy(), states[i], atol=1e-5)
        np.testing.assert_allclose(rollout.x_next[kept].numpy(), states[i + 1], atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("policy", [Elementwise, Mixing])
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_the_stored_log_prob_is_computed_again_exactly(schedule, policy, micro_batch):
    """Invariant 1: with the same batches the ratio before the first update is exactly 1."""
    scheme, policy = plan_of(schedule, trained=(0, 1, 3)), policy()
    rollout = sample(policy, scheme, micro_batch=micro_batch)
    for part in micro_batches(len(SEEDS), micro_batch):
        cond = select({"bias": BIAS}, part, GROUP)
        for kept, i in enumerate(scheme.trained):
            velocity = policy.velocity(rollout.x[kept, part], scheme.sigmas[i], cond)
            again = scheme.step(
                i, rollout.x[kept, part], velocity, x_next=rollout.x_next[kept, part]
            )
            assert torch.equal(again.log_prob, rollout.log_prob[kept, part])
            density = stats.norm.logpdf(
                rollout.x_next[kept, part].numpy(), again.mean.numpy(), again.std
            )
            np.testing.assert_allclose(
                rollout.log_prob[kept, part], density.mean((1, 2, 3)), rtol=1e-4, atol=1e-5
            )
    assert torch.equal(rollout.x_next[0], rollout.x[1]), "steps 0 and 1 follow one another"
    assert not any(t.requires_grad for t in rollout)


def test_the_last_state_kept_leads_to_the_latents():
    scheme = plan_of(trained=(STEPS - 2,))
    rollout, policy = sample(scheme=scheme), Elementwise()
    cond = select({"bias": BIAS}, slice(0, len(SEEDS)), GROUP)
    end = scheme.step(
        STEPS - 1, rollout.x_next[0], policy.velocity(rollout.x_next[0], scheme.sigmas[-2], cond)
    )
    assert torch.equal(end.x_next, rollout.latents)


@pytest.mark.parametrize("micro_batch", [1, 4, 5, 12, 100])
def test_the_size_of_micro_batches_changes_nothing(micro_batch):
    whole = sample()
    assert_same(sample(micro_batch=micro_batch), whole)
    mixed, parted = sample(Mixing()), sample(Mixing(), micro_batch=micro_batch)
    for a, b in zip(mixed, parted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_policy_is_called_once_a_step_and_micro_batch_at_the_sigma_of_the_step():
    policy = Elementwise()
    sample(policy, micro_batch=5)
    sigmas = plan_of().sigmas[:-1]
    assert policy.calls == [(rows, sigma) for rows in (5, 5, 2) for sigma in sigmas]


def test_row_i_g_plus_j_is_sample_j_of_prompt_i():
    """A velocity of nothing but the condition moves a start to start - condition."""

    class Constant(Elementwise):
        def velocity(self, x, sigma, cond):
            return cond["bias"][:, None, None, None].expand_as(x)

    rollout = sample(Constant(), plan_of(level=0.0))
    start = row_noise(SEEDS, (2, 3, 4), 1)[0]
    moved = (start - rollout.latents).mean((1, 2, 3)).view(PROMPTS, GROUP)
    torch.testing.assert_close(moved, BIAS[:, None].expand(PROMPTS, GROUP), rtol=1e-5, atol=1e-5)


def test_a_row_depends_on_its_own_seed_and_prompt_only():
    whole = sample()
    one = sample(seeds=SEEDS[GROUP : GROUP + 1], bias=BIAS[1:2], group=1)
    assert torch.equal(one.latents[0], whole.latents[GROUP])
    seeds = [*SEEDS[:5], seed_of("other"), *SEEDS[6:]]
    changed = (sample(seeds=seeds).latents != whole.latents).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [5]


def test_half_the_prompts_on_another_process_give_the_same_trajectories():
    whole, first = sample(), sample(seeds=SEEDS[:GROUP], bias=BIAS[:1])
    rest = sample(seeds=SEEDS[GROUP:], bias=BIAS[1:])
    assert torch.equal(torch.cat([first.latents, rest.latents]), whole.latents)
    assert torch.equal(torch.cat([first.log_prob, rest.log_prob], 1), whole.log_prob)


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_equal_start_seeds_share_the_initial_noise_of_a_group_and_nothing_else(micro_batch):
    starts = [seed_of("start", i) for i in range(PROMPTS) for _ in range(GROUP)]
    scheme = plan_of(trained=(0, 1))
    rollout = sample(scheme=scheme, start_seeds=starts, micro_batch=micro_batch)
    start = rollout.x[0].view(PROMPTS, GROUP, 2, 3, 4)
    assert torch.equal(start, start[:, :1].expand_as(start))
    assert len({tuple(group[0].flatten().tolist()) for group in start}) == PROMPTS
    assert len({tuple(row.flatten().tolist()) for row in rollout.x_next[0]}) == PROMPTS * GROUP, (
        "fresh noise is each row's own"
    )
    np.testing.assert_allclose(
        rollout.latents.numpy(), by_hand(scheme, starts=starts)[-1], atol=1e-5
    )


def test_without_start_seeds_every_row_starts_elsewhere():
    starts = sample(scheme=plan_of(trained=(0,))).x[0]
    assert len({tuple(row.flatten().tolist()) for row in starts}) == PROMPTS * GROUP


@pytest.mark.parametrize("start", range(STEPS - 2))
def test_outside_the_window_the_rollout_follows_the_ode(start):
    window = (start, start + 1)
    rollout = sample(scheme=plan_of(trained=window, carrying=set(window)))
    sigmas = sigma_grid(STEPS, 3.0)
    cond = select({"bias": BIAS}, slice(0, len(SEEDS)), GROUP)
    x = row_noise(SEEDS, (2, 3, 4), 3)[0]
    before = integrate(Elementwise(), x, cond, sigmas[: start + 1])
    assert torch.equal(rollout.x[0], before)
    assert torch.equal(
        rollout.latents, integrate(Elementwise(), rollout.x_next[1], cond, sigmas[start + 2 :])
    )
    euler = integrate(Elementwise(), rollout.x[0], cond, sigmas[start : start + 2])
    assert (rollout.x_next[0] - euler).std() > 0.05, "inside the window there is noise"


@pytest.mark.parametrize("count", [0, 1, 11, 13, 24])
def test_seeds_that_are_not_g_for_each_prompt_are_refused(count):
    with pytest.raises(ValueError, match=rf"{count}\b.*12|12.*\b{count}\b"):
        sample(seeds=[seed_of(i) for i in range(count)])


@pytest.mark.parametrize("count", [0, 1, 3, 11, 13])
def test_start_seeds_that_are_not_one_a_row_are_refused(count):
    with pytest.raises(ValueError, match=rf"{count}\b.*12|12.*\b{count}\b"):
        sample(start_seeds=[seed_of(i) for i in range(count)])


# ------------------------------------------------------------------------------------ the plan


@examples
@given(
    st.integers(2, 30), st.floats(0.01, 1), st.integers(0, 2**32), st.sampled_from(list(SCHEDULES))
)
def test_without_a_window_all_but_the_last_step_carry_noise_and_a_share_is_trained(
    steps, share, seed, schedule
):
    sigmas = sigma_grid(steps, 3.0)
    made = plan(sigmas, schedule, 0.5, share, None, random.Random(seed))
    assert [s > 0 for s in made.noise] == [True] * (steps - 1) + [False]
    assert made.noise == noise_levels(schedule, sigmas, 0.5, set(range(steps)))
    assert list(made.trained) == sorted(set(made.trained)) and set(made.trained) <= set(
        range(steps - 1)
    )
    assert len(made.trained) >= 1 and abs(len(made.trained) - share * (steps - 1)) <= max(
        0.5, 1 - share * (steps - 1)
    )
    assert made.sigmas == sigmas.tolist() and made.schedule == schedule


@examples
@given(st.integers(3, 30), st.data(), st.integers(0, 2**32), st.sampled_from(list(SCHEDULES)))
def test_with_a_window_that_many_steps_in_a_row_carry_noise_and_are_trained(
    steps, data, seed, schedule
):
    window = data.draw(st.integers(1, steps - 1))
    made = plan(sigma_grid(steps), schedule, 0.5, 0.6, window, random.Random(seed))
    first = made.trained[0]
    assert made.trained == tuple(range(first, first + window)) and made.trained[-1] <= steps - 2
    assert tuple(i for i, s in enumerate(made.noise) if s > 0) == made.trained


def test_every_noisy_step_is_trained_about_equally_often():
    """1000 plans of 3 out of 5 steps: each step 600 times, within 4 standard errors of a hypergeometric draw."""
    rng = random.Random(0)
    seen = Counter(
        i
        for _ in range(1000)
        for i in plan(sigma_grid(6), "dance-grpo", 0.3, 0.6, None, rng).trained
    )
    assert set(seen) == set(range(5)) and all(
        abs(n - 600) < 4 * (1000 * 0.6 * 0.4) ** 0.5 for n in seen.values()
    )
    places = Counter(
        plan(sigma_grid(6), "dance-grpo", 0.3, 0.6, 2, rng).trained[0] for _ in range(1000)
    )
    assert set(places) == set(range(4)) and all(
        abs(n - 250) < 4 * (1000 * 0.25 * 0.75) ** 0.5 for n in places.values()
    )


def test_a_plan_is_a_function_of_its_generator_alone():
    made = [plan(sigma_grid(20), "flow-grpo", 0.7, 0.5, None, random.Random(5)) for _ in range(2)]
    assert made[0] == made[1] != plan(sigma_grid(20), "flow-grpo", 0.7, 0.5, None, random.Random(6))


@pytest.mark.parametrize("steps", [1])
@pytest.mark.parametrize("window", [None, 1])
def test_one_step_cannot_be_trained(steps, window):
    with pytest.raises(ValueError, match="at least 2"):
        plan(sigma_grid(steps), "dance-grpo", 0.3, 0.6, window, random.Random(0))


def test_a_window_stays_within_its_range():
    rng = random.Random(4)
    seen = Counter(
        plan(sigma_grid(8), "flow-grpo", 0.7, 0.6, 2, rng, (0, 4)).trained for _ in range(300)
    )
    assert set(seen) == {(0, 1), (1, 2), (2, 3)} and min(seen.values()) > 60
    assert plan(sigma_grid(8), "flow-grpo", 0.7, 0.6, 2, rng, (5, 7)).trained == (5, 6)


@pytest.mark.parametrize("where", [(0, 1), (3, 3), (6, 8), (-1, 3), (4, 2)])
def test_a_range_that_holds_no_window_or_leaves_the_grid_is_refused(where):
    with pytest.raises(ValueError, match=r"window of 2 does not fit the steps from .* of the 7"):
        plan(sigma_grid(8), "flow-grpo", 0.7, 0.6, 2, random.Random(0), where)


@pytest.mark.parametrize("window", [0, -1, 6, 100])
def test_a_window_that_does_not_fit_is_refused(window):
    with pytest.raises(ValueError, match=rf"window of {window}.*5"):
        plan(sigma_grid(6), "dance-grpo", 0.3, 0.6, window, random.Random(0))


# ------------------------------------------------------------------------------------ the ODE alone


@pytest.mark.parametrize("micro_batch", [None, 1, 3, 100])
def test_integrate_is_eulers_method(micro_batch):
    x = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    sigmas = sigma_grid(7, 3.0)
    found = integrate(Elementwise(), x, {"bias": bias}, sigmas, micro_batch)
    y, s = x.numpy(), sigmas.double().numpy()
    for i in range(7):
        y = y + (s[i + 1] - s[i]) * (np.tanh(y) * s[i] + bias.numpy()[:, None, None, None])
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), y, rtol=1e-12)


def test_integrate_is_a_rollout_without_noise():
    scheme = plan_of(level=0.0, trained=(0,))
    cond = select({"bias": BIAS}, slice(0, len(SEEDS)), GROUP)
    start = row_noise(SEEDS, (2, 3, 4), 1)[0]
    assert torch.equal(
        sample(scheme=scheme).latents, integrate(Elementwise(), start, cond, sigma_grid(STEPS, 3.0))
    )


def test_integrate_converges_to_the_solution_of_the_ode():
    """v = x: x(0) = x(1) exp(-1), with an error of the order of the step."""

    class Growth(Elementwise):
        def velocity(self, x, sigma, cond):
            return x

    x = torch.ones(1, 1, dtype=torch.float64)
    errors = [integrate(Growth(), x, {}, sigma_grid(n)).item() - np.exp(-1) for n in (50, 100)]
    assert abs(errors[1]) < 0.01 and errors[1] / errors[0] == pytest.approx(0.5, rel=0.05)


# ------------------------------------------------------------------------------------ seeds and slices


def test_seed_of_is_the_first_63_bits_of_a_sha256():
    """`printf "('rollout', 3, 1)" | sha256sum` begins with e2dd61020fd0950a."""
    assert seed_of("rollout", 3, 1) == 0xE2DD61020FD0950A >> 1
    digest = hashlib.sha256(b"(0, 'iteration', 7)").hexdigest()
    assert seed_of(0, "iteration", 7) == int(digest[:16], 16) >> 1


def test_seeds_differ_and_fit_a_generator():
    seeds = [
        seed_of(*parts)
        for parts in [(i, g, j) for i in range(20) for g in range(8) for j in range(12)]
    ]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 23) != seed_of(12, 3) and seed_of("1") != seed_of(1)


def test_row_noise_does_not_depend_on_the_other_rows_nor_touch_torchs_generator():
    state = torch.get_rng_state()
    whole = row_noise(SEEDS, (2, 3), 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert whole.shape == (4, len(SEEDS), 2, 3)
    for r, seed in enumerate(SEEDS):
        assert torch.equal(row_noise([seed], (2, 3), 4)[:, 0], whole[:, r])
    assert torch.equal(row_noise(SEEDS[::-1], (2, 3), 4), whole.flip(1))


def test_row_noise_is_standard_normal_and_independent_between_draws_rows_and_places():
    noise = row_noise([seed_of(i) for i in range(100)], (4, 25), 4).double()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    for axis in range(4):
        vectors = noise.movedim(axis, 0).flatten(1)
        correlation = torch.corrcoef(vectors) - torch.eye(len(vectors))
        pairs = len(vectors) * (len(vectors) - 1) / 2
        limit = (
            stats.norm.isf(0.0005 / pairs) / vectors.shape[1] ** 0.5
        )  # Bonferroni over the pairs
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
def test_select_repeats_a_prompts_conditions_for_its_samples(prompts, group, data):
    first = data.draw(st.integers(0, prompts * group - 1))
    last = data.draw(st.integers(first + 1, prompts * group))
    cond = {"text": torch.rand(prompts, 3, 2), "pooled": torch.rand(prompts, 4)}
    found = select(cond, slice(first, last), group)
    for name, value in cond.items():
        assert torch.equal(found[name], value.repeat_interleave(group, 0)[first:last])
