"""Packing images into tars."""

import gc
import io
import logging
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from PIL import Image

from mae_curriculum.__main__ import main
from mae_curriculum.config import ConfigError
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.local_copy import copy_packed
from mae_curriculum.data.sources import Images, names_fingerprint, open_images, open_together
from mae_curriculum.distributed import World
from mae_curriculum.files import read_json
from tests.data.test_shards import picture, write_tar
from tests.processes import Process
from tests.runs import picture_folder


def opened(source: object) -> tuple[Images, Images | None]:
    return open_images(DataConfig(source=str(source)))


def pack(source: object, out: Path, *flags: str) -> int:
    return main(["pack", "--data.source", str(source), "--out", str(out), "--data.workers", "0", *flags])


def tars(folder: Path) -> dict[str, bytes]:
    return {tar.name: tar.read_bytes() for tar in sorted(folder.glob("*.tar"))}


def contents(images: Images) -> list[bytes]:
    return [images.content(index) for index in range(len(images))]


@pytest.mark.parametrize("format_", ["jpeg", "npy"])
def test_packed_digits_are_the_digits(format_: str, tmp_path: Path) -> None:
    assert pack("digits", tmp_path / "packed", "--images_per_tar", "1000", "--format", format_) == 0
    assert list(tars(tmp_path / "packed")) == ["train-000000.tar", "train-000001.tar", "val-000000.tar"]
    for digits, packed in zip(opened("digits"), opened(tmp_path / "packed"), strict=True):
        assert digits is not None
        assert packed is not None
        assert (packed.labels, packed.classes) == (digits.labels, digits.classes)
        assert all(torch.equal(packed.read(index, 1), digits.read(index, 1)) for index in range(len(digits)))


def test_images_keep_name_order_and_class_and_larger_ones_are_reduced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = picture_folder(tmp_path / "source", classes=2, count=6)
    Image.new("RGB", (90, 60), "red").save(source / "class1" / "large.png")
    (source / "class0" / "0000.jpg").write_bytes((source / "class0" / "0000.png").read_bytes())
    (source / "class0" / "broken.png").write_bytes(b"no image")
    np.save(source / "class1" / "array.npy", np.zeros((8, 9, 7), np.uint8))
    (source / "class1" / "cut.npy").write_bytes((source / "class1" / "array.npy").read_bytes()[:-1])
    assert pack(source, tmp_path / "packed", "--short_side", "40") == 0
    output = capsys.readouterr().out
    assert f"left out: {source}/class0/broken.png: not an image" in output
    images, _ = opened(source)
    packed, _ = opened(tmp_path / "packed")
    names = [Path(packed.name(index)).relative_to(tmp_path / "packed" / "train-000000.tar") for index in range(9)]
    assert [str(name) for name in names] == [
        *("class0/0000.jpg", "class0/0000-png.png", "class0/0002.png", "class0/0004.png"),
        *("class1/0001.png", "class1/0003.png", "class1/0005.png", "class1/array.npy", "class1/large.jpg"),
    ]
    assert (packed.labels, packed.classes) == ([0] * 4 + [1] * 5, ("class0", "class1"))
    assert packed.read(8, 3).shape == (3, 40, 60)
    kept = contents(images)
    assert contents(packed)[:8] == kept[:4] + kept[5:9]  # without the broken ones
    manifest = read_json(tmp_path / "packed" / "manifest.json")
    assert manifest["train"]["classes"] == {"class0": 4, "class1": 5}
    assert manifest["train"]["broken"].keys() == {f"{source}/class0/broken.png", f"{source}/class1/cut.npy"}


