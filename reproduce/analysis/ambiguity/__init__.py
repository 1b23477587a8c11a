"""What a reward says about prompts that leave things open, and whether a group's deviation from a
prior shows how reliable the group is (H5 of reproduce/PLAN.md).

`drawings` measures a reward on drawings whose truth is known. `groups` reads the groups of samples
that the study's records contain.
"""

from reproduce.analysis.ambiguity.drawings import (
    TASKS,
    Case,
    World,
    case,
    measure,
    mixed,
    omissions,
    over_wordings,
    rewards_of,
    subjects,
    synonyms,
    turned,
    wordings,
    world,
)
from reproduce.analysis.ambiguity.recorded import DEVIATIONS, OTHERS, STAGES, groups, reliability

__all__ = [
    "DEVIATIONS",
    "OTHERS",
    "STAGES",
    "TASKS",
    "Case",
    "World",
    "case",
    "groups",
    "measure",
    "mixed",
    "omissions",
    "over_wordings",
    "reliability",
    "rewards_of",
    "subjects",
    "synonyms",
    "turned",
    "wordings",
    "world",
]
