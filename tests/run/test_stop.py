import os
import signal
import time

import pytest

from mae_curriculum.config import ConfigError
from mae_curriculum.run import stop as run_stop
from mae_curriculum.run.stop import SIGNALS, catch_signals, parse_duration


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_requests_a_stop_and_the_handlers_are_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with catch_signals() as stop:
        assert stop.reason(needed_seconds=0) is None
        os.kill(os.getpid(), number)
        assert stop.reason(needed_seconds=0) == number.name
        for repeated in SIGNALS:  # as schedulers and launchers do
            os.kill(os.getpid(), repeated)
        assert stop.reason(needed_seconds=0) == number.name
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_ends_a_run_at_once_in_a_terminal_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it in the background
    with catch_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.signal_name == "SIGTERM"
        monkeypatch.setattr(run_stop, "PATIENCE", 0.0)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_after_a_signal_later_ones_cannot_end_a_process_that_is_about_to_exit() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with catch_signals(exits=True):
            pass
        assert {number: signal.getsignal(number) for number in SIGNALS} == before
        with catch_signals(exits=True):
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_hang_up_that_nohup_has_disabled_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.reason(needed_seconds=0) is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_time_limit_holds_if_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with catch_signals(time.time() + 60) as stop:
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert stop.reason(needed_seconds=54) is None
        assert stop.reason(needed_seconds=56) == "time limit"


def test_a_run_stops_five_seconds_and_the_time_it_needs_before_the_time_limit() -> None:
    with catch_signals(time.time() + 60) as stop:
        assert stop.reason(needed_seconds=54) is None
        assert stop.reason(needed_seconds=56) == "time limit"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("2:00:00", 7200),
        ("1-0", 86400),
        ("1-2:30", 95400),
        ("1-12:00:01", 129601),
        ("0", 0),
    ],
)
def test_durations_are_parsed_as_slurm_parses_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "an hour", "1h", "-5", "1:2:3:4", "1.5"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="time_limit must be minutes, MM:SS, HH:MM:SS or D-HH:MM:SS, got"):
        parse_duration(text)