def test_decoded_images_have_the_pixels_of_their_files_and_gray_ones_are_stored_as_gray(tmp_path: Path) -> None:
    source, size = tmp_path / "source", (40, 60, 3)
    source.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(source / "a.jpg")
    Image.fromarray(pixels[..., 0]).save(source / "b.jpg")
    Image.fromarray(pixels).convert("P").save(source / "c.png")
    np.save(source / "d.npy", pixels)
    assert pack(source, tmp_path / "packed", "--format", "npy", "--short_side", "null") == 0
    images, packed = opened(source)[0], opened(tmp_path / "packed")[0]
    assert [Path(packed.name(index)).name for index in range(4)] == ["a.npy", "b.npy", "c.npy", "d.npy"]
    assert all(torch.equal(packed.read(index, 3), images.read(index, 3)) for index in range(4))
    assert torch.equal(packed.read(1, 1), images.read(1, 1))
    assert len(packed.content(1)) < len(packed.content(0)) / 2
    assert pack(source, tmp_path / "small", "--format", "npy", "--short_side", "20") == 0
    assert pack(source, tmp_path / "jpeg", "--short_side", "20", "--quality", "100") == 0
    small, jpeg = (opened(tmp_path / name)[0].read(0, 3).int() for name in ("small", "jpeg"))
    assert small.shape == jpeg.shape == (3, 20, 30)
    assert (small - jpeg).abs().float().mean() < 16  # noise, with colors at half the resolution
    assert pack(source, tmp_path / "small", "--short_side", "20") == 2  # another format in the same folder


def test_a_packed_list_keeps_its_labels(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "source", classes=2, count=4)
    rows = [
        f"source/{path.relative_to(source)},{'tame' if path.stem == '0002' else 'wild'}"
        for path in source.rglob("*.png")
    ]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    assert pack(tmp_path / "list.csv", tmp_path / "packed") == 0
    images, packed = opened(tmp_path / "list.csv")[0], opened(tmp_path / "packed")[0]
    assert packed.classes == ("tame", "wild")
    assert packed.labels == images.labels
    assert contents(packed) == contents(images)


def test_images_of_odd_names_are_packed_all_the_same(tmp_path: Path) -> None:
    photos = picture_folder(tmp_path / "photos", classes=2, count=4)
    hidden = picture_folder(tmp_path / ".more" / "photos", classes=2, count=4)
    (photos / "class0" / "0000.png").rename(photos / "class0" / "0000.jpg_large")
    paths = [f"../{path.relative_to(tmp_path)}" for path in sorted([*photos.rglob("*.*"), *hidden.rglob("*.png")])]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.txt").write_text("\n".join(paths))
    for name, source in {"list": tmp_path / "lists" / "list.txt", "both": f"{photos},{hidden}"}.items():
        assert pack(source, tmp_path / name) == 0
        images, packed = opened(source)[0], opened(tmp_path / name)[0]
        assert contents(packed) == contents(images)
        assert packed.labels == images.labels
    names = [packed.name(index).partition(".tar/")[2] for index in range(len(packed))]
    assert names[:2] == ["class0/0002.png", "class1/0001.png"]


def test_tars_with_the_same_names_are_packed_as_one(tmp_path: Path) -> None:
    source = tmp_path / "tars"
    for number in range(3):
        write_tar(source / f"{number}.tar", *((f"{name}.png", picture(10 * number + name)) for name in range(2)))
    assert pack(source, tmp_path / "packed") == 0
    assert contents(opened(tmp_path / "packed")[0]) == contents(opened(source)[0])


def test_rows_of_a_table_are_packed_whether_they_are_reduced_or_not(tmp_path: Path) -> None:
    rows = [picture(shade) for shade in range(3)] + [large_picture("BMP"), large_picture("TIFF")]
    pq.write_table(pa.table({"image": pa.array(rows, pa.binary())}), tmp_path / "x.parquet")
    assert pack(tmp_path / "x.parquet", tmp_path / "packed", "--short_side", "32") == 0
    packed, _ = opened(tmp_path / "packed")
    assert contents(packed)[:3] == rows[:3]
    assert [packed.read(index, 3).shape for index in (3, 4)] == [(3, 32, 48)] * 2
    assert pack(tmp_path / "x.parquet", tmp_path / "whole", "--short_side", "null") == 0
    whole, _ = opened(tmp_path / "whole")
    assert [Path(whole.name(index)).suffix for index in range(5)] == [".png"] * 3 + [".bmp", ".png"]
    assert torch.equal(whole.read(4, 3), whole.read(3, 3))


