from collections import Counter

import pytest
import torch

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.curriculum.config import Augmentation, Curriculum, ReplayBuffer, Stage
from mae_curriculum.data.config import DataConfig
from mae_curriculum.data.loader import Batch, TrainingImages, receive, training_loader
from mae_curriculum.data.replay_buffer import Origin, ReplayedStage, take_missing_
from mae_curriculum.data.requests import RequestSampler, epoch_order
from mae_curriculum.data.sources import open_images

SEED = 5


def make_clock(images_per_epoch: int = 60, batch_images: int = 12, factor: int = 3, steps: int = 4) -> Clock:
    """Return a clock of 25 steps at 8 px with a replay buffer, 25 at 16 px with another, and 10 without."""
    stages = (
        Stage(5 / 12, 112, replay_buffer=ReplayBuffer(factor, steps)),
        Stage(5 / 12, 224, replay_buffer=ReplayBuffer(2, 2)),
        Stage(2 / 12, 224),
    )
    return Clock(
        Curriculum(stages=stages),
        image_size=(16, 16),
        patch_size=(4, 4),
        images_per_epoch=images_per_epoch,
        epochs=12,
        batch_images=batch_images,
    )


def sampler(
    clock: Clock,
    first_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    micro_batch: int | None = None,
    repeats: int = 1,
) -> RequestSampler:
    return RequestSampler(clock, first_step, SEED, rank, world_size, micro_batch, repeats=repeats)


def crops(clock: Clock, first_step: int = 0, workers: int = 0, **split: int) -> list[torch.Tensor]:
    """Return the images of each micro-batch, loaded and completed."""
    images, _ = open_images(DataConfig("digits"))
    dataset = TrainingImages(images, (16, 16), 1, Augmentation(), SEED)
    loader = training_loader(dataset, sampler(clock, first_step, **split), workers=workers, device=torch.device("cpu"))
    return [batch.images for batch in receive(loader) if isinstance(batch, Batch)]


def test_one_of_factor_crops_is_new_and_the_others_are_from_the_last_steps_of_the_stage() -> None:
    clock = make_clock()
    stage = ReplayedStage(clock.spans[0], ReplayBuffer(3, 4))
    drawn: Counter[int] = Counter()
    for step in range(25):
        origins, oldest = stage.replayed(step, range(12), SEED)
        assert [origin for origin in origins if origin.step == step][:1] == [Origin(step, 0)]
        assert [origins[place] for place in range(0, 12, 3)] == [Origin(step, place) for place in range(0, 12, 3)]
        assert oldest == max(0, step - 3)
        assert all(oldest <= origin.step <= step and origin.place % 3 == 0 for origin in origins)
        drawn.update(step - origin.step for place, origin in enumerate(origins) if place % 3)
    assert drawn.keys() == {0, 1, 2, 3}
    first_of_second_stage = ReplayedStage(clock.spans[1], ReplayBuffer(2, 2)).replayed(25, range(12), SEED)
    assert {origin.step for origin in first_of_second_stage.origins} == {25}


def test_new_crops_follow_the_order_of_the_epochs() -> None:
    clock = make_clock()
    requests = [request for batch in sampler(clock) for request in batch.images]
    assert len(requests) == 25 * 4 + 25 * 6 + 10 * 12
    order = [int(image) for epoch in (0, 1) for image in epoch_order(SEED, epoch, 60)]
    assert [request.image for request in requests[:100]] == order[:100]
    assert len({*requests}) == len(requests), "nothing is loaded twice"
    second = requests[100:250]
    assert (second[0].epoch, second[-1].epoch) == (5, 7)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_same_crops(workers: int) -> None:
    clock = make_clock()
    whole = crops(clock)
    for first_step in (1, 13, 26, 55):
        resumed = crops(clock, first_step, workers)
        assert len(resumed) == 60 - first_step
        assert all(map(torch.equal, resumed, whole[first_step:]))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_and_micro_batches_see_the_same_crops(world_size: int) -> None:
    clock = make_clock()
    whole = torch.cat(crops(clock))
    ranks = [crops(clock, rank=rank, world_size=world_size, micro_batch=2) for rank in range(world_size)]
    spread = torch.cat([batch for rank in ranks for batch in rank])
    assert sorted(map(bytes, spread.flatten(1).numpy())) == sorted(map(bytes, whole.flatten(1).numpy()))


def test_ranks_with_whole_lanes_load_nothing_twice() -> None:
    clock = make_clock(batch_images=24)
    assert ReplayedStage(clock.spans[0], ReplayBuffer(3, 4)).lanes == 8
    loaded = [
        request for rank in range(4) for batch in sampler(clock, rank=rank, world_size=4) for request in batch.images
    ]
    assert len(loaded) == len({*loaded}) == sum(len(batch.images) for batch in sampler(clock))


def test_the_buffer_keeps_no_more_than_its_steps() -> None:
    clock = make_clock()
    stage, held = ReplayedStage(clock.spans[0], ReplayBuffer(3, 4)), dict[Origin, None]()
    for step in range(25):
        held |= dict.fromkeys(take_missing_(held, stage.replayed(step, range(12), SEED)))
        assert len(held) <= 4 * stage.new_in_step


def test_crops_in_a_row_and_a_buffer_go_together() -> None:
    requests = [request for batch in sampler(make_clock(), repeats=2) for request in batch.images][:100]
    assert [request.crop for request in requests] == 50 * [0, 1]
    assert [request.image for request in requests[::2]] == epoch_order(SEED, 0, 60)[:50].tolist()


@pytest.mark.parametrize(("factor", "steps", "message"), [(1, 4, "factor must be at least 2"), (2, 0, "steps must be")])
def test_a_buffer_without_sense_is_refused(factor: int, steps: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReplayBuffer(factor, steps)
