"""Several sources as one."""

from pathlib import Path

import numpy as np
import pytest

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.contents import format_contents, look_at
from mae_curriculum.data.sources import open_images
from tests.data.test_shards import opened, picture, shades, write_tar


@pytest.fixture
def sources(tmp_path: Path) -> str:
    """A folder with validation images, and tars, which share a class."""
    for place, shade in {"train/cat/1.png": 1, "train/dog/2.png": 2, "val/dog/3.png": 3}.items():
        path = tmp_path / "a" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(shade))
    write_tar(tmp_path / "b" / "x.tar", ("dog/4.png", picture(4)), ("ant/5.png", picture(5)))
    return f"{tmp_path / 'a'},{tmp_path / 'b'}"


def test_images_and_classes_of_all_are_joined(sources: str, tmp_path: Path) -> None:
    config = DataConfig(source=sources, cache=tmp_path / "cache")
    train, val = open_images(config)
    assert val is not None
    assert (shades(train), shades(val)) == ([1, 2, 4, 5], [3])
    assert train.classes == val.classes == ("ant", "cat", "dog")
    assert (train.labels, val.labels) == ([1, 2, 2, 0], [2])
    assert train.name(2) == str(tmp_path / "b" / "x.tar" / "dog/4.png")
    assert train.content(3) == picture(5)
    assert config.folder is None
    text = "\n".join(format_contents(look_at(config)))
    assert "training: 4 images" in text
    assert "3 classes: ant 1, cat 1, dog 2" in text


def test_without_classes_in_one_there_are_none(sources: str, tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", np.zeros((2, 6, 8, 3), np.uint8))
    train, _ = open_images(DataConfig(source=f"{sources},{tmp_path / 'c.npy'}", cache=tmp_path / "cache"))
    assert (len(train), train.labels, train.classes) == (6, None, ())


def test_each_must_be_there(sources: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'nowhere' is neither a folder"):
        open_images(DataConfig(source=f"{sources},nowhere", cache=tmp_path / "cache"))


def test_a_folder_with_a_comma_in_its_name_is_one_source(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a,b" / "1.png").write_bytes(picture(6))
    assert shades(opened(tmp_path / "a,b")[0]) == [6]