def large_picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(stream, kind)
    return stream.getvalue()


def test_a_class_that_cannot_be_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture_folder(tmp_path, classes=1, count=2)
    (tmp_path / "list.csv").write_text("class0/0000.png,a/b\nclass0/0001.png,a/c\n")
    assert pack(tmp_path / "list.csv", tmp_path / "packed") == 2
    assert "the class 'a/b' cannot be a folder; rename it" in capsys.readouterr().err


def test_untouched_images_are_the_same_data_set_also_packed_again(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "source" / "train", classes=2, count=6).parent
    picture_folder(source / "val", classes=2, count=4)
    assert pack(source, tmp_path / "once", "--short_side", "null", "--images_per_tar", "4") == 0
    assert pack(tmp_path / "once", tmp_path / "twice", "--short_side", "null") == 0
    for images, once, twice in zip(*map(opened, (source, tmp_path / "once", tmp_path / "twice")), strict=True):
        assert images is not None
        assert once is not None
        assert twice is not None
        assert contents(images) == contents(once) == contents(twice)
        assert images.labels == once.labels == twice.labels
        assert names_fingerprint(images) == names_fingerprint(once) == names_fingerprint(twice)


def test_a_killed_and_a_stopped_command_resume_to_the_same_bytes(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "source", classes=3, count=120)
    assert pack(source, tmp_path / "whole", "--images_per_tar", "10") == 0
    flags = ["pack", "--data.source", source, "--out", tmp_path / "packed", "--images_per_tar", 10, "--data.workers", 1]
    for number, tar_count in ((signal.SIGKILL, 2), (signal.SIGTERM, 5)):
        process = Process("mae_curriculum", *flags)
        while process.poll() is None and len(tars(tmp_path / "packed")) < tar_count:
            time.sleep(0.002)
        process.send(number)
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 75)
        assert not (tmp_path / "packed" / "manifest.json").exists()
    assert pack(source, tmp_path / "packed", "--images_per_tar", "10") == 0
    assert tars(tmp_path / "packed") == tars(tmp_path / "whole")
    manifests = [read_json(tmp_path / name / "manifest.json")["train"] for name in ("packed", "whole")]
    assert manifests[0] == manifests[1]


def test_another_packing_in_the_same_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = picture_folder(tmp_path / "source", classes=2, count=4), tmp_path / "packed"
    assert pack(source, out) == 0
    before = tars(out)
    assert pack(source, out) == 0
    assert "is complete, with the same images and settings" in capsys.readouterr().err
    assert pack(source, out, "--short_side", "8") == 2
    assert "holds other images, or these packed otherwise" in capsys.readouterr().err
    assert pack(out, source) == 2
    assert f"out: {source} is not empty" in capsys.readouterr().err
    assert tars(out) == before


def test_images_that_all_are_broken_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.png").write_bytes(b"no image")
    assert pack(tmp_path / "source", tmp_path / "packed") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        f"error: data.source: none of the train images can be read, such as {tmp_path}/source/a.png: not an image"
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_webdataset_reads_the_tars(tmp_path: Path) -> None:
    source = picture_folder(tmp_path / "source", classes=2, count=4)
    assert pack(source, tmp_path / "packed") == 0
    samples = [*webdataset.WebDataset(str(tmp_path / "packed" / "train-000000.tar"), shardshuffle=False)]
    assert [sample["__key__"] for sample in samples] == [
        f"class{n}/{i:04}" for n, i in ((0, 0), (0, 2), (1, 1), (1, 3))
    ]
    assert [int(sample["cls"]) for sample in samples] == [0, 0, 1, 1]
    assert samples[3]["png"] == (source / "class1" / "0003.png").read_bytes()
    gc.collect()  # now, not in another test


