"""Sigma grids and steps against diffusers, scipy and formulas rewritten here; marginals and policy gradient in closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from bpgo.objective import group_advantages, surrogate_loss
from bpgo.sde import (
    SCHEDULES,
    cps_noise,
    cps_step,
    flow_grpo_noise,
    noise_levels,
    sde_step,
    sigma_grid,
)

examples = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
STEPS = [pytest.param(sde_step, id="sde"), pytest.param(cps_step, id="cps")]


@pytest.fixture
def scheduler():
    diffusers = pytest.importorskip("diffusers")
    return lambda **options: diffusers.FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000, **options
    )


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_step(step, shape=(3, 2, 4), sigma=0.7, sigma_next=0.55, noise_std=0.4, **given):
    """Two random tensors of a shape put through one step, and what went in as numpy arrays."""
    x, v = draws(*shape, seed=1), draws(*shape, seed=2)
    return step(x, v, sigma, sigma_next, noise_std, **given), x.numpy(), v.numpy()


# ------------------------------------------------------------------------------------ sigma grids


@examples
@given(st.integers(1, 60), st.floats(0.1, 12))
def test_sigma_grid_is_the_sd3_shift_of_an_even_grid(steps, shift):
    t = np.arange(steps, -1, -1) / steps
    expected = shift * t / (1 + (shift - 1) * t)
    grid = sigma_grid(steps, shift)
    np.testing.assert_allclose(grid.numpy(), expected, rtol=2e-7, atol=0)
    assert grid.dtype == torch.float32 and grid.shape == (steps + 1,)
    assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("steps", [1, 4, 16, 28])
def test_sigma_grid_is_what_a_pipeline_passes_to_the_scheduler_shifted_once(
    scheduler, steps, shift
):
    reference = scheduler(shift=shift)
    reference.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    torch.testing.assert_close(sigma_grid(steps, shift), reference.sigmas, rtol=1e-6, atol=0)
    if steps > 1 and shift > 1:
        reference.set_timesteps(
            sigmas=sigma_grid(steps, shift)[:-1].numpy()
        )  # the fault to be free of
        assert not torch.allclose(sigma_grid(steps, shift), reference.sigmas, atol=0.01)


def test_sigma_grid_is_the_scheduler_with_the_dynamic_shift_of_flux(scheduler):
    reference = scheduler(use_dynamic_shifting=True)
    reference.set_timesteps(sigmas=np.linspace(1, 1 / 12, 12), mu=0.8)
    torch.testing.assert_close(sigma_grid(12, math.exp(0.8)), reference.sigmas, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "steps,shift", [(0, 1.0), (-3, 1.0), (4, 0.0), (4, -1.0), (4, math.nan), (4, math.inf)]
)
def test_sigma_grid_refuses(steps, shift):
    with pytest.raises(ValueError, match=rf"steps={steps}, shift={shift}"):
        sigma_grid(steps, shift)


# ------------------------------------------------------------------------------------ one step


def test_without_noise_a_step_is_the_schedulers(scheduler):
    reference = scheduler(shift=3.0)
    reference.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
    sigmas = sigma_grid(8, 3.0).tolist()
    theirs = ours = draws(2, 3, 4, 4).float()
    for i, timestep in enumerate(reference.timesteps):
        velocity = draws(2, 3, 4, 4, seed=i).float()
        theirs = reference.step(velocity, timestep, theirs, return_dict=False)[0]
        ours = sde_step(ours, velocity, sigmas[i], sigmas[i + 1], 0.0).x_next
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("step", STEPS)
def test_without_noise_a_step_is_eulers_and_has_no_density(step):
    made, x, v = some_step(step, noise_std=0.0, noise=draws(3, 2, 4))
    np.testing.assert_allclose(made.x_next.numpy(), x + v * (0.55 - 0.7), rtol=1e-12)
    assert made.std == 0 and torch.equal(made.mean, made.x_next)
    assert torch.equal(made.log_prob, torch.zeros(3, dtype=torch.float64))


inside = st.floats(0.01, 1.0)


@examples
@given(inside, st.floats(0, 0.99), st.floats(0.01, 2))
def test_sde_step_is_the_published_formula(sigma, share, s):
    sigma_next = share * sigma
    noise = draws(3, 2, 4, seed=3)
    made, x, v = some_step(sde_step, sigma=sigma, sigma_next=sigma_next, noise_std=s, noise=noise)
    dt = sigma_next - sigma
    mean = x + v * dt + (s**2 / (2 * sigma)) * (x + (1 - sigma) * v) * dt
    np.testing.assert_allclose(made.mean.numpy(), mean, rtol=1e-9, atol=1e-9)
    assert made.std == pytest.approx(s * math.sqrt(-dt))
    np.testing.assert_allclose(
        made.x_next.numpy(), mean + s * math.sqrt(-dt) * noise.numpy(), rtol=1e-9, atol=1e-9
    )


@examples
@given(inside, st.floats(0.05, 0.99), st.floats(0.01, 1))
def test_cps_step_is_the_published_formula(sigma, share, level):
    sigma_next = share * sigma
    noise = draws(3, 2, 4, seed=3)
    d = sigma_next * math.sin(level * math.pi / 2)
    made, x, v = some_step(cps_step, sigma=sigma, sigma_next=sigma_next, noise_std=d, noise=noise)
    data = x - sigma * v
    mean = (1 - sigma_next) * data + math.sqrt(sigma_next**2 - d**2) * (x + (1 - sigma) * v)
    np.testing.assert_allclose(made.mean.numpy(), mean, rtol=1e-9, atol=1e-9)
    assert made.std == pytest.approx(d)
    np.testing.assert_allclose(made.x_next.numpy(), mean + d * noise.numpy(), rtol=1e-9, atol=1e-9)


def test_flow_grpos_and_dance_grpos_means_are_one_function():
    """DanceGRPO writes its mean with the score, -(x - (1 - sigma) x0) / sigma^2: x + v dt - eta^2 / 2 score dt."""
    made, x, v = some_step(sde_step)
    data = x - 0.7 * v
    score = -(x - (1 - 0.7) * data) / 0.7**2
    np.testing.assert_allclose(
        made.mean.numpy(), x + (v - 0.5 * 0.4**2 * score) * (0.55 - 0.7), rtol=1e-12
    )


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (2, 3, 4, 4), (1, 2, 3, 4, 5)])
def test_log_prob_is_scipys_density_averaged_over_all_but_the_batch(step, shape):
    made, _, _ = some_step(step, shape, noise=draws(*shape, seed=3))
    density = stats.norm.logpdf(made.x_next.numpy(), made.mean.numpy(), made.std)
    expected = density.reshape(shape[0], -1).mean(1)
    assert made.log_prob.shape == shape[:1]
    np.testing.assert_allclose(made.log_prob.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_log_prob_of_a_draw_given_back_is_the_same_number_in_the_same_precision(step, dtype):
    x, v = draws(3, 4, seed=1).to(dtype), draws(3, 4, seed=2).to(dtype)
    torch.manual_seed(0)
    drawn = step(x, v, 0.7, 0.55, 0.4)
    again = step(x, v, 0.7, 0.55, 0.4, x_next=drawn.x_next)
    assert {t.dtype for t in (drawn.x_next, drawn.log_prob, drawn.mean)} == {dtype}
    assert torch.equal(again.log_prob, drawn.log_prob) and torch.equal(again.mean, drawn.mean)
    assert again.x_next is drawn.x_next
    other = step(x, v + 0.1, 0.7, 0.55, 0.4, x_next=drawn.x_next)
    expected = stats.norm.logpdf(
        drawn.x_next.double().numpy(), other.mean.double().numpy(), other.std
    ).mean(1)
    np.testing.assert_allclose(
        other.log_prob.numpy(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-10
    )


@pytest.mark.parametrize("step", STEPS)
def test_without_noise_given_a_step_draws_standard_normal_noise_from_torchs_generator(step):
    x = torch.zeros(4, 5000, dtype=torch.float64)
    torch.manual_seed(1)
    made = step(x, x, 0.7, 0.55, 0.4)
    torch.manual_seed(1)
    assert torch.equal(step(x, x, 0.7, 0.55, 0.4).x_next, made.x_next)
    assert not torch.equal(step(x, x, 0.7, 0.55, 0.4).x_next, made.x_next)
    assert (
        stats.kstest(((made.x_next - made.mean) / made.std).flatten().numpy(), "norm").pvalue > 1e-3
    )


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_differentiable_in_the_velocity(step):
    x, v, x_next = (
        draws(2, 3, seed=1),
        draws(2, 3, seed=2).requires_grad_(True),
        draws(2, 3, seed=3),
    )
    assert torch.autograd.gradcheck(lambda v: step(x, v, 0.7, 0.55, 0.4, x_next=x_next).log_prob, v)
    assert torch.autograd.gradcheck(lambda v: step(x, v, 0.7, 0.55, 0.0).x_next, v)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "sigma,sigma_next",
    [(0.5, 0.5), (0.4, 0.5), (1.1, 0.5), (0.5, -0.1), (0.0, 0.0), (math.nan, 0.5), (0.5, math.nan)],
)
def test_a_step_that_does_not_go_down_is_refused(step, sigma, sigma_next):
    with pytest.raises(ValueError, match=rf"sigma={sigma}, sigma_next={sigma_next}"):
        some_step(step, sigma=sigma, sigma_next=sigma_next)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("noise_std", [-0.1, math.nan, math.inf])
def test_noise_that_is_no_amount_is_refused(step, noise_std):
    with pytest.raises(ValueError, match=str(noise_std)):
        some_step(step, noise_std=noise_std)


def test_more_noise_than_cps_has_room_for_is_refused():
    some_step(cps_step, noise_std=0.55)
    with pytest.raises(ValueError, match=r"0\.55.*0\.56"):
        some_step(cps_step, noise_std=0.56)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["velocity", "noise", "x_next"])
@pytest.mark.parametrize("shape", [(1, 4), (3, 1), (4,), (3, 4, 1)])
def test_tensors_of_other_shapes_are_refused_though_they_would_broadcast(step, name, shape):
    tensors = {"velocity": draws(3, 4), "noise": draws(3, 4), name: draws(*shape)}
    velocity = tensors.pop("velocity")
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        step(draws(3, 4), velocity, 0.7, 0.55, 0.4, **tensors)


# ------------------------------------------------------------------------------------ how much noise


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_noise_of_each_schedule_is_the_published_formula(shift):
    sigmas, a = sigma_grid(10, shift), 0.7
    s = sigmas.double().numpy()
    everywhere = set(range(10))
    flow = a * np.sqrt(s[:-1] / (1 - np.where(s[:-1] == 1, s[1], s[:-1])))
    expected = {
        "flow-grpo": flow,
        "dance-grpo": np.full(10, a),
        "cps": s[1:] * math.sin(a * math.pi / 2),
    }
    assert expected.keys() == SCHEDULES.keys()
    for name, levels in expected.items():
        found = noise_levels(name, sigmas, a, everywhere)
        np.testing.assert_allclose(found[:-1], levels[:-1], rtol=1e-6)
        assert found[-1] == 0, "the last step's noise would stay in the picture"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [set(), {0}, {3, 4}, {0, 7, 9}, set(range(10))])
def test_noise_falls_on_the_given_steps_and_never_on_the_last(schedule, steps):
    levels = noise_levels(schedule, sigma_grid(10, 3.0), 0.5, steps)
    assert {i for i, s in enumerate(levels) if s > 0} == steps - {9}
    assert all(s == 0 for i, s in enumerate(levels) if i not in steps - {9})


@pytest.mark.parametrize("first", [1.0, 0.9999, 0.999, 0.95])
def test_flow_grpos_noise_is_guarded_at_and_near_sigma_one(first):
    """The variance of the first step, s^2 |dt|, is about a^2 wherever the grid begins; guarded at 1 alone it is a^2 * 90 at 0.999."""
    sigmas = torch.tensor([first, 0.91, 0.5, 0.0], dtype=torch.float64)
    s = flow_grpo_noise(sigmas, 0.7)
    assert s[0] == pytest.approx(0.7 * math.sqrt(first / (1 - 0.91)))
    assert s[1:] == pytest.approx([0.7 * math.sqrt(0.91 / 0.09), 0.7])
    assert s[0] ** 2 * (first - 0.91) <= 0.7**2


@settings(examples, max_examples=20)
@given(st.integers(2, 20), st.floats(0.2, 10), st.just(0.0) | st.floats(0.001, 1))
def test_every_schedule_gives_levels_that_its_step_takes(steps, shift, level):
    sigmas = sigma_grid(steps, shift)
    x = torch.ones(1, 2)
    for name, schedule in SCHEDULES.items():
        for i, s in enumerate(noise_levels(name, sigmas, level, set(range(steps)))):
            made = schedule.step(x, x, sigmas[i].item(), sigmas[i + 1].item(), s, noise=x)
            assert made.x_next.isfinite().all() and made.log_prob.isfinite().all() and s >= 0


@pytest.mark.parametrize("level", [1.01, -0.1, math.nan])
def test_cps_refuses_a_level_outside_0_to_1(level):
    with pytest.raises(ValueError, match=str(level)):
        cps_noise(sigma_grid(4), level)


# ------------------------------------------------------------------------------------ invariant 3: the marginals
#
# Data N(m, c^2), noise N(0, 1): x at sigma is N((1 - sigma) m, V) with V = (1 - sigma)^2 c^2 + sigma^2, and noise, data and x are jointly
# normal, so the velocity E[noise - data | x] is known. The exact ODE takes N(0, 1) to N(m, c^2).

M, C = 1.5, 0.5


def velocity_at(x, sigma, m=M, c=C):
    away = x - (1 - sigma) * m
    variance = (1 - sigma) ** 2 * c**2 + sigma**2
    return sigma * away / variance - (m + (1 - sigma) * c**2 * away / variance)


def marginal(sigma, m=M, c=C):
    return (1 - sigma) * m, (1 - sigma) ** 2 * c**2 + sigma**2


def moments_on_the_way(schedule, level, sigmas, m=M, c=C):
    """Mean and variance after every step without sampling: a step's mean is affine in x, so two points tell all of it."""
    levels = noise_levels(schedule, sigmas, level, set(range(len(sigmas))))
    mean, variance, found = 0.0, 1.0, []
    for i, s in enumerate(levels):
        sigma, x = sigmas[i].item(), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        made = SCHEDULES[schedule].step(
            x, velocity_at(x, sigma, m, c), sigma, sigmas[i + 1].item(), s, noise=0 * x
        )
        at_zero, at_one = made.mean.flatten().tolist()
        slope = at_one - at_zero
        mean, variance = slope * mean + at_zero, slope**2 * variance + made.std**2
        found.append((mean, variance))
    return found


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    "schedule,level",
    [
        ("dance-grpo", 0.0),
        ("dance-grpo", 0.3),
        ("dance-grpo", 0.7),
        ("flow-grpo", 0.3),
        ("flow-grpo", 0.7),
        ("flow-grpo", 0.9),
    ],
)
def test_the_marginals_are_kept_in_the_limit_of_small_steps(schedule, level, shift):
    """The mean exactly; the variance with an error of the order of the step. (Flow-GRPO's first steps, where s^2 |dt| stays about a^2,
    add an error of their own, which the rest of the way forgets slowly.)"""
    errors = []
    for steps in (100, 400, 1600):
        mean, variance = moments_on_the_way(schedule, level, sigma_grid(steps, shift))[-1]
        assert mean == pytest.approx(M, abs=1e-5)
        errors.append(abs(variance / C**2 - 1))
    assert errors[-1] < 0.005
    if schedule == "dance-grpo":
        assert errors[1] == pytest.approx(errors[0] / 4, rel=0.2) and errors[2] == pytest.approx(
            errors[1] / 4, rel=0.2
        )


