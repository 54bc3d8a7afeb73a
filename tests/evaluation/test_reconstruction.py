"""Reconstructions, checked pixel by pixel."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mae_curriculum.curriculum.clock import View
from mae_curriculum.curriculum.low_frequency import low_frequency_crop
from mae_curriculum.data.preprocess import normalize
from mae_curriculum.evaluation.reconstruction import (
    Reconstruction,
    fixed_noise,
    reconstruct_images,
    unpatchify,
)
from mae_curriculum.model.config import Target
from mae_curriculum.model.hog import hog
from mae_curriculum.model.masked_autoencoder import MaskedAutoencoder, build_model
from mae_curriculum.model.masking import mask_noise, patchify, split_by_noise
from mae_curriculum.model.targets import make_target
from tests.small import SMALL

WIDE = replace(SMALL, image_size=(32, 48), depth=1)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 48), np.uint8))


class Oracle(torch.nn.Module):
    """A decoder that predicts the exact target of given images."""

    def __init__(self, truth: Tensor, target: Target) -> None:
        super().__init__()
        self.truth, self.target = truth, target

    def forward(
        self, tokens: Tensor, mask_token: Tensor, grid: tuple[int, int], ids_keep: Tensor, ids_mask: Tensor
    ) -> Tensor:
        return make_target(self.truth, ids_mask, patch_size=(8, 8), kind=self.target, grid=grid)


def reconstruct(model: MaskedAutoencoder, size: tuple[int, int] = (32, 48), pixels: Tensor = PIXELS) -> Reconstruction:
    return reconstruct_images(model, pixels, View(size, 0.75), seed=5, mean=MEAN, std=STD)


@pytest.mark.parametrize("target", ["pixels", "norm_pixels"])
@pytest.mark.parametrize("size", [(32, 48), (16, 24)])
def test_exact_prediction_reconstructs_the_input(target: Target, size: tuple[int, int]) -> None:
    model: Any = build_model(replace(WIDE, target=target), seed=0)
    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    model.decoder = Oracle(low_frequency_crop((PIXELS / 255 - shift) / scale, size), target)
    found = reconstruct(model, size)
    torch.testing.assert_close(found.completed, found.seen, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.seen, low_frequency_crop(PIXELS / 255, size), atol=1e-5, rtol=0)


def test_visible_patches_are_copied_without_error() -> None:
    found = reconstruct(build_model(WIDE, seed=0))
    visible = ~found.hidden.expand_as(found.seen)
    assert torch.equal(found.completed[visible], found.seen[visible])
    assert torch.equal(found.masked[visible], found.seen[visible])
    assert (found.masked[~visible] == 0.5).all()
    assert (found.error[~found.hidden] == 0).all()
    assert (found.error[found.hidden] > 0).any()
    assert (found.visible_count, found.patch_count) == (6, 24)
    assert found.hidden.float().mean() == 18 / 24


def test_zero_prediction_shows_the_mean_of_each_masked_patch() -> None:
    model = build_model(WIDE, seed=0)
    torch.nn.init.zeros_(model.decoder.pred.weight)
    found = reconstruct(model)
    for image in range(len(PIXELS)):
        for top in range(0, 32, 8):
            for left in range(0, 48, 8):
                patch = (image, slice(None), slice(top, top + 8), slice(left, left + 8))
                if found.hidden[image, 0, top, left]:
                    # the mean is over all normalized values of the patch, all channels together
                    normal = (found.seen[patch] - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
                    shown = normal.mean() * torch.tensor(STD) + torch.tensor(MEAN)
                    expected = shown[:, None, None].expand(3, 8, 8)
                    torch.testing.assert_close(found.completed[patch], expected, atol=1e-5, rtol=0)


def test_error_is_the_root_mean_square_over_channels() -> None:
    seen, completed = (torch.tensor(values).view(1, 2, 1, 1) for values in ([0.0, 0.5], [0.3, 0.1]))
    found = Reconstruction(seen, torch.ones(1, 1, 1, 1) > 0, seen, completed, "pixels", 0, 1)
    assert found.error.item() == pytest.approx((0.25 / 2) ** 0.5)


def test_masks_depend_only_on_seed_position_and_grid() -> None:
    first, second = (build_model(WIDE, seed=seed) for seed in (0, 1))
    assert torch.equal(reconstruct(first).hidden, reconstruct(second).hidden)
    assert torch.equal(reconstruct(first, (16, 24)).hidden, reconstruct(second, (16, 24)).hidden)
    assert torch.equal(reconstruct(first, pixels=PIXELS[:1]).hidden, reconstruct(first).hidden[:1])
    noise = fixed_noise(3, (4, 6), (4, 6), seed=5)
    assert torch.equal(noise, mask_noise(seed=5, step=0, places=range(3), count=24))
    ids_keep, _ = split_by_noise(noise, 6, grid=(4, 6))
    kept = patchify(~reconstruct(first).hidden, (8, 8)).all(dim=-1).nonzero()[:, 1].view(3, 6)
    assert torch.equal(kept, ids_keep.sort(dim=1).values)


def test_smaller_grid_has_the_noise_of_the_nearest_patches() -> None:
    full = fixed_noise(1, (4, 6), (4, 6), seed=0).view(4, 6)
    assert torch.equal(fixed_noise(1, (4, 6), (2, 3), seed=0).view(2, 3), full[::2, ::2])


def test_reconstruction_has_no_side_effects() -> None:
    model = build_model(WIDE, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = []
    for action in (lambda: None, lambda: reconstruct(model)):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        action()
        drawn.append((float(torch.rand(())), np.random.random(), random.random()))
    assert drawn[0] == drawn[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_unpatchify_inverts_patchify() -> None:
    images = torch.rand(2, 5, 24, 32)
    assert torch.equal(unpatchify(patchify(images, (8, 4)), (3, 8), (8, 4)), images)


@pytest.mark.parametrize("target_from", ["crop", "full"])
def test_a_hog_target_is_shown_as_histograms_predicted_in_masked_patches_alone(target_from: Any) -> None:
    model = build_model(replace(WIDE, target="hog", target_from=target_from), seed=0)
    torch.nn.init.zeros_(model.decoder.pred.weight)  # biases are zero from the start
    found = reconstruct(model, (16, 24))
    full = normalize(PIXELS, MEAN, STD)
    source = full if target_from == "full" else low_frequency_crop(full, (16, 24))
    assert torch.equal(found.truth, hog(source, (2, 3)))
    hidden = found.hidden[:, :, None, ::8, ::8].expand_as(found.truth)
    assert torch.equal(found.completed, found.truth.where(~hidden, 0))
    assert found.hidden.float().mean() == 5 / 6
