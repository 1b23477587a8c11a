"""Invariant 3: SDE sampling keeps the marginals of the flow.

Data are N(m, c^2) and noise is N(0, 1). Then x at sigma is N((1 - sigma) m, V) with
V = (1 - sigma)^2 c^2 + sigma^2. Noise, data and x are jointly normal, so the velocity
E[noise - data | x] is known. The exact ODE takes N(0, 1) to N(m, c^2).
"""

import math

import pytest
import torch

from bpgo.registry import TABLES, find
from bpgo.sde import noise_levels, sigma_grid

SCHEDULES = {name: find("schedule", name) for name in TABLES["schedule"]}
M, C = 1.5, 0.5


def velocity_at(x, sigma, m=M, c=C):
    away = x - (1 - sigma) * m
    variance = (1 - sigma) ** 2 * c**2 + sigma**2
    return sigma * away / variance - (m + (1 - sigma) * c**2 * away / variance)


def marginal(sigma, m=M, c=C):
    return (1 - sigma) * m, (1 - sigma) ** 2 * c**2 + sigma**2


def moments_on_the_way(schedule, level, sigmas, m=M, c=C):
    """Mean and variance after every step, without sampling.

    The mean of a step is affine in x, so two points determine it.
    """
    levels = noise_levels(SCHEDULES[schedule], sigmas, level, set(range(len(sigmas))))
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
def test_the_marginals_are_kept_in_the_limit_of_small_steps(schedule, level, shift):  # invariant 3
    """The mean is exact, and the error of the variance is of the order of the step.

    The first steps of Flow-GRPO, where s^2 |dt| stays about a^2, add a further error, which decays
    slowly on the rest of the way.
    """
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
def test_the_marginals_are_kept_at_every_step(schedule, level):  # invariant 3
    sigmas = sigma_grid(1600)
    for sigma, (mean, variance) in zip(
        sigmas[1:].tolist(), moments_on_the_way(schedule, level, sigmas), strict=True
    ):
        expected_mean, expected_variance = marginal(sigma)
        assert mean == pytest.approx(expected_mean, abs=1e-4)
        # Near sigma = 1, step i of Flow-GRPO has s^2 |dt| of about a^2 / i however fine the grid:
        # up to a tenth too much variance.
        early = schedule == "flow-grpo" and sigma > 0.5
        assert variance == pytest.approx(expected_variance, rel=0.1 if early else 0.01)


@pytest.mark.parametrize(
    "schedule,level", [("dance-grpo", 0.3), ("dance-grpo", 0.7), ("flow-grpo", 0.7), ("cps", 0.1)]
)
def test_sampled_marginals_are_those_of_the_ode(schedule, level):  # invariant 3
    """40 000 samples: 4 standard errors, and 2 % of the variance for steps of finite size."""
    sigmas, n = sigma_grid(200), 40_000
    levels = noise_levels(SCHEDULES[schedule], sigmas, level, set(range(200)))
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
def test_cps_keeps_the_marginals_of_a_single_image_at_any_level(level):
    """For a single image the estimate of the data is exact, and this is what CPS is named for."""
    sigmas = sigma_grid(12, 3.0)
    for sigma, (mean, variance) in zip(
        sigmas[1:].tolist(), moments_on_the_way("cps", level, sigmas, c=0.0), strict=True
    ):
        assert mean == pytest.approx((1 - sigma) * M, abs=1e-9) and variance == pytest.approx(
            sigma**2, abs=1e-9
        )


@pytest.mark.parametrize("level", [0.3, 0.5, 0.9])
def test_cps_narrows_a_distribution_by_a_known_factor(level):
    """CPS is not an SDE of the flow, because its fresh noise does not shrink with the step.

    With d = sigma' sin(t) and t = level pi / 2, a step at sigma -> 0 is x + h score + d noise with
    h = sigma^2 (1 - cos t). The Langevin noise of this drift has the variance 2 h, and d^2 is
    (1 + cos t) / 2 of it. In the limit of many steps, the variance is therefore (1 + cos t) / 2 of
    the data's.
    """
    mean, variance = moments_on_the_way("cps", level, sigma_grid(1600))[-1]
    assert mean == pytest.approx(M, abs=1e-4)
    assert variance == pytest.approx(C**2 * (1 + math.cos(level * math.pi / 2)) / 2, rel=0.01)


def test_cps_keeps_the_marginals_when_its_level_shrinks_with_the_step():
    """At a level of order 1 / sqrt(steps) the variance of the noise is proportional to the step."""
    errors = [
        abs(moments_on_the_way("cps", 2 / math.sqrt(n), sigma_grid(n))[-1][1] / C**2 - 1)
        for n in (100, 400, 1600)
    ]
    assert errors[-1] < 0.005 and errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3