@pytest.mark.parametrize("schedule,level", [("dance-grpo", 0.7), ("flow-grpo", 0.7)])
def test_the_marginals_are_kept_on_the_whole_way(schedule, level):
    sigmas = sigma_grid(1600)
    for sigma, (mean, variance) in zip(
        sigmas[1:].tolist(), moments_on_the_way(schedule, level, sigmas), strict=True
    ):
        expected_mean, expected_variance = marginal(sigma)
        assert mean == pytest.approx(expected_mean, abs=1e-4)
        # Step i of Flow-GRPO has s^2 |dt| of about a^2 / i near sigma = 1, however fine the grid: up to a tenth too much variance.
        early = schedule == "flow-grpo" and sigma > 0.5
        assert variance == pytest.approx(expected_variance, rel=0.1 if early else 0.01)


@pytest.mark.parametrize(
    "schedule,level", [("dance-grpo", 0.3), ("dance-grpo", 0.7), ("flow-grpo", 0.7), ("cps", 0.1)]
)
def test_sampled_marginals_are_those_of_the_ode(schedule, level):
    """40 000 samples: 4 standard errors of mean and variance, and 2 % of the variance for 200 steps of finite size."""
    sigmas, n = sigma_grid(200), 40_000
    levels = noise_levels(schedule, sigmas, level, set(range(200)))
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    halfway = None
    for i, s in enumerate(levels):
        sigma, sigma_next = sigmas[i].item(), sigmas[i + 1].item()
        noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
        x = (
            SCHEDULES[schedule]
            .step(x, velocity_at(x, sigma), sigma, sigma_next, s, noise=noise)
            .x_next
        )
        if i == 99:
            halfway = x
    for samples, (mean, variance) in ((halfway, marginal(0.5)), (x, (M, C**2))):
        assert samples.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / n))
        assert samples.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / n) + 0.02)


