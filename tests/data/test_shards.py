"""Images in tars."""

import errno
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mae_curriculum.config import ConfigError
from mae_curriculum.data import index_files
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.contents import format_contents, look_at
from mae_curriculum.data.decode import BrokenImageError
from mae_curriculum.data.shards import OPEN_TARS
from mae_curriculum.data.sources import Images, names_fingerprint, open_images
from mae_curriculum.data.tar_index import make_index

Member = tuple[str, bytes]


def picture(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, *members: Member) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def opened(source: Path, cache: Path | None = None) -> tuple[Images, Images | None]:
    return open_images(DataConfig(source=str(source), cache=cache or source.parent / "cache"))


def shades(images: Images) -> list[int]:
    return [int(images.read(index, 3)[0, 0, 0]) for index in range(len(images))]


def test_images_of_several_tars_are_one_data_set_with_folders_as_classes(tmp_path: Path) -> None:
    write_tar(tmp_path / "x-1.tar", ("cat/3.png", picture(3)), ("dog/4.png", picture(4)))
    write_tar(tmp_path / "x-0.tar", ("dog/1.png", picture(1)), ("cat/notes.txt", b"hi"), ("cat/2.png", picture(2)))
    images, val = opened(tmp_path)
    assert val is None
    assert shades(images) == [1, 2, 3, 4]
    assert (images.labels, images.classes) == ([1, 0, 0, 1], ("cat", "dog"))
    assert images.name(2) == str(tmp_path / "x-1.tar" / "cat/3.png")
    assert images.content(3) == picture(4)


def test_tars_of_the_tar_command_are_read_as_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for part, count in (("train", 3), ("val", 2)):
        for name in ("a", "b" * 150):  # which needs more than a plain header
            for shade in range(count):
                place = folder / part / name / f"{shade}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(picture(shade))
    tars = tmp_path / "tars"
    tars.mkdir()
    for part, kind in (("train", "gnu"), ("val", "pax")):
        files = sorted(str(path.relative_to(folder)) for path in (folder / part).rglob("*.png"))
        words = ["tar", f"--format={kind}", "-cf", str(tars / f"{part}.tar"), "-C", str(folder), *files]
        subprocess.run(words, check=True)
    for images, packed in zip(opened(folder), opened(tars), strict=True):
        assert images is not None
        assert packed is not None
        assert shades(packed) == shades(images)
        assert (packed.labels, packed.classes) == (images.labels, images.classes)
        assert names_fingerprint(packed) == names_fingerprint(images)


def test_numbers_in_cls_members_are_labels_and_folders_name_them(tmp_path: Path) -> None:
    zebra = [("zebra/1.png", picture(1)), ("zebra/1.cls", b"0"), ("zebra/2.cls", b"0"), ("zebra/2.png", picture(2))]
    write_tar(tmp_path / "a.tar", *zebra, ("ant/3.png", picture(3)), ("ant/3.cls", b"1\n"), ("ant/4.cls", b"1"))
    images, _ = opened(tmp_path / "a.tar")
    assert (images.labels, images.classes) == ([0, 0, 1], ("zebra", "ant"))
    contents = look_at(DataConfig(source=str(tmp_path / "a.tar"), cache=tmp_path))
    assert contents.train.left_out == {"labels without an image": 1}
    assert "2 classes: zebra 2, ant 1" in "\n".join(format_contents(contents))
    flat = [("1.png", picture(1)), ("1.cls", b"2"), ("2.png", picture(2)), ("2.cls", b"0")]
    images, _ = opened(write_tar(tmp_path / "flat.tar", *flat))
    assert (images.labels, images.classes) == ([2, 0], ("0", "1", "2"))


def test_words_in_the_names_of_tars_tell_training_from_validation(tmp_path: Path) -> None:
    for name, shade in (("set-train-0", 1), ("set-train-1", 2), ("set-val-0", 3), ("set-test-0", 4)):
        write_tar(tmp_path / f"{name}.tar", (f"{shade}.png", picture(shade)))
    train, val = opened(tmp_path)
    assert val is not None
    assert (shades(train), shades(val)) == ([1, 2], [3])


def test_validation_has_the_numbers_of_training(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "0.tar", ("a/1.png", picture(1)), ("b/2.png", picture(2)), ("c/3.png", picture(3)))
    write_tar(tmp_path / "val" / "0.tar", ("c/4.png", picture(4)), ("b/5.png", picture(5)))
    _, val = opened(tmp_path)
    assert val is not None
    assert (val.labels, val.classes) == ([2, 1], ("a", "b", "c"))


def test_tars_beside_images_are_left_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "all.tar", ("1.png", picture(1)))
    (tmp_path / "2.png").write_bytes(picture(2))
    assert shades(opened(tmp_path)[0]) == [2]
    assert look_at(DataConfig(source=str(tmp_path))).train.left_out == {".tar": 1}


