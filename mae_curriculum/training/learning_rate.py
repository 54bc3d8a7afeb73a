"""The learning rate of a step, as a pure function of progress and batch size."""

import math

from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.training.config import OptimConfig


def step_learning_rate(clock: Clock, progress: float, batch_images: int, optim: OptimConfig) -> float:
    """Return a step's learning rate; a parameter group's `lr_scale`, if it has one, multiplies it.

    batch_images  images of the step.
    """
    peak, floor = (stage_lr(lr, clock, batch_images, optim) for lr in (optim.base_lr, optim.min_lr))
    return learning_rate(progress, peak=peak, warmup=warmup_share(clock, optim), floor=floor)


def stage_lr(base_lr: float, clock: Clock, batch_images: int, optim: OptimConfig) -> float:
    """Return the learning rate of a stage's batch, as `optim.batch_factor_lr` says, given that of 256 images."""
    usual = clock.batch_images
    batch = {"linear": batch_images, "sqrt": math.sqrt(batch_images * usual), "none": usual}[optim.batch_factor_lr]
    return scaled_lr(base_lr, batch)


def warmup_share(clock: Clock, optim: OptimConfig) -> float:
    """Return the share of the run with warm-up.

    EfficientTrain++'s scripts count `warmup_epochs` in the epochs of each stage, so that the cosine of later stages
    begins at another progress; here it is one cosine, which begins when so many epochs are over.
    """
    if optim.warmup_epochs is None:
        assert optim.warmup is not None, "one of them is given"
        return optim.warmup
    return float(clock.progress_after(optim.warmup_epochs))


def scaled_lr(base_lr: float, batch_images: float) -> float:
    """Return the learning rate of a batch, given that of 256 images (arXiv:1706.02677; MAE uses it with AdamW)."""
    return base_lr * batch_images / 256


def learning_rate(progress: float, *, peak: float, warmup: float, floor: float = 0.0) -> float:
    """Return the learning rate: linear warm-up from 0 to `peak`, then half a cosine down to `floor` at progress 1.

    It is continuous. EfficientTrain++'s scripts round stages to whole epochs, so that theirs jumps where the size
    changes, by up to 0.6% of the peak (DeiT, 100 epochs).
    progress  share of the run that is done, 0 to 1.
    warmup    share of the run with warm-up, at least 0 and below 1.
    """
    if progress < warmup:
        return peak * progress / warmup
    fall = (progress - warmup) / (1 - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * fall))