@pytest.mark.parametrize("level", [0.2, 0.5, 0.9])
def test_cps_keeps_the_marginals_of_one_picture_at_any_level(level):
    """What it is named for: were the estimate of the data exact, noise of variance sigma'^2 would be left after each step."""
    sigmas = sigma_grid(12, 3.0)
    for sigma, (mean, variance) in zip(
        sigmas[1:].tolist(), moments_on_the_way("cps", level, sigmas, c=0.0), strict=True
    ):
        assert mean == pytest.approx((1 - sigma) * M, abs=1e-9) and variance == pytest.approx(
            sigma**2, abs=1e-9
        )


@pytest.mark.parametrize("level", [0.3, 0.5, 0.9])
def test_cps_narrows_a_spread_of_pictures_by_a_known_factor(level):
    """CPS is not an SDE of the flow: its fresh noise does not shrink with the step. With d = sigma' sin(t), t = level pi / 2, a step at
    sigma -> 0 is x + h score + d noise with h = sigma^2 (1 - cos t), half of whose Langevin noise, 2 h, is d^2 times 1 / (1 + cos t);
    so the variance settles at (1 + cos t) / 2 of the data's, in the limit of many steps."""
    mean, variance = moments_on_the_way("cps", level, sigma_grid(1600))[-1]
    assert mean == pytest.approx(M, abs=1e-4)
    assert variance == pytest.approx(C**2 * (1 + math.cos(level * math.pi / 2)) / 2, rel=0.01)


