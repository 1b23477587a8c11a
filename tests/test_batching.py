"""How groups are divided: every update of several processes uses the samples of a single one."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpgo.batching import (
    check_divisible,
    micro_batch_size,
    own_groups,
    rows_per_process,
    small_micro_batch,
)
from bpgo.config import ConfigError, build_config

examples = settings(max_examples=80, deadline=None, derandomize=True)
small = st.integers(1, 6)


def config_of(groups, group_size=2, updates=1, micro_batch=None):
    return build_config(
        {
            "generator": {"path": "tiny-flux"},
            "reward": {"name": "clip"},
            "prompts": "prompts.txt",
            "groups": groups,
            "group_size": group_size,
            "optimiser": {"updates": updates},
            "sampling": {"micro_batch": micro_batch},
        }
    )


def test_the_example_of_the_docstring():
    assert own_groups(8, updates=2, processes=2, rank=1) == [2, 3, 6, 7]


@examples
@given(share=small, updates=small, processes=small)
def test_own_groups_is_a_partition_over_the_processes(share, updates, processes):
    groups = share * updates * processes
    own = [own_groups(groups, updates, processes, rank) for rank in range(processes)]
    assert sorted(group for groups in own for group in groups) == list(range(groups))
    assert {len(groups) for groups in own} == {share * updates}


@examples
@given(share=small, updates=small, processes=small)
def test_each_update_of_all_processes_is_that_of_a_single_one(share, updates, processes):
    groups = share * updates * processes
    alone = own_groups(groups, updates, 1, 0)
    per_update = groups // updates
    for update in range(updates):
        together = []
        for rank in range(processes):
            own = own_groups(groups, updates, processes, rank)
            together += own[update * share : (update + 1) * share]
        assert together == alone[update * per_update : (update + 1) * per_update]


@examples
@given(
    share=small,
    group_size=st.integers(2, 7),
    updates=small,
    processes=small,
    limit=st.none() | st.integers(1, 100),
)
def test_a_micro_batch_is_the_largest_size_that_divides_an_update(
    share, group_size, updates, processes, limit
):
    config = config_of(share * updates * processes, group_size, updates, limit)
    rows = rows_per_process(config, processes)
    assert rows == share * updates * group_size
    per_update = rows // updates
    size = micro_batch_size(config, processes)
    assert per_update % size == 0
    assert size <= (limit or per_update)
    larger = range(size + 1, min(limit or per_update, per_update) + 1)
    assert all(per_update % candidate for candidate in larger)


@examples
@given(
    groups=st.integers(1, 12),
    group_size=st.integers(2, 40),
    limit=st.none() | st.integers(1, 60),
    processes=st.integers(1, 3),
)
def test_micro_batches_below_half_of_what_is_allowed_are_told(groups, group_size, limit, processes):
    """And the settings that the warning names do better."""
    config = config_of(groups * processes, group_size, micro_batch=limit)
    allowed = min(limit or group_size * groups, group_size * groups)
    warning = small_micro_batch(config, processes)
    if 2 * micro_batch_size(config, processes) >= allowed:
        assert warning is None
        return
    assert warning.startswith(f"sampling.micro_batch={limit}, but a model call takes ")
    for name, value in re.findall(r"(group_size|(?<!^)sampling\.micro_batch)=(\d+)", warning):
        better = {"group_size": group_size, "micro_batch": limit}
        better[name.removeprefix("sampling.")] = int(value)
        assert small_micro_batch(config_of(groups * processes, **better), processes) is None


def test_a_prime_number_of_samples_is_told_with_good_values():
    assert small_micro_batch(config_of(1, 13, micro_batch=12)) == (
        "sampling.micro_batch=12, but a model call takes 1 of the 13 samples that one process uses "
        "for an update, because its size must divide them. Set group_size=12, or "
        "sampling.micro_batch=13 (more memory)"
    )


def test_training_warns_of_small_micro_batches(make):
    with pytest.warns(UserWarning, match=r"a model call takes 1 of the 7 samples .*group_size="):
        trainer = make(groups=1, group_size=7, sampling={"micro_batch": 6})
    assert trainer.micro_batch == 1


@examples
@given(groups=st.integers(1, 40), updates=small, processes=small)
def test_groups_must_divide_over_updates_and_processes(groups, updates, processes):
    if groups % (updates * processes) == 0:
        check_divisible(groups, updates, processes)
        return
    over = f"optimiser.updates={updates}"
    if processes > 1:
        over += f" times {processes} processes"
    with pytest.raises(
        ValueError, match=rf"^groups={groups} cannot be divided evenly over {over}$"
    ):
        check_divisible(groups, updates, processes)


def test_the_settings_of_a_single_process_must_divide():
    assert config_of(6, updates=3).groups == 6
    with pytest.raises(ConfigError, match=r"groups=6 cannot be divided .* optimiser\.updates=4"):
        config_of(6, updates=4)
