"""The statistics of the study: intervals over seeds, paired comparisons, grids, ranks and groups.

Missing values are NaN and are left out; in paired data the pair is left out. Infinite values,
wrong shapes and unequal lengths raise ValueError.
"""

from bpgo.analysis.statistics.grids import least_lead_seen, level_with_best
from bpgo.analysis.statistics.groups import agreement, variance_share
from bpgo.analysis.statistics.intervals import (
    SMALL,
    Comparison,
    Interval,
    bootstrap_mean,
    format_interval,
    holm,
    paired,
)
from bpgo.analysis.statistics.ranks import (
    auroc,
    partial_rank_correlation,
    rank_correlation,
    rank_correlation_gain,
)

__all__ = [
    "SMALL",
    "Comparison",
    "Interval",
    "agreement",
    "auroc",
    "bootstrap_mean",
    "format_interval",
    "holm",
    "least_lead_seen",
    "level_with_best",
    "paired",
    "partial_rank_correlation",
    "rank_correlation",
    "rank_correlation_gain",
    "variance_share",
]
