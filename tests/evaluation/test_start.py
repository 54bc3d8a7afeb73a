from pathlib import Path

import pytest

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import Clock
from mae_curriculum.curriculum.config import Curriculum, Stage
from mae_curriculum.evaluation.start import refuse_decline
from mae_curriculum.tracking.journal import Journal

CLOCK = Clock(
    Curriculum(pace="compute", stages=(Stage(0.5, 112), Stage(0.5, 224))),
    image_size=(16, 16),
    patch_size=(4, 4),
    images_per_epoch=8,
    epochs=4,
    batch_images=4,
)
"""16 steps at 8 px, the first half of the progress, then 4 at 16 px."""


def evaluated(path: Path, *steps: int) -> Journal:
    """Return the journal of a run whose accuracy fell after the first step."""
    journal = Journal(path)
    journal.write("evaluation", steps_done=0, knn=0.9)
    for step in steps:
        journal.write("evaluation", steps_done=step, knn=0.8)
    return journal


def test_a_decline_during_the_warmup_is_none(tmp_path: Path) -> None:
    refuse_decline(evaluated(tmp_path / "journal.jsonl", 7, 8, 9), CLOCK, 0.3)  # 0.3 of the progress are 9.6 steps


def test_three_evaluations_below_the_start_end_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stays below its start, 0.9000: 0.8000, 0.8000, 0.8000"):
        refuse_decline(evaluated(tmp_path / "journal.jsonl", 9, 10, 11, 12), CLOCK, 0.3)
