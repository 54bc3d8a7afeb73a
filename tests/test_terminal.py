import logging
from collections.abc import Iterator

import pytest

from mae_curriculum.terminal import LOGGERS, configure_logging, format_duration


@pytest.fixture
def configured() -> Iterator[None]:
    configure_logging()
    configure_logging()
    yield
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)


@pytest.mark.usefixtures("configured")
def test_messages_appear_once_on_stderr_and_warnings_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("mae_curriculum.run.folder")
    logger.debug("detail")
    logger.info("saved")
    logger.warning("no space")
    assert capsys.readouterr() == ("", "saved\nwarning: no space\n")


def test_durations_are_seconds_up_to_two_minutes_then_hours() -> None:
    assert [format_duration(seconds) for seconds in (1.23, 119.9, 120, 3661, None)] == [
        "1.2 s",
        "119.9 s",
        "0:02:00",
        "1:01:01",
        "–",
    ]