BAD: dict[str, list[tuple[str, bytes | list[Member]]]] = {
    "train.tar is damaged or no plain tar": [("train.tar", b"no tar at all, but some other text of five words")],
    "train.tar.gz is compressed": [("train.tar.gz", b"")],
    "no images in .*train.tar; they end in": [("train.tar", [("a.txt", b"a")])],
    "two images named a.png": [("train.tar", [("a.png", picture(1)), ("a.png", picture(2))])],
    r"train.tar has labels \(.cls\), but none of b": [
        ("train.tar", [("a.png", picture(1)), ("a.cls", b"0"), ("b.png", picture(2))])
    ],
    "a.cls must hold a class number, 0 or above, got b'cat'": [("train.tar", [("a.png", b""), ("a.cls", b"cat")])],
    "has val.tar but no file with `train`": [("val.tar", [("a.png", picture(1))])],
    "has c, not among the 2 classes": [
        ("train.tar", [("a/1.png", b""), ("b/2.png", b"")]),
        ("val.tar", [("a/1.png", b""), ("c/2.png", b"")]),
    ],
    "has no class, not among the 2 classes": [
        ("train.tar", [("a/1.png", b""), ("b/2.png", b"")]),
        ("val.tar", [("a/1.png", b""), ("a/2.png", b"")]),
    ],
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_read_is_refused_in_one_line(message: str, tmp_path: Path) -> None:
    for name, content in BAD[message]:
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            write_tar(tmp_path / name, *content)
    with pytest.raises(ConfigError, match=message) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tar_that_was_cut_is_refused_before_and_after_its_index_was_made(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", *((f"{shade}.png", picture(shade) + bytes(2000)) for shade in range(4)))
    whole = tar.read_bytes()
    end = 4 * (512 + 2560)  # of the last member
    for length in (end, end - 100, end - 2560, end - 2560 - 100, end - 3072, 100, 0):
        tar.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match="a.tar is damaged"):
            opened(tar)
    tar.write_bytes(whole)
    images, _ = opened(tar)
    os.truncate(tar, end - 1000)
    with pytest.raises(BrokenImageError, match="has been cut since its index was made"):
        images.read(3, 3)


def test_the_index_is_made_once_and_again_when_a_tar_has_changed(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", ("1.png", picture(1)), ("2.png", picture(2)))
    opened(tar)
    index = tmp_path / "a.tar.index" / "members.bin"
    made = index.stat().st_mtime_ns
    assert shades(opened(tmp_path)[0]) == [1, 2]
    assert index.stat().st_mtime_ns == made
    longer = [("0.txt", b"moves the images"), ("1.png", picture(3))]
    size = tar.stat().st_size
    write_tar(tar, *longer)
    assert tar.stat().st_size == size  # tars are padded
    assert shades(opened(tar)[0]) == [3]


def test_labels_that_change_without_moving_anything_are_read_again(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", ("1.png", picture(1)), ("1.cls", b"0"), ("2.png", picture(2)), ("2.cls", b"1"))
    assert opened(tar)[0].labels == [0, 1]
    write_tar(tar, ("1.png", picture(1)), ("1.cls", b"1"), ("2.png", picture(2)), ("2.cls", b"0"))
    assert opened(tar)[0].labels == [1, 0]


@pytest.mark.parametrize("file", ["members.bin", "names.bin", "about.json"])
@pytest.mark.parametrize("left", [None, 0, 20])
def test_a_damaged_index_is_made_again(left: int | None, file: str, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", ("cat/1.png", picture(1)), ("dog/2.png", picture(2)))
    opened(tar)
    damaged = tmp_path / "a.tar.index" / file
    if left is None:
        damaged.unlink()
    else:
        os.truncate(damaged, min(left, damaged.stat().st_size - 1))
    images, _ = opened(tar)
    assert shades(images) == [1, 2]
    assert images.labels == [0, 1]
    assert images.name(1).endswith("dog/2.png")


def test_the_index_is_in_the_cache_where_nothing_can_be_written_beside_the_tars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = write_tar(tmp_path / "a.tar", ("1.png", picture(1)))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert shades(opened(tar, tmp_path / "cache")[0]) == [1]
    assert not (tmp_path / "a.tar.index").exists()
    assert len([*(tmp_path / "cache" / ".indexes").iterdir()]) == 1


def count_open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_two_jobs_that_make_the_same_index_at_once_both_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = write_tar(tmp_path / "a.tar", ("1.png", picture(1)))
    opened(tar)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: None)  # so that the first index is there at the renaming
    make_index(tmp_path / "a.tar.index", [tar])
    assert shades(opened(tar)[0]) == [1]


def test_an_index_that_cannot_be_made_again_is_an_error_and_the_old_one_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = write_tar(tmp_path / "a.tar", ("1.png", picture(1)))
    opened(tar)
    write_tar(tar, ("2.png", picture(2)), ("3.png", picture(3)))

    def fail(path: Path, content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(index_files, "write_json", fail)
    with pytest.raises(OSError, match="No space left"):
        opened(tar)


def test_few_of_many_tars_are_open_at_once(tmp_path: Path) -> None:
    for number in range(OPEN_TARS + 10):
        write_tar(tmp_path / f"{number:03}.tar", (f"{number}.png", picture(number)))
    images, _ = opened(tmp_path)
    before = count_open_files()
    assert shades(images) == list(range(OPEN_TARS + 10))
    assert count_open_files() <= before + OPEN_TARS


def test_names_that_are_no_text_and_hidden_members(tmp_path: Path) -> None:
    strange = b"a\xff.png".decode(errors="surrogateescape")
    tar = write_tar(
        tmp_path / "a.tar", (strange, picture(1)), ("._b.png", b""), ("__MACOSX/c.png", b""), ("d.heic", b"")
    )
    images, _ = opened(tar)
    assert images.name(0) == f"{tar}/{strange}"
    assert look_at(DataConfig(source=str(tar), cache=tmp_path)).train.left_out == {"hidden": 2, ".heic": 1}


def test_a_copy_elsewhere_has_another_fingerprint(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", ("1.png", picture(1)))
    copy = Path(shutil.copy(tar, tmp_path / "b.tar"))
    assert opened(tar)[0].fingerprint() == opened(tar)[0].fingerprint() != opened(copy)[0].fingerprint()
