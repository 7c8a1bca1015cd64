"""Signals that ask a run to stop, in this process; those of `faults` are in their own."""

import os
import signal

import pytest

from fedjax_lora.cli.signals import ASKED, after_this_round


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_requests_a_stop_and_second_has_its_default_effect(number, capfd):
    before = signal.getsignal(number)
    with after_this_round() as seen:
        assert seen() == 0
        os.kill(os.getpid(), number)
        assert seen() == number
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) == before
    assert ASKED in capfd.readouterr().err
