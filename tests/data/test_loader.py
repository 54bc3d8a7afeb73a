import pickle
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import View
from mae_curriculum.curriculum.config import Augmentation
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.contents import look_at
from mae_curriculum.data.loader import (
    NO_IMAGE,
    Batch,
    Delay,
    EvaluationImages,
    TrainingImages,
    join,
    receive,
    training_loader,
)
from mae_curriculum.data.preprocess import normalize
from mae_curriculum.data.requests import Request, RequestSampler, epoch_order
from mae_curriculum.data.sources import ArrayImages, Images, names_fingerprint, open_images
from tests.processes import run_python
from tests.small import make_clock, make_sampler

CPU = torch.device("cpu")


class CountedImages:
    """Images that note which are read."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.reads: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.images, name)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, channels: int) -> torch.Tensor:
        self.reads.append(index)
        return self.images.read(index, channels)


def make_folder(folder: Path, counts: dict[str, int]) -> Path:
    """Write small PNG images of a single color each to folders."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("RGB", (20, 24), (number * 40, index, 99)).save(folder / name / f"{index:03}.png")
    return folder


def test_images_are_loaded_at_the_size_that_the_view_needs() -> None:
    images, _ = open_images(DataConfig("digits"))
    fourier, lanczos = View((16, 16)), View((16, 16), resize="lanczos")
    dataset = TrainingImages(images, (32, 32), 1, Augmentation(), 5)
    crops = {view: dataset[Request(0, 3, view, None, 0.2)][0] for view in (fourier, lanczos)}
    assert [crop.shape for crop in crops.values()] == [(1, 32, 32), (1, 16, 16)]
    pairs = torch.stack([crops[lanczos].flatten(), crops[fourier][:, ::2, ::2].flatten()]).float()
    assert torch.corrcoef(pairs)[0, 1] > 0.9, "the same part of the same image"
    assert replace(dataset, oversample=1.3).loaded_size(fourier) == (21, 21)
    assert replace(dataset, oversample=9.0).loaded_size(fourier) == (32, 32)
    assert replace(dataset, whole=True).loaded_size(lanczos) == (32, 32)


def test_crops_of_an_image_differ_and_it_is_decoded_once() -> None:
    images, _ = open_images(DataConfig("digits"))
    counted = CountedImages(images)
    dataset = TrainingImages(counted, (16, 16), 1, Augmentation(), 5)
    requests = next(iter(RequestSampler(make_clock(), 0, 5, 0, 1, None, repeats=4))).images
    assert [request.crop for request in requests] == [0, 1, 2, 3, 0, 1, 2, 3]
    crops = [dataset[request][0] for request in requests]
    assert counted.reads == [requests[0].image, requests[4].image]
    assert len({crop.numpy().tobytes() for crop in crops[:4]}) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_images_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    images, _ = open_images(DataConfig("digits"))
    dataset = TrainingImages(images, (16, 16), 1, Augmentation(), 5)
    clock = make_clock(images_per_epoch=len(images))
    loader = training_loader(dataset, RequestSampler(clock, 530, 5, 0, 1, 4), workers=workers, device=CPU)
    batches = [item.images for item in receive(loader) if isinstance(item, Batch)]
    assert len(batches) == 2 * (clock.total_steps - 530)
    expected = [dataset[request][0] for request in next(iter(RequestSampler(clock, 530, 5, 0, 1, 4))).images]
    assert torch.equal(batches[0], torch.stack(expected))
    assert torch.equal(
        batches[-1], torch.stack([dataset[r][0] for r in list(RequestSampler(clock, 538, 5, 0, 1, 4))[-1].images])
    )


def test_a_broken_image_is_reported_and_replaced_by_the_next(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 300})
    (tmp_path / "a" / "007.png").write_text("no image")
    (tmp_path / "a" / "008.png").write_bytes((tmp_path / "a" / "009.png").read_bytes()[:40])
    images, _ = open_images(DataConfig(source=str(tmp_path)))
    image, index, broken = TrainingImages(images, (8, 8), 3, Augmentation(flip=False), 0)[
        Request(0, 7, View((8, 8)), None, 0.5)
    ]
    assert index == 9
    assert image[:, 0, 0].tolist() == [0, 9, 99]
    assert list(broken) == [str(tmp_path / "a" / f"00{i}.png") for i in (7, 8)]
    assert broken[str(tmp_path / "a" / "007.png")] == "not an image"
    evaluated = EvaluationImages(images, (8, 8), 3)
    assert [evaluated[index][1] for index in range(6, 10)] == [6, NO_IMAGE, NO_IMAGE, 9]


