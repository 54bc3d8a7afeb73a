"""What is measured without labels."""

import pytest
import torch

from mae_curriculum.evaluation.unlabeled import effective_rank


def test_the_effective_rank_counts_directions_of_equal_strength() -> None:
    assert effective_rank(torch.eye(8)[:5]) == pytest.approx(5)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1)
    # singular values 3 and 1 are shares of 3/4 and 1/4, of entropy 0.562335
    assert effective_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0]])) == pytest.approx(1.754765)
