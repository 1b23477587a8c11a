"""Helpers for tests on simulated data, and the strategies for hypothesis."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

# Whole numbers: shifts and scales then lose no digit, and there are ties.
WHOLE = st.integers(-50, 50).map(float)
SCALE = st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0])
SHIFT = st.integers(-100, 100)
QUICK = settings(max_examples=30, deadline=None, derandomize=True)


def coverage(intervals, truth) -> float:
    """The share of intervals that contain the truth."""
    return float(np.mean([found.low <= truth <= found.high for found in intervals]))


def simulation_error(probability: float, times: int) -> float:
    """Three standard errors of a frequency."""
    return 3 * (probability * (1 - probability) / times) ** 0.5
