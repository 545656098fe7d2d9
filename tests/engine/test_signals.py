"""One request to stop is one, however often it is delivered; a second one is impatience."""

import os
import signal

import pytest

from racnn.engine import signals as interrupt
from racnn.engine.signals import Interrupt


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_the_program(number, code, monkeypatch):
    clock = iter([0.0, 1.5])
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: next(clock))
    with Interrupt() as caught:
        os.kill(os.getpid(), number)
        assert caught.signal == number
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), number)
    assert ended.value.code == code


def test_a_signal_that_is_delivered_twice_is_one(monkeypatch):
    """As by a manager that tells each process of a job, of which torchrun tells its own again."""
    clock = iter([0.0, 0.2])
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: next(clock))
    with Interrupt() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.signal == signal.SIGTERM


def test_afterwards_signals_do_what_they_did_before():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
