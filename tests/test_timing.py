"""A clock of named blocks, on a time that the test sets."""

import pytest

from bpgo import timing
from bpgo.timing import Clock


@pytest.fixture
def wait(monkeypatch):
    """Let time pass: `wait(3)` is three seconds."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_a_nested_block_counts_for_itself_only(wait):
    clock = Clock()
    with clock("sample"):
        wait(1)
        with clock("decode"):
            wait(2)
            with clock("score"):
                wait(4)
        wait(8)
        with clock("score"):
            wait(16)
    with clock("update"):
        wait(32)
    assert dict(clock.seconds) == {"sample": 9, "decode": 2, "score": 20, "update": 32}


def test_blocks_of_one_name_add_up_even_within_each_other(wait):
    clock = Clock()
    for _ in range(3):
        with clock("score"):
            wait(1)
            with clock("score"):
                wait(10)
    assert dict(clock.seconds) == {"score": 33}


def test_the_parts_add_up_to_the_time_that_passed(wait):
    clock = Clock()
    with clock("a"):
        for _ in range(3):
            wait(0.5)
            with clock("b"), clock("c"):
                wait(0.25)
    assert sum(clock.seconds.values()) == 3 * 0.75


def test_a_block_that_fails_is_counted_and_those_after_it_too(wait):
    clock = Clock()
    with clock("sample"):
        wait(1)
        with pytest.raises(ZeroDivisionError), clock("decode"):
            wait(2)
            raise ZeroDivisionError
        wait(4)
    assert dict(clock.seconds) == {"sample": 5, "decode": 2}
