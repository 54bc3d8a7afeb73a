import pytest

from mae_curriculum.training.learning_rate import learning_rate


def test_learning_rate_rises_to_the_peak_and_falls_by_half_a_cosine() -> None:
    rates = [learning_rate(p, peak=2.0, warmup=0.2, floor=0.0) for p in (0, 0.1, 0.2, 0.6, 1)]
    assert rates == pytest.approx([0, 1, 2, 1, 0])


def test_learning_rate_ends_at_its_floor() -> None:
    assert learning_rate(1, peak=2.0, warmup=0.2, floor=0.5) == pytest.approx(0.5)


def test_learning_rate_without_warmup_begins_at_the_peak() -> None:
    assert learning_rate(0, peak=2.0, warmup=0.0) == 2.0
