"""What is measured without labels."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mae_curriculum.evaluation.unlabeled import effective_rank, measure_unlabeled
from mae_curriculum.model.masked_autoencoder import build_model
from tests.evaluation.test_features import TINY, gray_images, inference


def test_the_effective_rank_counts_directions_of_equal_strength() -> None:
    assert effective_rank(torch.eye(8)[:5]) == pytest.approx(5)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1)
    # singular values 3 and 1 are shares of 3/4 and 1/4, of entropy 0.562335
    assert effective_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0]])) == pytest.approx(1.754765)


def test_the_loss_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    images, model = gray_images(broken=(2,)), build_model(replace(TINY, patch_size=4), seed=0)
    images.pixels[:, :, ::3] //= 2
    losses = [
        measure_unlabeled(model, images, mask_ratio=0.75, inference=replace(inference(tmp_path), batch_images=size))
        for size in (1, 2, 7)
    ]
    assert [each["val_loss"] for each in losses] == pytest.approx([losses[0]["val_loss"]] * 3, rel=1e-5)
