"""Features of whole datasets: each image once and in order, and a cache that other weights do not share."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.decode import BrokenImageError
from mae_curriculum.data.sources import ArrayImages
from mae_curriculum.distributed import World
from mae_curriculum.evaluation.features import Inference
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, build_model
from tests.small import SMALL

TINY = replace(SMALL, image_size=16, channels=1, width=24, depth=1, decoder_width=16)
COUNT = 7


class BrokenAt(ArrayImages):
    """Images of which those with a pixel of 255 cannot be read."""

    def read(self, index: int, channels: int) -> Tensor:
        if self.pixels[index].max() == 255:
            raise BrokenImageError("broken on purpose")
        return super().read(index, channels)


def gray_images(*, broken: tuple[int, ...] = ()) -> BrokenAt:
    """Return images of one gray value each: 10 times their index, or 255 if broken."""
    values: NDArray[np.uint8] = 10 * np.arange(COUNT, dtype=np.uint8)
    values[list(broken)] = 255
    return BrokenAt(np.tile(values[:, None, None, None], (1, 1, 16, 16)), [0] * COUNT, ("only",))


def inference(cache: Path, *, rank: int = 0, world_size: int = 1) -> Inference:
    data = DataConfig(cache=cache, workers=0, mean=(0.0,), std=(1.0,))
    return Inference(World(rank, world_size, torch.device("cpu")), data, "float32", batch_images=2)


def gray_values(images: Tensor, _: Tensor) -> Tensor:
    return (255 * images[:, 0, 0, 0]).round()


def run(images: ArrayImages, how: Inference) -> tuple[list[float], list[int]]:
    parts = list(how.run(gray_values, images, size=(16, 16), channels=1))
    return [value for rows, _ in parts for value in rows.tolist()], [i for _, ids in parts for i in ids.tolist()]


def test_each_image_comes_once_and_in_order_also_in_the_last_smaller_batch(tmp_path: Path) -> None:
    values, indices = run(gray_images(), inference(tmp_path))
    assert indices == list(range(COUNT))
    assert values == [10 * index for index in indices]


def test_broken_images_are_left_out(tmp_path: Path) -> None:
    values, indices = run(gray_images(broken=(0, 2, 3)), inference(tmp_path))
    assert indices == [1, 4, 5, 6]
    assert values == [10, 40, 50, 60]


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_share_each_block_in_order_with_equally_many_batches(
    world_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "gather_rows", lambda world, rows: rows)  # what each rank contributes
    parts = []
    for rank in range(world_size):
        how = inference(tmp_path, rank=rank, world_size=world_size)
        parts.append([ids.tolist() for _, ids in how.run(gray_values, gray_images(), size=(16, 16), channels=1)])
    batches = list(zip(*parts, strict=True))  # strict: a rank with fewer batches would leave the others waiting
    assert [index for batch in batches for ids in batch for index in ids] == list(range(COUNT))


def test_check_is_called_for_each_batch_and_may_stop(tmp_path: Path) -> None:
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(gray_images(), replace(inference(tmp_path), check=check))


@pytest.fixture(scope="module")
def model() -> MaskedAutoencoder:
    return build_model(TINY, seed=0)


def test_encode_returns_the_features_of_readable_images(model: MaskedAutoencoder, tmp_path: Path) -> None:
    features, indices = inference(tmp_path).encode(model, gray_images(broken=(1,)))
    assert indices.tolist() == [0, 2, 3, 4, 5, 6]
    assert features.shape == (6, 2, 24)
    images = torch.from_numpy(gray_images().pixels).float() / 255
    with torch.inference_mode():
        torch.testing.assert_close(features, model.features(images[indices]), atol=1e-5, rtol=0)
    assert model.training


def test_cached_features_are_those_of_encode_with_nan_for_broken_images(
    model: MaskedAutoencoder, tmp_path: Path
) -> None:
    images, how = gray_images(broken=(1,)), inference(tmp_path)
    features = torch.from_numpy(how.cached(model, images, [0])[0].copy())
    assert features.shape == (COUNT, 2, 24)
    assert features[1].isnan().all()
    encoded, indices = how.encode(model, images)
    assert torch.equal(features[indices], encoded)
    assert [path.suffix for path in (tmp_path / ".features").iterdir()] == [".npy"]  # no temporary file is left


def test_cache_is_reused_for_the_same_weights_images_and_settings(
    model: MaskedAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = inference(tmp_path).cached(model, gray_images(), [0])

    def fail(*arguments: object, blocks: object) -> None:
        raise AssertionError("features are computed again")

    monkeypatch.setattr(MaskedAutoencoder, "features_by_block", fail)
    np.testing.assert_array_equal(inference(tmp_path).cached(model, gray_images(), [0])[0], first)
    with pytest.raises(AssertionError, match="computed again"):
        inference(tmp_path).cached(model, gray_images(broken=(1,)), [0])
    with pytest.raises(AssertionError, match="computed again"):
        replace(inference(tmp_path), crop=0.5).cached(model, gray_images(), [0])


def test_cache_is_not_shared_with_other_weights(model: MaskedAutoencoder, tmp_path: Path) -> None:
    how, other = inference(tmp_path), build_model(TINY, seed=1)
    (first,), (second,) = how.cached(model, gray_images(), [0]), how.cached(other, gray_images(), [0])
    assert len(list((tmp_path / ".features").iterdir())) == 2
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, how.encode(other, gray_images())[0].numpy())


def test_the_same_weights_as_registers_and_as_class_tokens_have_features_of_their_own(tmp_path: Path) -> None:
    how = inference(tmp_path)
    registers = build_model(replace(TINY, options={"reg_tokens": 2}), seed=0)
    class_tokens = build_model(replace(TINY, class_tokens=3), seed=0)
    assert how.cached(registers, gray_images(), [0])[0].shape == (COUNT, 2, 24)
    assert how.cached(class_tokens, gray_images(), [0])[0].shape == (COUNT, 3, 24)


def test_decoder_weights_do_not_invalidate_the_cache(tmp_path: Path) -> None:
    changed, how = build_model(TINY, seed=0), inference(tmp_path)
    how.cached(changed, gray_images(), [0])
    torch.nn.init.zeros_(changed.decoder.pred.weight)
    how.cached(changed, gray_images(), [0])
    assert len(list((tmp_path / ".features").iterdir())) == 1


def cut(depth: int, block: int) -> MaskedAutoencoder:
    """Return an encoder that ends with a block."""
    model = build_model(replace(TINY, depth=depth), seed=0)
    model.encoder.blocks = model.encoder.blocks[: block + 1]
    return model.eval()


def test_the_features_of_each_block_are_those_of_an_encoder_that_ends_there(tmp_path: Path) -> None:
    images, how = gray_images(broken=(1,)), inference(tmp_path)
    by_block = how.cached(cut(3, 2), images, [0, 1, 2])
    for block, features in enumerate(by_block):
        expected, indices = how.encode(cut(3, block), images)
        torch.testing.assert_close(torch.from_numpy(features[indices.numpy()].copy()), expected, atol=1e-6, rtol=0)
        assert np.isnan(features[1]).all()
    assert not np.allclose(by_block[0][0], by_block[2][0], atol=0.1)


def test_one_pass_computes_the_blocks_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, compute = [], MaskedAutoencoder.features_by_block

    def count(model: MaskedAutoencoder, images: Tensor, blocks: list[int]) -> Tensor:
        asked.append(blocks)
        return compute(model, images, blocks)

    monkeypatch.setattr(MaskedAutoencoder, "features_by_block", count)
    model, how = cut(3, 2), inference(tmp_path)
    (second,) = how.cached(model, gray_images(), [1])
    again = how.cached(model, gray_images(), [0, 1, 2])
    np.testing.assert_array_equal(again[1], second)
    how.cached(model, gray_images(), [2])
    assert asked == [[1]] * 4 + [[0, 2]] * 4  # 7 images in batches of 2
