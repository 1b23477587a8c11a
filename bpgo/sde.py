"""The reverse-time SDE of a rectified flow: sigma grids, noise schedules, one step and its density.

sigma runs from 1 to 0, x = (1 - sigma) data + sigma noise, and the model predicts
v = noise - data. At x, the estimates of data and noise are x0 = x - sigma v and
e = x + (1 - sigma) v. Write sigma' for the next level and dt = sigma' - sigma < 0. Every step here
is a Gaussian with mean

    mean = (1 - sigma') x0 + c e = x + v dt + (c - sigma') e.

The schedules differ only in how much predicted noise c they keep and in the standard deviation of
the fresh noise that they add:

    Flow-GRPO (arXiv 2505.05470) and DanceGRPO (arXiv 2505.07818):
        c = sigma' + s^2 dt / (2 sigma),  std = s sqrt(-dt)
    coefficient-preserving sampling (CPS, arXiv 2509.05952):
        c = sqrt(sigma'^2 - s^2),         std = s

The first form keeps the marginals of the flow in the limit of small steps. CPS keeps the
coefficients of data and noise exactly for a single image. Its fresh noise does not shrink with the
step, so at a fixed level it narrows the distribution even on a fine grid (`tests/test_sde.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """One step. x_next and mean have the shape of x, log_prob is (B,), std is a number."""

    x_next: Tensor
    log_prob: Tensor
    mean: Tensor
    std: float


def sigma_grid(steps: int, shift: float = 1.0) -> Tensor:
    """(steps + 1,) float32 levels from 1 to 0, with sigma -> shift sigma / (1 + (shift - 1) sigma).

    The shift is equation 23 of arXiv 2403.03206, applied once. Raises ValueError unless steps >= 1
    and shift > 0.
    """
    if steps < 1 or not 0 < shift < math.inf:
        raise ValueError(
            f"a sigma grid needs steps >= 1 and shift > 0, not steps={steps}, shift={shift}"
        )
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * even / (1 + (shift - 1) * even)).float()


def sde_step(
    x: Tensor,
    velocity: Tensor,
    sigma: float,
    sigma_next: float,
    noise_std: float,
    noise: Tensor | None = None,
    x_next: Tensor | None = None,
) -> Step:
    """One Euler-Maruyama step of the SDE of Flow-GRPO and DanceGRPO.

    x, velocity: (B, ...). noise_std: s above, in [0, inf); s = 0 gives the Euler step of the ODE.
    noise: standard normal, drawn if None. x_next: if given, its log-probability is evaluated and
    nothing is drawn. Only then does log_prob carry a gradient to the velocity, because a drawn
    x_next moves with the mean.

    log_prob is the full Gaussian log density, averaged over all dimensions but the first. It is 0
    if std = 0, where there is no density. Raises ValueError for levels that do not decrease, for a
    negative noise_std and for shapes that differ from x's.
    """
    sigma, sigma_next, dt = _check(sigma, sigma_next, noise_std)
    correction = noise_std**2 * dt / (2 * sigma)
    std = noise_std * math.sqrt(-dt)
    return _gaussian_step(x, velocity, sigma, dt, correction, std, noise, x_next)


def cps_step(
    x: Tensor,
    velocity: Tensor,
    sigma: float,
    sigma_next: float,
    noise_std: float,
    noise: Tensor | None = None,
    x_next: Tensor | None = None,
) -> Step:
    """Like `sde_step` for coefficient-preserving sampling, with noise_std <= sigma_next."""
    sigma, sigma_next, dt = _check(sigma, sigma_next, noise_std)
    if noise_std > sigma_next:
        raise ValueError(
            f"CPS adds at most sigma_next = {sigma_next} of noise, not noise_std = {noise_std}"
        )
    correction = math.sqrt(sigma_next**2 - noise_std**2) - sigma_next
    return _gaussian_step(x, velocity, sigma, dt, correction, noise_std, noise, x_next)


def _check(sigma: float, sigma_next: float, noise_std: float) -> tuple[float, float, float]:
    sigma, sigma_next = float(sigma), float(sigma_next)
    if not 0 <= sigma_next < sigma <= 1:
        raise ValueError(
            f"a step needs 0 <= sigma_next < sigma <= 1, not sigma={sigma}, sigma_next={sigma_next}"
        )
    if not 0 <= noise_std < math.inf:
        raise ValueError(f"noise_std must be in [0, inf), not {noise_std}")
    return sigma, sigma_next, sigma_next - sigma


def _gaussian_step(
    x: Tensor,
    velocity: Tensor,
    sigma: float,
    dt: float,
    correction: float,
    std: float,
    noise: Tensor | None,
    x_next: Tensor | None,
) -> Step:
    """A draw from N(x + v dt + correction e, std^2), or the log-probability of x_next under it."""
    for name, tensor in (("velocity", velocity), ("noise", noise), ("x_next", x_next)):
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} must have the shape of x {tuple(x.shape)}"
            )
    mean = x + velocity * dt
    if correction:
        mean = mean + correction * (x + (1 - sigma) * velocity)
    if std == 0:
        return Step(mean if x_next is None else x_next, x.new_zeros(len(x)), mean, 0.0)
    if x_next is None:
        x_next = mean + std * (torch.randn_like(x) if noise is None else noise)
    density = -((x_next - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
    return Step(x_next, density.flatten(1).mean(1), mean, std)


# --------------------------------------------------------------- how much noise each step receives


def flow_grpo_noise(sigmas: Tensor, level: float) -> list[float]:
    """s = level sqrt(sigma / (1 - min(sigma, sigmas[1]))): finite where sigma = 1."""
    second = float(sigmas[1])
    return [level * math.sqrt(s / (1 - min(s, second))) for s in sigmas[:-1].tolist()]


def dance_grpo_noise(sigmas: Tensor, level: float) -> list[float]:
    """s = level (eta in the paper) at every step."""
    return [level] * (len(sigmas) - 1)


def cps_noise(sigmas: Tensor, level: float) -> list[float]:
    """s = sigma' sin(level pi / 2), with level in [0, 1]."""
    if not 0 <= level <= 1:
        raise ValueError(f"the noise level of CPS must be in [0, 1], not {level}")
    return [s * math.sin(level * math.pi / 2) for s in sigmas[1:].tolist()]


class Schedule(NamedTuple):
    """A noise schedule: how a step is computed, and the noise_std of each step of a sigma grid.

    step: has the signature of `sde_step`. noise: (sigmas, level) -> one noise_std per step.
    """

    step: Callable[..., Step]
    noise: Callable[[Tensor, float], list[float]]


FLOW_GRPO = Schedule(sde_step, flow_grpo_noise)
DANCE_GRPO = Schedule(sde_step, dance_grpo_noise)
CPS = Schedule(cps_step, cps_noise)


def noise_levels(
    schedule: Schedule, sigmas: Tensor, level: float, steps: Collection[int]
) -> list[float]:
    """The noise_std of each step of the grid: the schedule's at `steps`, and 0 at all others.

    The last step never carries noise, because that noise would stay in the image.
    """
    levels = schedule.noise(sigmas, level)
    last = len(levels) - 1
    return [s if i in steps and i != last else 0.0 for i, s in enumerate(levels)]