def test_an_image_followed_only_by_broken_ones_is_black_and_reports_them(tmp_path: Path) -> None:
    for index in range(5):
        (tmp_path / f"{index}.jpg").write_text("no image")
    images, _ = open_images(DataConfig(source=str(tmp_path)))
    image, _, broken = TrainingImages(images, (8, 8), 3, Augmentation(), 0)[Request(0, 2, View((8, 8)), None, 0.5)]
    assert not image.any()
    assert len(broken) == 2  # more than 1 % of five


def test_normalized_pixels_have_mean_zero_and_variance_one() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    images = normalize(pixels, (0.5, 0.5, 0.0), (0.5, 0.25, 1.0))
    assert images[0, :, 0].tolist() == [[-1, 1], [-2, 2], [0, 1]]


@pytest.mark.parametrize("channels", [1, 3])
def test_joined_images_are_the_same_and_normalizing_leaves_whole_channels_in_memory(channels: int) -> None:
    images = list(torch.randint(256, (4, channels, 6, 8), dtype=torch.uint8))
    batch = join(images)
    assert torch.equal(batch, torch.stack(images))
    zero, one = (0.0,) * channels, (1 / 255,) * channels
    normalized = normalize(batch, zero, one)
    assert normalized.stride() == (channels * 48, 48, 8, 1)  # convolutions give other bits for other strides
    assert torch.equal(normalized, torch.stack(images).float())


def test_a_loader_can_be_sent_to_workers_that_are_not_forked() -> None:
    """As on macOS and Windows, and from Python 3.14 on."""
    images, _ = open_images(DataConfig("digits"))
    dataset = TrainingImages(images, (16, 16), 1, Augmentation(), 5)
    sampler = RequestSampler(make_clock(images_per_epoch=len(images)), 0, 5, 0, 1, None)
    loader = training_loader(dataset, sampler, workers=1, device=CPU)
    sent, collate, _ = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn)))
    assert torch.equal(collate(sent[next(iter(sampler))]).images, loader.dataset[next(iter(sampler))].images)


def test_some_digits_are_held_out_for_validation() -> None:
    train, val = open_images(DataConfig("digits"))
    assert val is not None
    assert (len(train), len(val)) == (look_at(DataConfig("digits")).train.images, 359)
    assert train.read(0, 1).shape == (1, 8, 8)
    assert int(train.read(0, 1).max()) > 200
    assert train.read(0, 3).shape == (3, 8, 8)
    known = load_digits()
    assert train.labels == [label for index, label in enumerate(known.target) if index % 5 != 4]
    assert (train.read(5, 1)[0].numpy() == np.round(known.images[6] * (255 / 16))).all()


def test_a_folder_with_train_and_val_has_both(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 1})
    train, val = open_images(DataConfig(source=str(tmp_path)))
    assert train.labels == [0, 0, 0, 1, 1]
    assert val is not None
    assert val.labels == [0, 1]
    assert train.name(3).endswith("dog/000.png")


def test_validation_images_have_the_class_numbers_of_training(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train/a": 1, "train/b": 1, "train/c": 1, "val/c": 2})
    _, val = open_images(DataConfig(source=str(tmp_path)))
    assert val is not None
    assert val.labels == [2, 2]


def test_links_are_followed_but_not_in_cycles(tmp_path: Path) -> None:
    make_folder(tmp_path / "real", {"a": 2, "b": 2})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "real" / "a" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "real" / "a" / "again").symlink_to(tmp_path / "real")
    images, _ = open_images(DataConfig(source=str(tmp_path / "set")))
    assert len(images) == 4


def test_the_fingerprint_depends_on_number_and_names_of_the_images(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 2, "b": 2})
    before = names_fingerprint(open_images(DataConfig(source=str(tmp_path)))[0])
    moved = tmp_path.rename(tmp_path.parent / "moved")
    assert names_fingerprint(open_images(DataConfig(source=str(moved)))[0]) == before
    (moved / "a" / "000.png").rename(moved / "a" / "zero.png")
    assert names_fingerprint(open_images(DataConfig(source=str(moved)))[0]) != before


