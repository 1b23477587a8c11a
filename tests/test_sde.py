"""Sigma grids, steps and noise schedules against diffusers, scipy and the published formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from bpgo.registry import TABLES, find
from bpgo.sde import cps_noise, cps_step, flow_grpo_noise, noise_levels, sde_step, sigma_grid

examples = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
STEPS = [pytest.param(sde_step, id="sde"), pytest.param(cps_step, id="cps")]
SCHEDULES = {name: find("schedule", name) for name in TABLES["schedule"]}


@pytest.fixture
def scheduler():
    diffusers = pytest.importorskip("diffusers")
    return lambda **options: diffusers.FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000, **options
    )


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_step(step, shape=(3, 2, 4), sigma=0.7, sigma_next=0.55, noise_std=0.4, **given):
    """One step from random x and velocity, and both of these as numpy arrays."""
    x, v = draws(*shape, seed=1), draws(*shape, seed=2)
    return step(x, v, sigma, sigma_next, noise_std, **given), x.numpy(), v.numpy()


# -------------------------------------------------------------------------------------- sigma grids


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
def test_sigma_grid_is_the_grid_of_the_pipelines_with_the_shift_applied_once(
    scheduler, steps, shift
):
    reference = scheduler(shift=shift)
    reference.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    torch.testing.assert_close(sigma_grid(steps, shift), reference.sigmas, rtol=1e-6, atol=0)
    if steps > 1 and shift > 1:
        # With our grid the scheduler would shift twice, and that is another grid.
        reference.set_timesteps(sigmas=sigma_grid(steps, shift)[:-1].numpy())
        assert not torch.allclose(sigma_grid(steps, shift), reference.sigmas, atol=0.01)


def test_sigma_grid_is_the_grid_of_the_scheduler_with_the_dynamic_shift_of_flux(scheduler):
    reference = scheduler(use_dynamic_shifting=True)
    reference.set_timesteps(sigmas=np.linspace(1, 1 / 12, 12), mu=0.8)
    torch.testing.assert_close(sigma_grid(12, math.exp(0.8)), reference.sigmas, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "steps,shift", [(0, 1.0), (-3, 1.0), (4, 0.0), (4, -1.0), (4, math.nan), (4, math.inf)]
)
def test_a_grid_without_steps_or_with_a_wrong_shift_is_refused(steps, shift):
    with pytest.raises(ValueError, match=rf"steps={steps}, shift={shift}"):
        sigma_grid(steps, shift)


# ----------------------------------------------------------------------------------------- one step


def test_without_noise_a_step_is_that_of_the_scheduler(scheduler):
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
def test_without_noise_a_step_is_an_euler_step_and_has_no_density(step):
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


def test_the_means_of_flow_grpo_and_dance_grpo_are_equal():
    """DanceGRPO writes its mean with the score as x + v dt - eta^2 / 2 score dt.

    The score is -(x - (1 - sigma) x0) / sigma^2.
    """
    made, x, v = some_step(sde_step)
    data = x - 0.7 * v
    score = -(x - (1 - 0.7) * data) / 0.7**2
    np.testing.assert_allclose(
        made.mean.numpy(), x + (v - 0.5 * 0.4**2 * score) * (0.55 - 0.7), rtol=1e-12
    )


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (2, 3, 4, 4), (1, 2, 3, 4, 5)])
def test_log_prob_is_the_density_of_scipy_averaged_over_all_but_the_batch(step, shape):
    made, _, _ = some_step(step, shape, noise=draws(*shape, seed=3))
    density = stats.norm.logpdf(made.x_next.numpy(), made.mean.numpy(), made.std)
    expected = density.reshape(shape[0], -1).mean(1)
    assert made.log_prob.shape == shape[:1]
    np.testing.assert_allclose(made.log_prob.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_log_prob_of_a_draw_is_evaluated_to_the_same_bits(step, dtype):
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
def test_a_step_draws_standard_normal_noise_from_the_generator_of_torch(step):
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
def test_levels_that_do_not_decrease_are_refused(step, sigma, sigma_next):
    with pytest.raises(ValueError, match=rf"sigma={sigma}, sigma_next={sigma_next}"):
        some_step(step, sigma=sigma, sigma_next=sigma_next)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("noise_std", [-0.1, math.nan, math.inf])
def test_a_noise_std_out_of_range_is_refused(step, noise_std):
    with pytest.raises(ValueError, match=str(noise_std)):
        some_step(step, noise_std=noise_std)


def test_more_noise_than_cps_can_add_is_refused():
    some_step(cps_step, noise_std=0.55)
    with pytest.raises(ValueError, match=r"0\.55.*0\.56"):
        some_step(cps_step, noise_std=0.56)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["velocity", "noise", "x_next"])
@pytest.mark.parametrize("shape", [(1, 4), (3, 1), (4,), (3, 4, 1)])
def test_tensors_of_other_shapes_are_refused_even_if_they_broadcast(step, name, shape):
    tensors = {"velocity": draws(3, 4), "noise": draws(3, 4), name: draws(*shape)}
    velocity = tensors.pop("velocity")
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        step(draws(3, 4), velocity, 0.7, 0.55, 0.4, **tensors)


# ----------------------------------------------------------------------------------- how much noise


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
        found = noise_levels(SCHEDULES[name], sigmas, a, everywhere)
        np.testing.assert_allclose(found[:-1], levels[:-1], rtol=1e-6)
        assert found[-1] == 0, "noise of the last step would stay in the image"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [set(), {0}, {3, 4}, {0, 7, 9}, set(range(10))])
def test_only_the_given_steps_carry_noise_and_the_last_never_does(schedule, steps):
    levels = noise_levels(SCHEDULES[schedule], sigma_grid(10, 3.0), 0.5, steps)
    assert {i for i, s in enumerate(levels) if s > 0} == steps - {9}
    assert all(s == 0 for i, s in enumerate(levels) if i not in steps - {9})


@pytest.mark.parametrize("first", [1.0, 0.9999, 0.999, 0.95])
def test_the_noise_of_flow_grpo_is_bounded_at_and_near_sigma_one(first):
    """The variance of the first step, s^2 |dt|, is about a^2 wherever the grid begins.

    If only sigma = 1 itself were treated, it would be 90 a^2 at 0.999.
    """
    sigmas = torch.tensor([first, 0.91, 0.5, 0.0], dtype=torch.float64)
    s = flow_grpo_noise(sigmas, 0.7)
    assert s[0] == pytest.approx(0.7 * math.sqrt(first / (1 - 0.91)))
    assert s[1:] == pytest.approx([0.7 * math.sqrt(0.91 / 0.09), 0.7])
    assert s[0] ** 2 * (first - 0.91) <= 0.7**2


@settings(examples, max_examples=20)
@given(st.integers(2, 20), st.floats(0.2, 10), st.just(0.0) | st.floats(0.001, 1))
def test_every_schedule_gives_levels_that_its_step_accepts(steps, shift, level):
    sigmas = sigma_grid(steps, shift)
    x = torch.ones(1, 2)
    for name, schedule in SCHEDULES.items():
        levels = noise_levels(schedule, sigmas, level, set(range(steps)))
        assert len(levels) == steps, name
        for i, s in enumerate(levels):
            made = schedule.step(x, x, sigmas[i].item(), sigmas[i + 1].item(), s, noise=x)
            assert made.x_next.isfinite().all() and made.log_prob.isfinite().all() and s >= 0


@pytest.mark.parametrize("level", [1.01, -0.1, math.nan])
def test_a_level_of_cps_outside_0_to_1_is_refused(level):
    with pytest.raises(ValueError, match=str(level)):
        cps_noise(sigma_grid(4), level)
