"""Lists of large folders: read again while nothing has changed, made anew when something has."""

import errno
import time
from pathlib import Path

import pytest

from mae_curriculum.data import index_files, kept_lists
from mae_curriculum.data.folders import list_images
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
    time.sleep(0.05)  # longer than a tick of the file system's clock
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


def test_links_are_followed_again_when_their_targets_change(tree: Path) -> None:
    for name in ("v1", "v2", "later"):
        (tree.parent / name).mkdir()
        (tree.parent / name / f"{name}.png").touch()
        time.sleep(0.05)
    (tree.parent / "later").rename(tree.parent / "away")
    (tree.parent / "current").symlink_to("v1")
    links = {"c": "v1", "d": "current", "e": "later"}  # v1 is entered once, by whichever link comes first
    for name, target in links.items():
        (tree / name).symlink_to(f"../{target}")
    assert [Path(name).name for name in opened(tree)[0]].count("v1.png") == 1
    (tree.parent / "away").rename(tree.parent / "later")
    assert "later.png" in [Path(name).name for name in opened(tree)[0]]
    (tree.parent / "current").unlink()
    (tree.parent / "current").symlink_to("v2")
    assert {"v1.png", "v2.png"} <= {Path(name).name for name in opened(tree)[0]}


def test_where_nothing_can_be_kept_a_warning_says_so(
    tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path, content: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(index_files, "write_json", fail)
    assert len(opened(tree)[0]) == 4
    assert f"the list of the images in {tree} cannot be kept in " in caplog.text
    assert "Read-only file system" in caplog.text
    assert not [*(tree.parent / "cache" / ".indexes").iterdir()]


@pytest.mark.parametrize("file", ["about.json", "letters.bin", "ends.bin"])
def test_a_damaged_list_is_made_again(file: str, tree: Path) -> None:
    listed = opened(tree)
    (index,) = (tree.parent / "cache" / ".indexes").iterdir()
    whole = (index / file).read_bytes()
    (index / file).write_bytes(whole[:8])
    assert opened(tree) == listed
    assert (index / file).read_bytes() == whole


def test_a_cache_among_the_images_is_no_class(tree: Path) -> None:
    def classes() -> object:
        return list_parts(tree, tree)[0].classes

    assert classes() == classes() == ("a", "a-b", "b")


def test_a_folder_in_another_place_has_another_list(tree: Path) -> None:
    for folder in (tree, tree / "a"):
        list_parts(folder, tree.parent / "cache")
    assert len([*(tree.parent / "cache" / ".indexes").iterdir()]) == 2


def test_names_are_kept_as_they_are() -> None:
    strings = ["", "a/b.png", "é 😀\n.png", "\udcff"]
    names = Names.of(strings)
    assert [*names] == strings
    assert (len(names), names[2], len(Names.of([]))) == (4, "é 😀\n.png", 0)


def test_files_of_the_current_folder_have_bare_names(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "a")
    part, _ = list_parts(Path(), tree.parent / "cache")
    assert [part.stored.name(index) for index in range(2)] == ["0.png", "deep/1.png"]
    assert part.stored.content(0) == b""


def test_the_walk_knows_when_each_folder_changed(tree: Path) -> None:
    changed = list_images(tree).changed
    assert changed == {name: (tree / name).stat().st_ctime_ns for name in ("", "a", "a-b", "a/deep", "b")}
