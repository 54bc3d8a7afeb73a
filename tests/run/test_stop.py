import os
import signal
import time

import pytest

from mae_curriculum.config import ConfigError
from mae_curriculum.run.stop import SIGNALS, catch_signals, parse_duration


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_requests_a_stop_and_the_handlers_are_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with catch_signals() as stop:
        assert stop.reason(needed_seconds=0) is None
        os.kill(os.getpid(), number)
        assert stop.reason(needed_seconds=0) == number.name
        assert signal.getsignal(number) == before  # a second one acts as before
    assert signal.getsignal(number) == before


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