def test_a_tree_of_unlabeled_images_has_no_labels(tmp_path: Path) -> None:
    make_folder(tmp_path, {".": 2, "deep/er": 2})
    (tmp_path / "notes.txt").write_text("not an image, and not listed")
    train, val = open_images(DataConfig(source=str(tmp_path)))
    assert (len(train), train.labels, val) == (4, None, None)
    one_class, _ = open_images(DataConfig(source=str(tmp_path / "deep")))
    assert one_class.labels is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "'nowhere' is neither a folder nor a .tar, .npy or .parquet file"),
        ("empty", "no images in empty; image files end in .* .jpg"),
    ],
)
def test_a_source_without_images_is_refused(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        open_images(DataConfig(source=source))


def test_a_wrong_image_count_is_refused(tmp_path: Path) -> None:
    config = DataConfig(source=str(make_folder(tmp_path, {"a": 2})), image_count=3)
    assert look_at(config).train.images == 3
    with pytest.raises(ConfigError, match="data.image_count is 3, but .* has 2; set null"):
        open_images(config)


def test_statistics_match_the_channels() -> None:
    assert DataConfig().statistics(3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert DataConfig(mean=(0.3,), std=(0.4,)).statistics(1) == ((0.3,), (0.4,))
    assert len(DataConfig().statistics(5)[0]) == 5
    with pytest.raises(ConfigError, match="data.mean has 1 values, model.channels is 3"):
        replace(DataConfig(), mean=(0.3,)).statistics(3)


def test_a_folder_may_contain_multi_channel_arrays(tmp_path: Path) -> None:
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", np.full((6, 6, 5), index, dtype=np.uint8))
    images, _ = open_images(DataConfig(source=str(tmp_path)))
    image, _, broken = TrainingImages(images, (8, 8), 5, Augmentation(), 0)[Request(0, 2, View((8, 8)), None, 0.5)]
    assert (image.shape, int(image.max()), broken) == ((5, 8, 8), 2, {})


@dataclass(frozen=True)
class StalledImages(ArrayImages):
    """Images of which one never arrives."""

    def read(self, index: int, channels: int) -> torch.Tensor:
        if index == STALLED:
            time.sleep(3600)
        return super().read(index, channels)


STALLED = int(epoch_order(5, 0, 30)[20])
"""The 21st image of `make_clock`'s run: two micro-batches come before it."""


def stalled_loader() -> tuple[Generator[Batch | Delay], BaseProcess]:
    images = StalledImages(np.zeros((30, 1, 8, 8), np.uint8), [0] * 30, ("zero",))
    before = active_children()
    items = receive(
        training_loader(TrainingImages(images, (16, 16), 1, Augmentation(), 5), make_sampler(), workers=1, device=CPU)
    )
    assert sum(isinstance(item, Batch) for item in islice(items, 2)) == 2
    return items, next(process for process in active_children() if process not in before)


def test_a_loop_hears_once_a_second_that_data_is_late_and_which_image_is_in_hand() -> None:
    items, worker = stalled_loader()
    start_time = time.monotonic()
    assert list(islice(items, 2)) == [Delay([STALLED]), Delay([STALLED])]
    assert 1.8 < time.monotonic() - start_time < 5
    start_time = time.monotonic()
    items.close()  # a process that hangs is not waited for
    assert time.monotonic() - start_time < 3
    assert not worker.is_alive()


def test_a_loop_hears_that_a_loading_process_was_killed_and_code_in_between_is_not_disturbed() -> None:
    dataset = EvaluationImages(open_images(DataConfig("digits"))[0], (8, 8), 1)
    next(iter(DataLoader(dataset, num_workers=1)))  # torch sets its handler with the first loader
    items, worker = stalled_loader()
    worker.kill()
    time.sleep(0.3)  # torch would raise an error here
    assert next(items) == Delay([], "a process that loads images was killed, perhaps for lack of memory")
    items.close()


@pytest.mark.slow  # it starts an interpreter
def test_workers_do_not_outlive_an_error_in_the_training_process() -> None:
    program = """
import numpy, torch
from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.curriculum.config import Augmentation, Curriculum
from mae_curriculum.data.loader import TrainingImages, training_loader
from mae_curriculum.data.requests import RequestSampler
from mae_curriculum.data.sources import ArrayImages
shape = {"image_size": (16, 16), "patch_size": (8, 8)}
clock = Clock(Curriculum(), **shape, images_per_epoch=1438, epochs=9, batch_images=4)
images = ArrayImages(numpy.zeros((1438, 1, 8, 8), numpy.uint8), [0] * 1438, ("zero",))
dataset = TrainingImages(images, (16, 16), 1, Augmentation(), 0)
batches = iter(training_loader(dataset, RequestSampler(clock, 0, 0, 0, 1, None), workers=1, device=torch.device("cpu")))
next(batches)
raise RuntimeError("an error")
"""
    done = run_python(["-c", program])
    assert done.returncode == 1
    assert "RuntimeError: an error" in done.stderr
