"""Folders as people have them: which images are for training, which for validation, and what is refused by name."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.decode import BrokenImageError
from mae_curriculum.data.parts import list_parts
from mae_curriculum.data.sources import Images, open_images


def write(folder: Path, *names: str) -> None:
    """Write an image to each name; of names such as `a/*3`, three of them."""
    for name in names:
        place, _, count = name.partition("*")
        for index in range(int(count or 1)):
            path = folder / (f"{place}{index}.png" if count else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (index, 9, 9)).save(path, "PNG")


def opened(folder: Path) -> tuple[Images, Images | None]:
    return open_images(DataConfig(source=str(folder)))


PARTS = {
    "other case": ("Train/a/*3", "Train/b/*3", "Val/a/*2", "Val/b/*2"),
    "training and validation": ("training/a/*3", "training/b/*3", "validation/a/*2", "validation/b/*2"),
    "train, valid and test": ("train/a/*3", "train/b/*3", "valid/a/*2", "valid/b/*2", "test/a/*9", "test/b/*9"),
    "hidden folders": ("train/a/*3", "train/b/*3", "train/.ipynb_checkpoints/*2", "val/a/*2", "val/b/*2"),
    "an archive's folders": ("train/a/*3", "train/b/*3", "train/__MACOSX/*2", "__MACOSX/*1", "val/a/*2", "val/b/*2"),
    "hidden files": ("train/a/*3", "train/b/*3", "train/a/._0.png", "val/a/*2", "val/b/*2", "val/b/._0.png"),
    "one level down": ("dataset/train/a/*3", "dataset/train/b/*3", "dataset/val/a/*2", "dataset/val/b/*2"),
    "annotations beside": ("train/a/*3", "train/b/*3", "val/a/*2", "val/b/*2", "extra/*5"),
    "JPEG by another name": ("train/a/*2", "train/a/x.jfif", "train/b/*3", "val/a/*2", "val/b/*2"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_known_layouts_are_understood(kind: str, tmp_path: Path) -> None:
    write(tmp_path, *PARTS[kind])
    train, val = opened(tmp_path)
    assert (len(train), train.labels, train.classes) == (6, [0, 0, 0, 1, 1, 1], ("a", "b"))
    assert val is not None
    assert (len(val), val.labels, val.classes) == (4, [0, 0, 1, 1], ("a", "b"))


AMBIGUOUS = {
    "has several validation folders, val/ and valid/": ("train/a/*2", "train/b/*2", "val/a/*1", "valid/a/*1"),
    "has val/ but no train/": ("val/a/*2", "val/b/*2"),
    "has test/ but no train/": ("test/a/*2", "other/b/*2"),
    "has train/ beside bus, car": ("train/*3", "bus/*3", "car/*3"),
    "images beside its class folders: logo.png": ("train/a/*60", "train/b/*60", "train/logo.png", "val/a/*1"),
    "has images, not among the 2 classes of training": ("train/a/*2", "train/b/*2", "val/images/*3"),
    "has d, not among the 2 classes": ("train/a/*2", "train/b/*2", "val/d/*3"),
    "holds several data sets, one, two": ("one/train/*2", "two/train/*2"),
}


@pytest.mark.parametrize("message", AMBIGUOUS)
def test_an_ambiguous_layout_is_refused_by_name(message: str, tmp_path: Path) -> None:
    write(tmp_path, *AMBIGUOUS[message])
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path)


def test_a_test_set_alone_is_not_taken_for_validation(tmp_path: Path) -> None:
    write(tmp_path, "train/a/*2", "train/b/*2", "test/a/*2", "test/b/*2")
    train, val = opened(tmp_path)
    assert (len(train), val) == (4, None)


def test_images_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    write(tmp_path, "a/*2")
    for name in ("x.HEIC", "y.heic", "z.cr2", "._0.png", ".x.heic", "Thumbs.db"):
        (tmp_path / "a" / name).write_text("...")
    train, _ = list_parts(tmp_path, tmp_path)
    assert len(train.stored) == 2
    assert train.left_out == {".heic": 2, ".cr2": 1, "hidden": 2}


def test_only_files_are_images_and_a_link_to_nothing_is_a_broken_one(tmp_path: Path) -> None:
    write(tmp_path, "a/*2")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "folder.png").mkdir()
    (tmp_path / "a" / "piped.png").symlink_to("pipe.png")
    (tmp_path / "a" / "link.png").symlink_to("nowhere.png")
    images, _ = opened(tmp_path)
    assert [Path(images.name(index)).name for index in range(len(images))] == ["0.png", "1.png", "link.png"]
    assert images.fingerprint()
    with pytest.raises(BrokenImageError, match="No such file"):
        images.read(2, 3)


def test_a_floating_point_array_is_refused_before_anything_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "0.npy", np.zeros((8, 9, 13), np.float32))
    with pytest.raises(
        ConfigError, match=r"0.npy: array of float32 \(8, 9, 13\); arrays must be uint8 or uint16, \(h, w\)"
    ):
        opened(tmp_path)
    np.save(tmp_path / "a" / "0.npy", np.zeros((8, 9, 13), np.uint16))
    assert len(opened(tmp_path)[0]) == 1


def test_a_damaged_array_is_one_broken_image_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "0.npy").write_bytes(b"\x93NUMPY")
    images = opened(tmp_path)[0]
    with pytest.raises(BrokenImageError):
        images.read(0, 3)