def test_cps_keeps_the_marginals_when_its_level_shrinks_with_the_step():
    """A level of order 1 / sqrt(steps) makes the noise's variance proportional to the step, as in an SDE."""
    errors = [
        abs(moments_on_the_way("cps", 2 / math.sqrt(n), sigma_grid(n))[-1][1] / C**2 - 1)
        for n in (100, 400, 1600)
    ]
    assert errors[-1] < 0.005 and errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3


# ------------------------------------------------------------------------------------ invariant 4: the policy gradient
#
# The policy's velocity is theta (one number a dimension) at its two noisy steps and a constant at the last, which is not trained. Then the
# sample y is normal with mean B theta + b and a known variance, and the reward -|y - target|^2 has a known expectation and deviation.


class Toy:
    def __init__(self, schedule, level=0.6, sigmas=(1.0, 0.7, 0.4, 0.0)):
        self.schedule, self.sigmas = schedule, sigmas
        self.levels = noise_levels(
            schedule, torch.tensor(sigmas, dtype=torch.float64), level, {0, 1}
        )
        self.theta = torch.tensor([0.4, -0.8, 1.3], dtype=torch.float64)
        self.target = torch.tensor([0.1, 0.7, -0.5], dtype=torch.float64)
        self.last = -0.3

    def coefficients(self):
        """y = start * a + theta * b + rest + noise of variance `variance`, from the published formulas."""
        a, b, variance = 1.0, 0.0, 0.0
        for i in (0, 1):
            sigma, after, s = self.sigmas[i], self.sigmas[i + 1], self.levels[i]
            if self.schedule == "cps":
                kept, added = math.sqrt(after**2 - s**2), s**2
                on_x, on_v = (1 - after) + kept, -(1 - after) * sigma + kept * (1 - sigma)
            else:
                dt = after - sigma
                added = s**2 * -dt
                on_x, on_v = 1 + s**2 / (2 * sigma) * dt, dt + s**2 / (2 * sigma) * (1 - sigma) * dt
            a, b, variance = on_x * a, on_x * b + on_v, on_x**2 * variance + added
        return a, b, self.last * (self.sigmas[3] - self.sigmas[2]), variance + a**2

    def expectation(self):
        """Gradient of E[reward] in theta, and the reward's standard deviation."""
        _, b, rest, variance = self.coefficients()
        away = b * self.theta.numpy() + rest - self.target.numpy()
        return -2 * away * b, math.sqrt((2 * variance**2 + 4 * variance * away**2).sum())

    def sample(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        steps = []
        for i in (0, 1):
            noise = torch.randn(n, 3, generator=generator, dtype=torch.float64)
            made = self.step(i, x, self.theta.expand(n, 3), noise=noise)
            steps.append((i, x, made.x_next, made.log_prob))
            x = made.x_next
        y = sde_step(x, torch.full_like(x, self.last), self.sigmas[2], self.sigmas[3], 0.0).x_next
        return steps, -((y - self.target) ** 2).sum(1)

    def step(self, i, x, velocity, **given):
        step = SCHEDULES[self.schedule].step
        return step(x, velocity, self.sigmas[i], self.sigmas[i + 1], self.levels[i], **given)

    def gradients(self, steps, advantages):
        """(n, 3): each sample's part of the gradient of the loss; the gradient is their mean."""
        theta = self.theta.repeat(len(advantages), 1).requires_grad_(True)
        new = torch.stack(
            [self.step(i, x, theta, x_next=x_next).log_prob for i, x, x_next, _ in steps]
        )
        old = torch.stack([log_prob for *_, log_prob in steps])
        assert torch.equal(new, old), "on-policy the ratio is exactly 1"
        surrogate_loss(new - old, advantages, None, 1e-4).backward()
        return theta.grad * len(advantages)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_policy_gradient_is_that_of_the_expected_reward(schedule):
    """The loss averages log_prob over 3 dimensions and 2 steps, so its gradient is -(gradient of E[R]) / 6: within 4 standard errors,
    which are themselves a small part of it."""
    toy = Toy(schedule)
    steps, rewards = toy.sample(200_000, seed=3)
    rows = toy.gradients(steps, rewards - rewards.mean()).numpy()
    expected = -toy.expectation()[0] / (3 * 2)
    error = rows.std(0) / math.sqrt(len(rows))
    assert (np.abs(rows.mean(0) - expected) < 4 * error).all()
    assert (error < 0.1 * np.abs(expected)).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_grpos_gradient_is_the_policy_gradient_in_units_of_the_rewards_deviation(schedule):
    """With one large group the advantages are (R - E[R]) / sd[R]."""
    toy = Toy(schedule)
    steps, rewards = toy.sample(200_000, seed=4)
    rows = toy.gradients(steps, group_advantages(rewards[None])[0]).numpy()
    gradient, deviation = toy.expectation()
    expected = -gradient / deviation / (3 * 2)
    error = rows.std(0) / math.sqrt(len(rows))
    assert (np.abs(rows.mean(0) - expected) < 4 * error).all()
    assert (error < 0.1 * np.abs(expected)).all()
    assert rewards.std().item() == pytest.approx(deviation, rel=0.02)


def test_a_group_mean_that_includes_the_sample_shrinks_the_gradient_by_one_over_g():
    """The baseline is not independent of its sample: with G = 4 the centred rewards give (G - 1) / G of the policy gradient."""
    toy, g = Toy("dance-grpo"), 4
    steps, rewards = toy.sample(200_000, seed=5)
    centred = rewards.view(-1, g) - rewards.view(-1, g).mean(1, keepdim=True)
    rows = toy.gradients(steps, centred.flatten()).view(-1, g, 3).mean(1).numpy()
    expected = -toy.expectation()[0] / (3 * 2) * (g - 1) / g
    error = rows.std(0) / math.sqrt(len(rows))
    assert (np.abs(rows.mean(0) - expected) < 4 * error).all()