def times_of(folder: Path) -> dict[str, int]:
    return {tar.name: tar.stat().st_mtime_ns for tar in folder.glob("*.tar")}


def test_packed_images_are_copied_to_the_node_once_and_checked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack("digits", tmp_path / "packed", "--images_per_tar", "1000")
    world = World(0, 1, torch.device("cpu"))
    config = DataConfig(source=str(tmp_path / "packed"), local_copy=tmp_path / "disk", image_count=1438)
    with caplog.at_level(logging.INFO):
        images, val, _ = open_together(config, world)
    assert val is not None
    (copy,) = (tmp_path / "disk").glob("packed-*")
    assert tars(copy) == tars(tmp_path / "packed")
    assert images.name(0).startswith(str(copy))
    assert names_fingerprint(images) == names_fingerprint(opened(tmp_path / "packed")[0])
    assert f"on each node: {copy}" in caplog.text
    assert times_of(copy) == times_of(tmp_path / "packed")  # or nodes would differ in the fingerprint of the images
    (copy / "train-000000.tar.index" / "members.bin").unlink()  # a kill while it was copied
    assert len(open_together(config, world)[0]) == 1438
    inode = (copy / "train-000001.tar").stat().st_ino
    (tmp_path / "packed" / "train-000000.tar").unlink()  # no longer needed
    open_together(config, world)
    assert (copy / "train-000001.tar").stat().st_ino == inode
    pack("digits", tmp_path / "again", "--images_per_tar", "1438")
    (tmp_path / "packed").rename(tmp_path / "old")
    (tmp_path / "again").rename(tmp_path / "packed")
    open_together(config, world)
    assert tars(copy) == tars(tmp_path / "packed")


@pytest.mark.parametrize("manifest", [None, "{"], ids=["missing", "cut"])
def test_a_copy_that_was_interrupted_is_made_anew(manifest: str | None, tmp_path: Path) -> None:
    world = World(0, 1, torch.device("cpu"))
    pack("digits", tmp_path / "packed")
    config = DataConfig(source=str(tmp_path / "packed"), local_copy=tmp_path / "disk")
    open_together(config, world)
    (copy,) = (tmp_path / "disk").glob("packed-*")
    tar = copy / "train-000000.tar"
    tar.write_bytes(bytes(tar.stat().st_size))  # of other images that are as large
    (copy / "manifest.json").unlink()
    if manifest is not None:
        (copy / "manifest.json").write_text(manifest)
    open_together(config, world)
    assert tars(copy) == tars(tmp_path / "packed")


def test_jobs_that_start_together_copy_once(tmp_path: Path) -> None:
    pack("digits", tmp_path / "packed")
    target = tmp_path / "disk" / "copy"
    with ProcessPoolExecutor(4, get_context("spawn")) as jobs:
        for _ in jobs.map(copy_packed, [tmp_path / "packed"] * 12, [target] * 12):
            pass
    assert tars(target) == tars(tmp_path / "packed")
    assert not [*target.rglob("*.tmp")]


def test_a_copy_that_cannot_be_made_is_refused_in_a_line(tmp_path: Path) -> None:
    world = World(0, 1, torch.device("cpu"))
    picture_folder(tmp_path / "photos", classes=1, count=2)
    with pytest.raises(ConfigError, match="has no manifest.json of `pack`"):
        open_together(DataConfig(source=str(tmp_path / "photos"), local_copy=tmp_path / "disk"), world)
    pack(tmp_path / "photos", tmp_path / "packed")
    tar = tmp_path / "packed" / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    config = DataConfig(source=str(tmp_path / "packed"), local_copy=tmp_path / "disk")
    with pytest.raises(ConfigError, match="is not as its manifest says"):
        open_together(config, world)
    assert not [*(tmp_path / "disk").rglob("*.tar*")]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be copied to \S+ on \S+ \(File exists\)"):
        open_together(replace(config, local_copy=tmp_path / "file"), world)
