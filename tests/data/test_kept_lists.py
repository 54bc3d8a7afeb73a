"""Lists of large folders: read again while nothing has changed, made anew when something has."""

import errno
from pathlib import Path

import pytest

from mae_curriculum.data import kept_lists
from mae_curriculum.data.folders import Listing, list_images
from mae_curriculum.data.parts import list_parts
from mae_curriculum.data.stored import Names


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose list is kept, although it is small and has just changed."""
    monkeypatch.setattr(kept_lists, "KEPT_IMAGES", 1)
    monkeypatch.setattr(kept_lists, "SETTLED_SECONDS", -3600)
    for name in ("a-b/0.png", "a/0.png", "a/deep/1.png", "a/._2.png", "a/3.HEIC", "b/\udcff.png"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "tree"


def opened(tree: Path) -> tuple[list[str], object, object]:
    part, _ = list_parts(tree, tree.parent / "cache")
    return [part.stored.name(index) for index in range(len(part.stored))], part.labels, part.left_out


def test_a_list_is_read_again_and_says_the_same(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = opened(tree)
    assert listed[0] == [str(path) for path in sorted(tree.rglob("[!.]*.png"))]  # "a" before "a-b", as paths are sorted
    assert listed[1:] == ([0, 0, 1, 2], {"hidden": 1, ".heic": 1})
    monkeypatch.setattr(kept_lists, "list_images", lambda folder: pytest.fail("listed again"))
    assert opened(tree) == listed


@pytest.mark.parametrize("change", ["new", "gone", "renamed", "new folder", "folder gone"])
def test_a_change_anywhere_in_the_tree_is_seen(change: str, tree: Path) -> None:
    before = opened(tree)[0]
    match change:
        case "new":
            (tree / "a/deep/2.png").touch()
        case "gone":
            (tree / "a/deep/1.png").unlink()
        case "renamed":
            (tree / "a/0.png").rename(tree / "a/9.png")
        case "new folder":
            (tree / "b/more").mkdir()
            (tree / "b/more/0.png").touch()
        case _:
            (tree / "a/deep").rename(tree.parent / "elsewhere")
    after = opened(tree)[0]
    assert after == [str(path) for path in sorted(tree.rglob("[!.]*.png"))] != before


def test_small_and_unsettled_trees_are_not_kept(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tree.parent / "cache"
    monkeypatch.setattr(kept_lists, "KEPT_IMAGES", 5)
    opened(tree)
    monkeypatch.setattr(kept_lists, "KEPT_IMAGES", 4)
    monkeypatch.setattr(kept_lists, "SETTLED_SECONDS", 60)
    opened(tree)
    assert not cache.exists()


def test_where_nothing_can_be_kept_a_warning_says_so(
    tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(index: Path, listing: Listing) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(kept_lists, "write_listing", fail)
    assert len(opened(tree)[0]) == 4
    assert f"the list of the images in {tree} cannot be kept in " in caplog.text
    assert "Read-only file system" in caplog.text


def test_a_folder_in_another_place_has_another_list(tree: Path) -> None:
    opened(tree)
    moved = tree.rename(tree.with_name("moved"))
    tree.mkdir()
    (tree / "0.png").touch()
    assert opened(tree)[0] == [str(tree / "0.png")]
    assert len(opened(moved)[0]) == 4


def test_names_are_kept_as_they_are() -> None:
    strings = ["", "a/b.png", "é 😀\n.png", "\udcff"]
    names = Names.of(strings)
    assert [*names] == strings
    assert (len(names), names[2], len(Names.of([]))) == (4, "é 😀\n.png", 0)


def test_the_walk_knows_when_each_folder_changed(tree: Path) -> None:
    changed = list_images(tree).changed
    assert changed == {name: (tree / name).stat().st_ctime_ns for name in ("", "a", "a-b", "a/deep", "b")}
