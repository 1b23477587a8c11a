"""The reverse-time SDE of a rectified flow: sigma grids, noise schedules, and one step with its log-probability.

sigma runs 1 -> 0, x = (1 - sigma) data + sigma noise, and the model predicts v = noise - data. With dt = sigma' - sigma < 0, the
estimates of data and noise at x are x0 = x - sigma v and e = x + (1 - sigma) v. Every step here is a Gaussian around

    mean = (1 - sigma') x0 + c e = x + v dt + (c - sigma') e

and differs only in how much predicted noise c it keeps and how much fresh noise (std) it adds:

    Flow-GRPO (arXiv 2505.05470) and DanceGRPO (arXiv 2505.07818):  c = sigma' + s^2 dt / (2 sigma),   std = s sqrt(-dt)
    coefficient-preserving sampling (CPS, arXiv 2509.05952):        c = sqrt(sigma'^2 - s^2),          std = s

The first keeps the flow's marginals as steps grow finer. CPS keeps the coefficients of data and noise, exactly so for one picture; at a
fixed level its fresh noise does not shrink with the step, so it narrows the distribution however fine the grid (`tests/test_sde.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """One step: x_next and mean shaped as x, log_prob (B,), std a number."""

    x_next: Tensor
    log_prob: Tensor
    mean: Tensor
    std: float


def sigma_grid(steps: int, shift: float = 1.0) -> Tensor:
    """(steps + 1,) float32 levels from 1 to 0, shifted once: sigma -> shift sigma / (1 + (shift - 1) sigma) (arXiv 2403.03206, eq. 23)."""
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
    """One Euler-Maruyama step of the SDE; noise_std is s above, in [0, inf). s = 0 is the Euler step of the ODE.

    x, velocity: (B, ...). noise: standard normal, drawn if None. x_next: evaluate its log-probability instead of making a new
    draw; only so does log_prob carry a gradient into velocity (a draw moves with its mean). log_prob is the full Gaussian
    log density, averaged over all non-batch dimensions; 0 where std = 0 (no density).
    """
    sigma, sigma_next, dt = _check(sigma, sigma_next, noise_std)
    return _gaussian(
        x,
        velocity,
        sigma,
        dt,
        noise_std**2 * dt / (2 * sigma),
        noise_std * math.sqrt(-dt),
        noise,
        x_next,
    )


def cps_step(
    x: Tensor,
    velocity: Tensor,
    sigma: float,
    sigma_next: float,
    noise_std: float,
    noise: Tensor | None = None,
    x_next: Tensor | None = None,
) -> Step:
    """One step of coefficient-preserving sampling, arguments and result as `sde_step`; noise_std in [0, sigma_next]."""
    sigma, sigma_next, dt = _check(sigma, sigma_next, noise_std)
    if noise_std > sigma_next:
        raise ValueError(f"CPS adds at most sigma_next = {sigma_next} of noise, not {noise_std}")
    kept = math.sqrt(sigma_next**2 - noise_std**2)
    return _gaussian(x, velocity, sigma, dt, kept - sigma_next, noise_std, noise, x_next)


def _check(sigma: float, sigma_next: float, noise_std: float) -> tuple[float, float, float]:
    sigma, sigma_next = float(sigma), float(sigma_next)
    if not 0 <= sigma_next < sigma <= 1:
        raise ValueError(
            f"a step goes down: 0 <= sigma_next < sigma <= 1, not sigma={sigma}, sigma_next={sigma_next}"
        )
    if not 0 <= noise_std < math.inf:
        raise ValueError(f"noise_std must be in [0, inf), not {noise_std}")
    return sigma, sigma_next, sigma_next - sigma


def _gaussian(x, velocity, sigma, dt, correction, std, noise, x_next) -> Step:
    """N(x + v dt + correction e, std^2): a draw, or the log-probability of x_next."""
    for name, tensor in (("velocity", velocity), ("noise", noise), ("x_next", x_next)):
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} must have the shape of x {tuple(x.shape)}"
            )
    mean = x + velocity * dt
    if correction:
        mean = mean + correction * (x + (1 - sigma) * velocity)
    if x_next is None:
        x_next = mean + std * (torch.randn_like(x) if noise is None else noise) if std else mean
    if not std:
        return Step(x_next, x.new_zeros(len(x)), mean, 0.0)
    density = -((x_next - mean) ** 2) / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)
    return Step(x_next, density.flatten(1).mean(1), mean, std)


# ------------------------------------------------------------------------------- how much noise at each step of a grid


def flow_grpo_noise(sigmas: Tensor, level: float) -> list[float]:
    """s = level sqrt(sigma / (1 - sigma)); where 1 - sigma vanishes or nearly does, it takes the second grid point's."""
    second = float(sigmas[1])
    return [level * math.sqrt(s / (1 - min(s, second))) for s in sigmas[:-1].tolist()]


def dance_grpo_noise(sigmas: Tensor, level: float) -> list[float]:
    """s = level (eta), the same at every step."""
    return [level] * (len(sigmas) - 1)


def cps_noise(sigmas: Tensor, level: float) -> list[float]:
    """s = sigma' sin(level pi / 2), level in [0, 1]."""
    if not 0 <= level <= 1:
        raise ValueError(f"CPS noise has a level in [0, 1], not {level}")
    return [s * math.sin(level * math.pi / 2) for s in sigmas[1:].tolist()]


class Schedule(NamedTuple):
    """A step function and the noise that it is given at each step of a sigma grid."""

    step: Callable[..., Step]
    noise: Callable[[Tensor, float], list[float]]


SCHEDULES = {
    "flow-grpo": Schedule(sde_step, flow_grpo_noise),
    "dance-grpo": Schedule(sde_step, dance_grpo_noise),
    "cps": Schedule(cps_step, cps_noise),
}


def noise_levels(schedule: str, sigmas: Tensor, level: float, steps: set[int]) -> list[float]:
    """Noise for each step of the grid: the schedule's at the given steps, 0 (plain ODE) elsewhere and always at the last,
    whose noise would stay in the picture."""
    levels = SCHEDULES[schedule].noise(sigmas, level)
    return [s if i in steps and i < len(levels) - 1 else 0.0 for i, s in enumerate(levels)]
