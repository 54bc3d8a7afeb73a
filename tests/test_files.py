import errno
import os
from pathlib import Path

import pytest

from mae_curriculum.files import is_user_error, read_json, temporary_name, write_json


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, True), (errno.EROFS, True), (errno.EIO, False)],
)
def test_only_space_quota_permission_and_read_only_errors_are_the_users(number: int, expected: bool) -> None:
    assert is_user_error(OSError(number, os.strerror(number))) is expected


def test_an_error_without_a_number_is_not_the_users() -> None:
    assert not is_user_error(OSError("connection lost"))


def test_a_failed_write_keeps_the_old_content_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    temporary_name(path).mkdir()  # so that the temporary file cannot be opened
    with pytest.raises(IsADirectoryError) as caught:
        write_json(path, 2)
    assert caught.value.filename == str(path)
    assert read_json(path) == 1


def test_a_link_under_the_temporary_name_is_replaced_and_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    path = tmp_path / "a.json"
    temporary_name(path).symlink_to(elsewhere)
    write_json(path, 1)
    assert (elsewhere.read_text(), read_json(path), path.is_symlink()) == ("precious", 1, False)
