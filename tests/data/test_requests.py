import numpy as np
import pytest

from mae_curriculum.curriculum.batches import micro_batches
from mae_curriculum.data.requests import epoch_order
from tests.small import make_clock, make_sampler


def test_an_epoch_contains_every_image_once_in_its_own_order() -> None:
    orders = [epoch_order(5, epoch, 30).tolist() for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(30))
    assert orders[0] != orders[1]
    assert epoch_order(6, 0, 30).tolist() != orders[0]


def test_batches_continue_across_the_end_of_an_epoch() -> None:
    requests = [request for batch in make_sampler() for request in batch.images]
    assert [r.epoch for r in requests] == [0] * 30 + [1] * 30 + [2] * 28  # 90 images are 11 steps of 8
    assert [r.image for r in requests[:30]] == epoch_order(5, 0, 30).tolist()


def test_requests_have_the_augmentation_strength_of_their_step() -> None:
    batches = list(make_sampler())
    clock = make_clock()
    for step, batch in enumerate(batches):
        assert {(r.magnitude, r.min_area) for r in batch.images} == {
            (clock.moment(step).magnitude, clock.moment(step).min_area)
        }
    assert batches[0].images[0].magnitude == 0
    assert batches[-1].images[0].magnitude == pytest.approx(9 * (0.5 + 0.5 * 4 / 5))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_ranks_and_micro_batches_split_the_same_images(world_size: int, micro_batch: int | None) -> None:
    parts = [list(make_sampler(4, rank, world_size, micro_batch)) for rank in range(world_size)]
    spread = sorted(request for rank in parts for batch in rank for request in batch.images)
    assert spread == sorted(request for batch in list(make_sampler())[4:] for request in batch.images)
    places = [place for rank in parts for batch in rank for place in batch.places]
    assert sorted(places) == sorted([*range(8)] * 7)
    for rank in parts:  # each step's last micro-batch says so, and no other
        assert [batch.is_last for batch in rank] == [batch.places.stop == rank[-1].places.stop for batch in rank]


def test_micro_batches_hold_more_of_smaller_images() -> None:
    small, full = make_clock(batch_images=32).spans
    assert [list(part) for part in micro_batches(full, 1, 2, 6)] == [
        list(range(16, 21)),
        list(range(21, 26)),
        list(range(26, 32)),
    ]
    assert [len(part) for part in micro_batches(small, 1, 2, 6)] == [16]  # a quarter of the area: 24 fit


@pytest.mark.parametrize("count", [1000, 1003])
def test_a_window_keeps_neighbors_near_and_every_image_once(count: int) -> None:
    order = epoch_order(5, 2, count, 160)
    assert sorted(order.tolist()) == list(range(count))
    assert order.tolist() != epoch_order(5, 3, count, 160).tolist()
    block_of = order // 10
    spans = [np.ptp(np.flatnonzero(block_of == block)) for block in range(count // 10)]
    assert max(spans) <= 160 + 10, "a block is read within a window"
    seen = [len({*block_of[start : start + 100].tolist()}) for start in range(0, 900, 100)]
    assert 10 < min(seen) <= max(seen) <= 27, "and mixed with others"


def test_with_repeats_every_image_has_its_crops_in_a_row_and_an_epoch_its_length() -> None:
    requests = [request for batch in make_sampler(repeats=3) for request in batch.images]
    order = [int(image) for image in epoch_order(5, 0, 30)]
    assert [request.image for request in requests] == [image for image in order for _ in range(3)][:88]
    assert [request.crop for request in requests] == [*(29 * [0, 1, 2]), 0]
    assert len(requests) == make_clock().total_images == 88
    assert {request.epoch for request in requests} == {0}
