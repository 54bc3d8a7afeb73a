"""What a search will cost, before anything runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.clock import Clock, View
from mae_curriculum.curriculum.config import REFERENCE_SIZE
from mae_curriculum.search.config import C, SearchOptions
from mae_curriculum.search.methods import Candidate, build_method, follow
from mae_curriculum.terminal import side
from mae_curriculum.training.choices import format_choices
from mae_curriculum.training.config import without_curriculum


@dataclass(frozen=True)
class Cost:
    """What training a candidate costs."""

    images: int
    flops: int
    """Training FLOPs."""


CostOf = Callable[[Candidate], Cost]
"""Returns the cost of what a candidate trains itself; raises ConfigError if it cannot be trained."""


@dataclass(frozen=True)
class Subject(Generic[C]):
    """What a search trains."""

    training: C
    """Settings of a full training run, complete."""
    cost: CostOf
    chosen: dict[str, Any]
    """Settings that were left open, and what was chosen for the images."""


def trained_cost(candidate: Candidate, clock: Clock, flops_of: Callable[[View], int]) -> Cost:
    """Return the cost of what a candidate trains itself.

    clock     of its run.
    flops_of  returns the training FLOPs of an image.
    """
    spans = clock.spans[candidate.inherited :]
    return Cost(sum(span.images for span in spans), sum(span.images * flops_of(span.view) for span in spans))


def dearest_course(config: SearchOptions, subject: Subject[Any]) -> list[Candidate]:
    """Return the candidates of the course that costs most, whatever the scores will be.

    Of halving, the curricula that cost most stay. Of greedy, all sizes fail in the first stage but the largest below
    full size, which then succeeds in every stage. Sequential has one course.
    """
    largest = max((size for size in config.sizes if size < REFERENCE_SIZE), default=REFERENCE_SIZE)

    def score(candidate: Candidate) -> float:
        if config.method == "halving":
            return subject.cost(candidate).flops
        return min(largest, *(stage.size for stage in candidate.curriculum.stages))

    return follow(build_method(config, subject.training), lambda group: [*map(score, group)])[0]


def full_size_cost(subject: Subject[Any]) -> Cost:
    """Return what a full training run at full size costs."""
    training = subject.training
    assert training.epochs is not None, "choices come first"
    return subject.cost(Candidate(0, str(REFERENCE_SIZE), without_curriculum(training).curriculum, training.epochs))


def refuse_fractions(sizes: Sequence[int], image: tuple[int, int], patch: tuple[int, int]) -> None:
    """Raise ConfigError for sizes that are not whole patches: rounded, two of them could be the same.

    image, patch  height and width in pixels.
    """
    whole = [
        size
        for size in range(1, REFERENCE_SIZE + 1)
        if not any(size * length % (REFERENCE_SIZE * step) for length, step in zip(image, patch, strict=True))
    ]
    broken = sorted({*sizes} - {*whole})
    if broken:
        raise ConfigError(
            f"sizes: {', '.join(map(str, broken))} of {REFERENCE_SIZE} are no whole patches of {side(patch)} px in "
            f"images of {side(image)} px; choose from {', '.join(map(str, whole))}"
        )


def compute_budget(config: SearchOptions, subject: Subject[Any]) -> dict[str, Any]:
    """Return what the dearest course of a search costs; raises ConfigError for candidates that cannot be trained."""
    course = dearest_course(config, subject)
    costs = [subject.cost(candidate) for candidate in course]
    seeds, flops = config.seeds, config.seeds * sum(each.flops for each in costs)
    return {
        "chosen": subject.chosen,
        "candidates": len(course),
        "seeds": seeds,
        "runs": seeds * len(course),
        "images": seeds * sum(each.images for each in costs),
        "flops": flops,
        "full_runs": flops / full_size_cost(subject).flops,
    }


def format_budget(budget: dict[str, Any]) -> str:
    """Format the budget of a search, for people."""
    total = (
        "at most {candidates} candidates x {seeds} seeds = {runs} training runs: {images:,} images, {flops:.3g} "
        "training FLOPs, equal to {full_runs:.1f} full training runs at full size"
    )
    return "\n".join([*format_choices(budget["chosen"]), total.format(**budget)])
