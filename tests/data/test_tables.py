"""Images in parquet files, in data sets that the datasets library saved, and in arrays."""

import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.contents import format_contents, look_at
from mae_curriculum.data.parts import list_all
from mae_curriculum.data.sources import open_images
from mae_curriculum.data.tables import TableRows
from tests.data.test_shards import opened, picture, shades, write_tar

CLASSES = ["zebra", "ant"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the library writes apart."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


def table(*rows: tuple[int, int]) -> datasets.Dataset:
    """Return a table of pictures with shades and class numbers."""
    features = datasets.Features(
        {"id": datasets.Value("int64"), "image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    )
    columns = {
        "id": list(range(len(rows))),
        "image": [{"bytes": picture(shade), "path": None} for shade, _ in rows],
        "label": [label for _, label in rows],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def test_a_saved_data_set_has_its_parts_and_classes(tmp_path: Path) -> None:
    parts = {"train": table((1, 1), (2, 0), (3, 1)), "validation": table((4, 0)), "test": table((5, 0))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    train, val = opened(tmp_path / "saved")
    assert val is not None
    assert (shades(train), shades(val)) == ([1, 2, 3], [4])
    assert (train.labels, train.classes, val.labels) == ([1, 0, 1], ("zebra", "ant"), [0])
    assert train.name(2) == f"{tmp_path}/saved/train/00000002"
    assert train.content(1) == picture(2)
    text = "\n".join(format_contents(look_at(DataConfig(source=str(tmp_path / "saved")))))
    assert "training: 3 images" in text
    assert "2 classes: zebra 1, ant 2" in text
    assert "width x height of 3 of them: 8x6" in text


def test_parquet_files_are_read_as_the_hub_lays_them_out(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for name, rows in {
        "train-00000-of-00002": [(1, 0)],
        "train-00001-of-00002": [(2, 1)],
        "validation": [(3, 1)],
    }.items():
        table(*rows).to_parquet(folder / "data" / f"{name}.parquet")
    train, val = opened(folder)
    assert val is not None
    assert (shades(train), train.labels, shades(val), val.labels) == ([1, 2], [0, 1], [3], [1])
    assert shades(open_images(DataConfig(source=str(folder / "data" / "validation.parquet")))[0]) == [3]
    with pytest.raises(ConfigError, match="has the parts train, validation; give the file of one"):
        list_all(folder, tmp_path)
    assert len(list_all(folder / "data" / "validation.parquet", tmp_path).stored) == 1


@pytest.mark.parametrize("typed", [pa.binary(), pa.struct({"bytes": pa.binary(), "path": pa.string()})], ids=str)
def test_parquet_files_of_other_tools_are_read(typed: pa.DataType, tmp_path: Path) -> None:
    (tmp_path / "on_disk.png").write_bytes(picture(9))
    contents: list[Any] = [picture(1), picture(2)]
    if typed != pa.binary():
        contents = [{"bytes": picture(1), "path": "a"}, {"bytes": None, "path": str(tmp_path / "on_disk.png")}]
    columns = {"caption": ["x", "y"], "picture": pa.array(contents, typed), "label": ["dog", "cat"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    images, _ = opened(tmp_path / "x.parquet")
    assert shades(images) == [1, 2 if typed == pa.binary() else 9]
    assert (images.labels, images.classes) == ([1, 0], ("cat", "dog"))


def test_a_table_can_be_sent_to_another_process(tmp_path: Path) -> None:
    table((1, 0), (2, 0)).save_to_disk(tmp_path / "saved")
    rows = opened(tmp_path / "saved")[0].stored  # type: ignore[attr-defined]
    assert isinstance(rows, TableRows)
    assert pickle.loads(pickle.dumps(rows)).content(1) == picture(2)


def test_images_beside_a_table_are_read_and_not_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(7))
    table((1, 0)).to_parquet(tmp_path / "embeddings.parquet")
    assert shades(opened(tmp_path)[0]) == [7]
    write_tar(tmp_path / "tars" / "0.tar", ("b.png", picture(8)))
    table((1, 0)).to_parquet(tmp_path / "tars" / "0.parquet")
    assert shades(opened(tmp_path / "tars")[0]) == [8]


def test_what_cannot_be_read_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "numbers.parquet")
    with pytest.raises(ConfigError, match="train has no column of images, only x"):
        opened(tmp_path / "numbers.parquet")
    for labels in ([0, None, 1], ["x", None, "y"]):
        columns = {"image": pa.array([picture(1)] * 3, pa.binary()), "label": labels}
        pq.write_table(pa.table(columns), tmp_path / "gaps.parquet")
        with pytest.raises(ConfigError, match=r"row 1 of \S+ has no label; remove such rows"):
            opened(tmp_path / "gaps.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"^data.source: [^\n]+$"):
        opened(tmp_path / "damaged.parquet")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"^data.source: hf:nobody/nothing: [^\n]+$"):
        open_images(DataConfig(source="hf:nobody/nothing"))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'mae-curriculum\[datasets\]'"):
        opened(tmp_path / "numbers.parquet")


@pytest.mark.parametrize("channels", [0, 1, 3, 5])
def test_an_array_is_a_stack_of_images(channels: int, tmp_path: Path) -> None:
    shape = (4, 6, 8, channels) if channels else (4, 6, 8)
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    np.save(tmp_path / "x_labels.npy", np.array([10, 9, 10, 9]))
    images, val = opened(tmp_path / "x.npy")
    assert (len(images), val, images.labels, images.classes) == (4, None, [1, 0, 1, 0], ("9", "10"))
    expected = torch.from_numpy(pixels[2].reshape(6, 8, -1)).permute(2, 0, 1)
    assert torch.equal(images.read(2, channels or 1), expected)
    assert images.name(2) == f"{tmp_path}/x.npy/00000002"
    rows = images.stored  # type: ignore[attr-defined]
    assert len(pickle.dumps(rows)) < 1000
    assert pickle.loads(pickle.dumps(rows)).content(2) == rows.content(2)


def test_a_folder_of_arrays_has_parts(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2)):
        np.save(tmp_path / f"{part}.npy", np.full((count, 6, 8, 3), count, np.uint8))
        np.save(tmp_path / f"{part}_labels.npy", np.arange(count))
    train, val = opened(tmp_path)
    assert val is not None
    assert (shades(train), shades(val)) == ([3, 3, 3], [2, 2])
    assert (train.classes, val.labels) == (("0", "1", "2"), [0, 1])


@pytest.mark.parametrize(
    ("array", "labels", "message"),
    [
        (np.zeros((4, 6), np.uint8), None, r"\(images, height, width, channels\), got uint8 \(4, 6\)"),
        (np.zeros((4, 6, 8), np.float32), None, "got float32"),
        (np.zeros((4, 6, 8), np.uint8), np.zeros(3, np.int64), "x_labels.npy must be 4 integers, got int64"),
        (np.zeros((4, 6, 8), np.uint8), np.zeros(4), "x_labels.npy must be 4 integers, got float64"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(array: Any, labels: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    if labels is not None:
        np.save(tmp_path / "x_labels.npy", labels)
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path / "x.npy")
