"""Which cells of a grid of settings are not significantly worse than the best one."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy import ndarray


def level_with_best(values: ndarray, higher_is_better: bool = True, alpha: float = 0.05) -> ndarray:
    """(cells,) of bool: which cells of values (cells, seeds) are level with the best cell.

    A cell is level if it is not significantly worse by Tukey's honest significant difference
    (1949, Biometrics 5:99) in randomised blocks. The model of a value is the effect of its cell
    plus the effect of its seed plus normal noise. The variance of the noise is assumed to be equal
    in all cells and has (cells - 1) (seeds - 1) degrees of freedom. With probability 1 - alpha no
    cell that is as good as the best is excluded, however many such cells there are.

    An example of its power: if one of 15 cells with two seeds each is 5 standard deviations better,
    the test finds the other 14 worse in about three of four cases. Paired t tests hardly ever do.
    Level does not mean equal, because small differences are not detected.

    Missing values (NaN) are handled by fitting the effects to the values that exist. The test is
    then approximate (the form of Tukey and Kramer). The best cell has the highest fitted mean among
    the cells with the most seeds. A cell without values is not level. A cell is level if its
    difference from the best one cannot be compared with the noise. This is so if there is only one
    seed, or if no shared seeds link the two cells, not even through other cells.
    """
    return _tukey(values, higher_is_better, alpha)[0]


def least_lead_seen(values: ndarray, alpha: float = 0.05) -> float:
    """The smallest lead of one cell over another that `level_with_best` detects.

    This is Tukey's honest significant difference, in the unit of values (cells, seeds). If seeds
    are missing, it is the median over cells. NaN if no cells can be compared.
    """
    margin = _tukey(values, True, alpha)[1]
    return float(np.median(margin)) if margin.size else np.nan


def _tukey(values: ndarray, higher_is_better: bool, alpha: float) -> tuple[ndarray, ndarray]:
    """The answer of `level_with_best`, and the margins of the cells comparable with the best."""
    values = np.asarray(values, dtype=float) * (1 if higher_is_better else -1)
    if values.ndim != 2 or not values.size or np.isinf(values).any():
        raise ValueError(
            f"values must be (cells, seeds), finite or NaN, got shape {values.shape} with "
            f"{np.isinf(values).sum()} infinite values"
        )
    cell, seed = np.nonzero(~np.isnan(values))
    count = np.count_nonzero(~np.isnan(values), axis=1)
    level, cells = count > 0, np.count_nonzero(count)
    of_cell = cell[:, None] == np.arange(len(values))
    of_seed = seed[:, None] == np.arange(values.shape[1])
    design = np.hstack([of_cell, of_seed]).astype(float)
    freedom = len(cell) - np.linalg.matrix_rank(design)
    if cells < 2 or freedom < 1:
        return level, np.empty(0)

    inverse = np.linalg.pinv(design)
    observed = values[cell, seed] - np.nanmean(values)
    effects = inverse @ observed
    best = np.where(count == count.max(), effects[: len(values)], -np.inf).argmax()
    is_best = np.arange(len(inverse)) == best
    contrasts = is_best - np.eye(len(values), len(inverse))  # the best cell minus each cell
    # A contrast can be estimated if the two cells share seeds, or are linked by other cells.
    comparable = np.isclose(contrasts @ inverse @ design, contrasts, atol=1e-6).all(1)

    residual_variance = ((observed - design @ effects) ** 2).sum() / freedom
    scale = np.sqrt(residual_variance * ((contrasts @ inverse) ** 2).sum(1))
    margin = _studentized_range(1 - alpha, cells, freedom) / np.sqrt(2) * scale
    rounding = 1e-9 * np.ptp(observed)
    worse = comparable & (contrasts @ effects > margin + rounding)
    others = comparable & level & (np.arange(len(values)) != best)
    return level & ~worse, margin[others]


@cache
def _studentized_range(probability: float, cells: int, freedom: int) -> float:
    """Quantile of the studentized range."""
    from scipy.stats import studentized_range  # takes a second to import

    return float(studentized_range.ppf(probability, cells, freedom))
