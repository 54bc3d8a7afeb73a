"""What a search will cost, and whether its candidates can be trained, before anything runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mae_curriculum.commands.plan import complete
from mae_curriculum.commands.shapes import find_shape
from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.config import REFERENCE_SIZE
from mae_curriculum.data.contents import Contents
from mae_curriculum.model.shape import EncoderShape
from mae_curriculum.pretraining_config import PretrainConfig, build_clock, format_choices, list_choices, with_choices
from mae_curriculum.search.config import SearchConfig
from mae_curriculum.search.methods import Candidate, build_method, follow
from mae_curriculum.terminal import side
from mae_curriculum.training.config import without_curriculum


@dataclass(frozen=True)
class Cost:
    """What a pretraining costs."""

    images: int
    flops: int
    """Training FLOPs."""


CostOf = Callable[[Candidate], Cost]
"""Returns the cost of what a candidate trains itself; raises ConfigError if it cannot be trained."""


def prepare(config: SearchConfig, contents: Contents, *, processes: int = 1) -> tuple[PretrainConfig, CostOf]:
    """Return the settings of a whole pretraining, for these images, and what computes the cost of its candidates.

    Raises  ConfigError for settings that do not fit together, sizes of broken patches, weights that do not fit.
    """
    chosen = with_choices(config.pretrain, contents)
    pretrain = replace(chosen, epochs=config.epochs or chosen.epochs)
    first, *_ = next(build_method(config, pretrain))  # no later one that starts fresh has fewer epochs
    whole = complete(replace(pretrain, epochs=first.epochs), contents)
    shape = find_shape(whole.model)
    if config.method != "halving":
        refuse_fractions(config.sizes, shape.encoder)

    def cost(candidate: Candidate) -> Cost:
        run = replace(whole, curriculum=candidate.curriculum, epochs=candidate.epochs)
        clock = build_clock(run, shape, images_per_epoch=contents.train.images, processes=processes)
        trained = clock.spans[candidate.inherited :]
        images = sum(span.images for span in trained)
        return Cost(images, sum(span.images * shape.training_flops(span.view) for span in trained))

    return pretrain, cost


def dearest_course(config: SearchConfig, pretrain: PretrainConfig, cost: CostOf) -> list[Candidate]:
    """Return the candidates of the course that costs most, whatever the scores will be.

    Of halving, the curricula that cost most stay. Of greedy, all sizes fail in the first stage but the largest below
    full size, which then succeeds in every stage. Sequential has one course.
    """
    largest = max((size for size in config.sizes if size < REFERENCE_SIZE), default=REFERENCE_SIZE)

    def score(candidate: Candidate) -> float:
        if config.method == "halving":
            return cost(candidate).flops
        return min(largest, *(stage.size for stage in candidate.curriculum.stages))

    return follow(build_method(config, pretrain), lambda group: [*map(score, group)])[0]


def full_size_cost(pretrain: PretrainConfig, cost: CostOf) -> Cost:
    """Return what a whole pretraining at full size costs."""
    assert pretrain.epochs is not None, "choices come first"
    return cost(Candidate(0, str(REFERENCE_SIZE), without_curriculum(pretrain).curriculum, pretrain.epochs))


def refuse_fractions(sizes: Sequence[int], encoder: EncoderShape) -> None:
    """Raise ConfigError for sizes that are not whole patches: rounded, two of them could be the same."""
    image, patch = encoder.image_size, encoder.patch_size
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


def compute_budget(config: SearchConfig, pretrain: PretrainConfig, cost: CostOf) -> dict[str, Any]:
    """Return what the dearest course of a search costs; raises ConfigError for candidates that cannot be trained."""
    course = dearest_course(config, pretrain, cost)
    costs = [cost(candidate) for candidate in course]
    seeds, flops = len(config.seeds), len(config.seeds) * sum(each.flops for each in costs)
    return {
        "chosen": list_choices(replace(config.pretrain, epochs=config.epochs or config.pretrain.epochs), pretrain),
        "candidates": len(course),
        "seeds": seeds,
        "runs": seeds * len(course),
        "images": seeds * sum(each.images for each in costs),
        "flops": flops,
        "full_runs": flops / full_size_cost(pretrain, cost).flops,
    }


def format_budget(budget: dict[str, Any]) -> str:
    """Format the budget of a search, for people."""
    total = (
        "at most {candidates} candidates x {seeds} seeds = {runs} pretrainings: {images:,} images, {flops:.3g} "
        "training FLOPs, as many as {full_runs:.1f} whole pretrainings at full size"
    )
    return "\n".join([*format_choices(budget["chosen"]), total.format(**budget)])
