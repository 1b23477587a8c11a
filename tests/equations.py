"""Equations 1-5 of arXiv 2511.18919, written again in numpy float64, and random input.

Several test modules compare the package with these functions.
"""

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bpgo.registry import find

examples = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
SETTINGS = {"alpha": 0.5, "k": 3.0, "lam": 0.7, "beta": 0.4}
# What each objective can be set to; it refuses everything else.
HYPERPARAMETERS = {
    "grpo": (),
    "ras": ("alpha", "k"),
    "crt": ("lam", "beta"),
    "bpgo": ("alpha", "k", "lam", "beta"),
    "teleboost": ("alpha",),
}
OBJECTIVES = list(HYPERPARAMETERS)


def advantages_of(name, rewards, prior, **changes):
    """What an objective makes of rewards, with SETTINGS and these changes."""
    values = SETTINGS | changes
    given = {key: values[key] for key in HYPERPARAMETERS[name]}
    return find("objective", name)(rewards, prior, **given)


def zscore(r, eps=1e-8):
    """Equation 1."""
    return (r - r.mean(1, keepdims=True)) / (r.std(1, ddof=1, keepdims=True) + eps)


def as_table(prior, r):
    """A prior of any of the three kinds as (N, G)."""
    prior = np.asarray(prior, dtype=float)
    return np.broadcast_to(prior[:, None] if prior.ndim == 1 else prior, r.shape)


def weights_of(r, prior, alpha, k):
    """Equation 2."""
    return 1 + alpha * (2 / (1 + np.exp(-k * (r.mean(1) - as_table(prior, r).mean(1)))) - 1)


def transformed_of(r, prior, lam):
    """Equation 4."""
    p = as_table(prior, r)
    return (lam * (r - p) + np.where(r > p, 1.0, 0.0)) * np.exp(r)


def rewards_of(seed, n=5, g=8):
    """Random rewards (N, G)."""
    return np.random.default_rng(seed).normal(0.5, 0.6, (n, g))


def assert_equal_to(found, expected, rtol=1e-10, atol=1e-12):
    """A tensor is equal to an array, up to rounding."""
    np.testing.assert_allclose(found.numpy(), expected, rtol=rtol, atol=atol)


shapes = st.tuples(st.integers(1, 5), st.integers(2, 10))
# Thousandths, as reward models print them, so that the standard deviation of a group is far above
# the rounding of its mean.
thousandths = st.integers(-5000, 5000).map(lambda i: i / 1000)
tables = shapes.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=thousandths))
