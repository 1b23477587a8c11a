"""Signals raise Interrupted at once, or at the end of a section that must be completed."""

import os
import signal
import threading

import pytest

from bpgo.signals import Interrupted, Interruption

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # as shells report them


@pytest.fixture(params=CODES, ids=lambda number: number.name)
def number(request):
    return request.param


def send(number):
    os.kill(os.getpid(), number)


def test_a_signal_raises_at_once_and_has_the_usual_exit_code(number):
    with pytest.raises(KeyboardInterrupt, match=number.name) as raised, Interruption():
        send(number)
        pytest.fail("the signal was ignored")
    assert raised.value.code == CODES[number]


def test_a_held_signal_raises_when_it_is_released(number):
    done = []
    with pytest.raises(Interrupted, match=number.name) as raised, Interruption() as interruption:
        interruption.hold()
        send(number)
        done.append("the section")
        interruption.release()
        done.append("what follows")
    assert done == ["the section"]
    assert raised.value.code == CODES[number]


def test_without_a_signal_nothing_is_raised_and_the_handlers_return():
    before = [signal.getsignal(number) for number in CODES]
    with Interruption() as interruption:
        interruption.hold()
        interruption.release()
        assert [signal.getsignal(number) for number in CODES] != before
    assert [signal.getsignal(number) for number in CODES] == before


def test_the_handlers_return_after_an_error_and_a_hold_ends_with_its_context(number):
    before, interruption = signal.getsignal(number), Interruption()
    with pytest.raises(ZeroDivisionError), interruption:
        interruption.hold()
        send(number)
        raise ZeroDivisionError
    assert signal.getsignal(number) == before
    with interruption, pytest.raises(Interrupted):
        send(number)


def test_other_threads_do_not_handle_signals():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interruption():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
