import logging
from collections.abc import Iterator

import pytest

from mae_curriculum.terminal import LOGGERS, configure_logging, format_duration, format_setting, format_table, printable


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


@pytest.mark.usefixtures("configured")
def test_escape_codes_and_newlines_of_names_are_spelled_out_in_messages(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("mae_curriculum").warning("\x1b[2Ja\nb 文\u3000字")
    assert capsys.readouterr().err == "warning: \\x1b[2Ja\\nb 文\u3000字\n"
    assert format_table([["\x1b]0;x\x07"]]) == "\\x1b]0;x\\x07"
    assert printable("\udcff") == "\\udcff"
    assert printable("a\u202eb") == "a\\u202eb"  # which would turn the rest of the line around


def test_stages_are_shown_with_all_that_they_set() -> None:
    plain = {"share": 0.6, "size": 160, "batch_factor": 1.0, "mask_ratio": None, "images_factor": 1.0}
    own = {"share": 0.4, "size": 224, "batch_factor": 2.0, "mask_ratio": 0.6, "resize": "bicubic"}
    expected = "60 % at 160, 40 % at 224 (batch_factor 2.0, mask_ratio 0.6, resize bicubic)"
    assert format_setting([plain, own]) == expected


def test_durations_have_the_unit_that_fits() -> None:
    seconds = (0.734, 9.999, 119.9, 120, 3661, 7200, 370 * 3600, 1234 * 3600, None)
    assert [format_duration(each) for each in seconds] == [
        "0.73 s",
        "10.0 s",
        "120 s",
        "2.00 min",
        "61.0 min",
        "2.00 h",
        "370 h",
        "1,234 h",
        "–",
    ]
