import pytest

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.curriculum.config import Curriculum, Stage
from mae_curriculum.training.config import OptimConfig, TrainingConfig, build_training_clock
from mae_curriculum.training.learning_rate import learning_rate, step_learning_rate, warmup_share

PLUS_PLUS = Curriculum(
    pace="compute", stages=(Stage(0.2, 96, batch_factor=4.0), Stage(0.4, 160), Stage(0.4, 224, batch_factor=0.25))
)


def clock_of(config: TrainingConfig) -> Clock:
    return build_training_clock(config, image_size=(224, 224), patch_size=(16, 16), images_per_epoch=9000)


@pytest.mark.parametrize(
    ("rule", "expected"), [("linear", [8.0, 2.0, 0.5]), ("sqrt", [4.0, 2.0, 1.0]), ("none", [2.0, 2.0, 2.0])]
)
def test_the_learning_rate_follows_the_batch_factor_by_a_rule(rule: str, expected: list[float]) -> None:
    optim = OptimConfig(base_lr=1.0, min_lr=1.0, warmup=0.0, batch_factor_lr=rule)  # type: ignore[arg-type]
    clock = clock_of(TrainingConfig(curriculum=PLUS_PLUS, optim=optim, batch_size=512, epochs=10))
    batches = [span.batch_images for span in clock.spans]
    assert batches == [2048, 512, 128]
    assert [step_learning_rate(clock, 0.5, batch, optim) for batch in batches] == expected


def test_warmup_in_epochs_counts_passes_over_the_data() -> None:
    optim = OptimConfig(warmup=None, warmup_epochs=20)
    # 300 * (224/96)^2 = 1633.3 epochs would be the length of a run at 96 px: of its own stage's, that is, as published
    clock = clock_of(TrainingConfig(curriculum=PLUS_PLUS, optim=optim, batch_size=30, epochs=300))
    assert warmup_share(clock, optim) == pytest.approx(20 / 1633.33, rel=1e-4)
    assert step_learning_rate(clock, 10 / 1633.33, 30, optim) == pytest.approx(1.5e-4 * 30 / 256 / 2, rel=1e-4)
    plain = clock_of(TrainingConfig(optim=optim, batch_size=30, epochs=300))
    assert warmup_share(plain, optim) == pytest.approx(20 / 300)


def test_warmup_beyond_the_run_is_refused() -> None:
    optim = OptimConfig(warmup=None, warmup_epochs=3)
    with pytest.raises(ConfigError, match="warmup_epochs must be below the run's 3 real epochs, got 3"):
        clock_of(TrainingConfig(optim=optim, batch_size=30, epochs=3))


@pytest.mark.parametrize(("warmup", "epochs"), [(0.05, 20), (None, None)])
def test_warmup_is_either_a_share_or_epochs(warmup: float | None, epochs: float | None) -> None:
    with pytest.raises(ConfigError, match=f"got warmup {warmup} and warmup_epochs {epochs}; set one of them to null"):
        OptimConfig(warmup=warmup, warmup_epochs=epochs)


def test_learning_rate_rises_to_the_peak_and_falls_by_half_a_cosine() -> None:
    rates = [learning_rate(p, peak=2.0, warmup=0.2, floor=0.0) for p in (0, 0.1, 0.2, 0.6, 1)]
    assert rates == pytest.approx([0, 1, 2, 1, 0])


def test_learning_rate_ends_at_its_floor() -> None:
    assert learning_rate(1, peak=2.0, warmup=0.2, floor=0.5) == pytest.approx(0.5)


def test_learning_rate_without_warmup_begins_at_the_peak() -> None:
    assert learning_rate(0, peak=2.0, warmup=0.0) == 2.0
