"""What is said about a source: counts, classes, what was left out, sizes."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.contents import NAMED, Side, Sizes, format_contents, look_at, measure
from mae_curriculum.data.sources import open_together
from mae_curriculum.data.stored import Files, Names
from mae_curriculum.distributed import World


def write(path: Path, width: int, height: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Training images of two classes, one of them in validation, with files that are left out."""
    write(tmp_path / "train" / "cat" / "0.png", 40, 30)
    write(tmp_path / "train" / "cat" / "1.png", 20, 100)
    write(tmp_path / "train" / "dog" / "0.png", 50, 60)
    write(tmp_path / "val" / "dog" / "0.png", 9, 9)
    (tmp_path / "train" / "dog" / "x.heic").touch()
    (tmp_path / "val" / "dog" / "._0.png").touch()
    return tmp_path


def test_a_folder_is_described_by_sides_classes_files_left_out_and_sizes(photos: Path) -> None:
    contents = look_at(DataConfig(source=str(photos)))
    assert contents.train == Side(str(photos / "train"), 3, {"cat": 2, "dog": 1}, {".heic": 1})
    assert contents.val == Side(str(photos / "val"), 1, {"cat": 0, "dog": 1}, {"hidden": 1})
    # 1,200, 2,000 and 3,000 pixels; shorter sides 30, 20 and 50
    assert contents.sizes == Sizes(3, 0, smallest=(30, 40), largest=(60, 50), shorter_side=30)
    assert format_contents(contents) == [
        f"images: {photos}",
        f"  training: 3 images in {photos / 'train'}",
        "  left out of training, as hidden or of a format that cannot be read: 1 .heic",
        "  2 classes: cat 2, dog 1",
        f"  validation: 1 images in {photos / 'val'}",
        "  left out of validation, as hidden or of a format that cannot be read: 1 hidden",
        "  width x height of 3 of them: 40x30 to 50x60",
    ]


def test_opening_images_logs_what_looking_at_them_says(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = DataConfig(source=str(photos))
    with caplog.at_level("INFO"):
        contents = open_together(config, World(0, 1, "cpu"))[2]  # type: ignore[arg-type]
    assert contents == look_at(config)
    assert caplog.messages == format_contents(contents)


def test_a_sample_of_many_images_is_spread_over_all(tmp_path: Path) -> None:
    small, large = write(tmp_path / "a.png", 8, 8), write(tmp_path / "b.png", 90, 80)
    sizes = measure(Files(Names.of([str(small)] * 900 + [str(large)] * 300)))
    assert sizes == Sizes(256, 0, (8, 8), (80, 90), shorter_side=8)


def test_damaged_images_are_counted_and_arrays_are_measured_by_their_head(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"no image")
    np.save(tmp_path / "1.npy", np.zeros((24, 48, 13), np.uint8))
    contents = look_at(DataConfig(source=str(tmp_path)))
    assert contents.sizes == Sizes(1, 1, (24, 48), (24, 48), shorter_side=24)
    assert format_contents(contents)[-2:] == [
        "  validation: none; to measure accuracy, every fifth training image is held out",
        "  width x height of 1 of them: 48x24; 1 cannot be read",
    ]
    (tmp_path / "1.npy").unlink()
    assert look_at(DataConfig(source=str(tmp_path))).sizes is None


def test_lines_about_classes_stay_short(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / f"a rather long name of class {number:02}" / "0.png", 8, 8)
    line = format_contents(look_at(DataConfig(source=str(tmp_path))))[2]
    assert line.startswith("  12 classes: a rather long name of class 00 1, ")
    assert line.endswith(" ...")
    assert len(line) <= 100


def test_digits_are_as_stated_without_them() -> None:
    train, val, contents = open_together(DataConfig("digits"), World(0, 1, "cpu"))  # type: ignore[arg-type]
    assert contents == NAMED["digits"] == look_at(DataConfig("digits"))
    assert val is not None
    assert contents.val is not None
    for images, side in ((train, contents.train), (val, contents.val)):
        assert (len(images), tuple(images.classes)) == (side.images, tuple(side.classes))
        assert side.classes == {images.classes[label]: count for label, count in Counter(images.labels).items()}


def test_a_stated_number_of_images_is_taken_without_a_look() -> None:
    contents = look_at(DataConfig(source="nowhere", image_count=7))
    assert format_contents(contents) == ["images: nowhere", "  training: 7 images"]
    with pytest.raises(ConfigError, match="'nowhere' is neither a folder nor a .tar, .npy or .parquet file"):
        look_at(DataConfig(source="nowhere"))


def test_a_folder_is_planned_without_torch(photos: Path) -> None:
    code = (
        "import sys; from mae_curriculum.__main__ import main; "
        f"main(['plan', '--data.source', {str(photos)!r}]); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "  2 classes: cat 2, dog 1\n" in done.stdout
