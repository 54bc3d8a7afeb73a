"""The methods of a search, without the runs: generators that yield candidates, are sent their scores, and return what
they found.

So a method is a pure function of the scores, and a search that starts again with the scores of its finished runs takes
the same course.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from pathlib import Path

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.config import REFERENCE_SIZE, Curriculum, Stage
from mae_curriculum.search.choice import better_half, is_accepted, rank
from mae_curriculum.search.config import SearchOptions
from mae_curriculum.training.config import TrainingConfig


@dataclass(frozen=True)
class Candidate:
    """A training run that is to be scored."""

    round: int
    """The stage that is searched, or the round of halving; 0 for the baseline of greedy."""
    label: str
    """The size that is tried in this stage, or the name of the curriculum."""
    curriculum: Curriculum
    epochs: int
    """Equivalent epochs in its settings; one that inherits some, or ends early, trains for fewer: `trained_epochs`."""
    previous: "Candidate | None" = None
    """Whose kept checkpoint it is forked from; None for a fresh start."""
    kept_epochs: int | None = None
    """Equivalent epochs after which a checkpoint is kept for the next stage; None for none."""

    @property
    def name(self) -> str:
        """Name of its run folders."""
        return f"{self.round}-{self.label}"

    @property
    def inherited(self) -> int:
        """Number of stages that it has from `previous`."""
        return self.round - 1 if self.previous else 0

    @property
    def trained_stages(self) -> tuple[Stage, ...]:
        """The stages that it trains itself."""
        return self.curriculum.stages[self.inherited :]

    @property
    def trained_epochs(self) -> int:
        """Equivalent epochs that it trains itself; whole ones but for the rounding of shares."""
        return round(self.epochs * sum(stage.share * stage.images_factor for stage in self.trained_stages))


@dataclass(frozen=True)
class Found:
    """What a search found."""

    curriculum: Curriculum
    path: tuple[tuple[int, str], ...]
    """Round and label of each choice, whether it was a candidate or, as full size in greedy, needed no run."""


Method = Generator[list[Candidate], list[float], Found]
"""Yields the candidates of a round, or a part of one, and is sent their scores."""


def build_method(config: SearchOptions, training: TrainingConfig) -> Method:
    """Return the method of a search; raises ConfigError for too few epochs.

    training  settings of a full training run; the candidates have its augmentation and resizing.
    """
    base, epochs = training.curriculum, training.epochs
    assert epochs is not None, "choices come first"
    if config.method == "greedy":
        return greedy(config.sizes, base, stages=config.stages, tolerance=config.tolerance, epochs=epochs)
    if config.method == "sequential":
        if epochs % config.stages:
            raise ConfigError(
                f"epochs: {epochs} do not divide into {config.stages} stages of whole epochs; change either"
            )
        return sequential(config.sizes, base, stages=config.stages, epochs=epochs, finish_epochs=config.finish_epochs)
    count = len(config.curricula)
    shortest = 2 ** (count_halvings(count) - 1)
    if epochs < shortest:
        raise ConfigError(f"epochs: the first round of {count} curricula has 1/{shortest} of them; got only {epochs}")
    presets = {Path(name).stem: Curriculum.preset(name) for name in config.curricula}
    curricula = {name: replace(base, pace=preset.pace, stages=preset.stages) for name, preset in presets.items()}
    return halving(curricula, epochs=epochs)


def follow(method: Method, score_all: Callable[[Sequence[Candidate]], list[float]]) -> tuple[list[Candidate], Found]:
    """Score the candidates of a method, group by group; return them all, and what it found."""
    candidates: list[Candidate] = []
    try:
        group = next(method)
        while True:
            candidates += group
            group = method.send(score_all(group))
    except StopIteration as end:
        return candidates, end.value


def greedy(sizes: Sequence[int], base: Curriculum, *, stages: int, tolerance: float, epochs: int) -> Method:
    """Search as EfficientTrain (arXiv:2211.09703): from the first stage to the last but one, take the smallest size
    with which the final score is at most `tolerance` below that of the baseline.

    Each candidate is a full training run, paced by images, at full size after the stage that is searched. Sizes never
    fall from one stage to the next, so a size that failed is not tried again; full size needs no run. The last stage
    has full size.

    base  whose augmentation and resizing the candidates have.
    """
    base = replace(base, pace="images")

    def at_sizes(chosen: Sequence[int]) -> Curriculum:
        filled = [*chosen, *[REFERENCE_SIZE] * (stages - len(chosen))]
        return with_sizes(base, [(size, len([*same])) for size, same in groupby(filled)])

    baseline = Candidate(0, str(REFERENCE_SIZE), at_sizes([]), epochs)
    (reference,) = yield [baseline]
    rank([reference])  # which refuses NaN
    chosen: list[int] = []
    untried = [size for size in sorted(sizes) if size < REFERENCE_SIZE]
    while untried and len(chosen) < stages - 1:
        attempt = [*chosen, untried[0]]
        (score,) = yield [Candidate(len(attempt), str(untried[0]), at_sizes(attempt), epochs)]
        if is_accepted(score, baseline=reference, tolerance=tolerance):
            chosen = attempt
        else:
            untried.pop(0)
    found = [REFERENCE_SIZE, *chosen, *[REFERENCE_SIZE] * (stages - len(chosen))]
    return Found(at_sizes(chosen), tuple((stage, str(size)) for stage, size in enumerate(found)))


def sequential(sizes: Sequence[int], base: Curriculum, *, stages: int, epochs: int, finish_epochs: int) -> Method:
    """Search as EfficientTrain++ (arXiv:2405.08768): in each stage, take the size that ends best at equal compute.

    The paper's details are not published; these are ours. A candidate is a fork of the best run of the stage before:
    its weights, optimizer and clock at the end of that stage, before its finish. It trains for a stage's share of
    `epochs`, paced by compute, then for `finish_epochs` at full size, and is scored. All candidates have the learning
    rate of the whole search, one warm-up and one cosine, of which each finish, early or late, goes through all that is
    left. So the candidates of the last stage are what plain runs with their curricula would be, and the best of
    them is what is found. Sizes may fall from one stage to the next.

    base  whose augmentation and resizing the candidates have.
    """
    base = replace(base, pace="compute")
    stage_epochs, total_epochs = epochs // stages, epochs + finish_epochs

    def after(chosen: Sequence[int]) -> Curriculum:
        left = total_epochs - len(chosen) * stage_epochs
        whole = with_sizes(base, [*((size, stage_epochs) for size in chosen), (REFERENCE_SIZE, left)])
        *done, finish = whole.stages
        return replace(whole, stages=(*done, replace(finish, images_factor=finish_epochs / left)))

    best: list[Candidate] = []
    for stage in range(1, stages + 1):
        chosen, previous = [int(each.label) for each in best], best[-1] if best else None
        candidates = [
            Candidate(
                stage, str(size), after([*chosen, size]), total_epochs, previous, kept_epochs=stage * stage_epochs
            )
            for size in sorted(sizes)
        ]
        scores = yield candidates
        best.append(candidates[rank(scores)[0]])
    return Found(best[-1].curriculum, tuple((each.round, each.label) for each in best))


def halving(curricula: Mapping[str, Curriculum], *, epochs: int) -> Method:
    """Halve the curricula until one is left; the last round has all the epochs, each one before it half of the next.

    Each round trains from the start: a learning rate that falls to 0 cannot be continued.
    """
    rounds = count_halvings(len(curricula))
    names, path, number = list(curricula), [], 0
    while len(names) > 1:
        number += 1
        round_epochs = epochs // 2 ** (rounds - number)
        scores = yield [Candidate(number, name, curricula[name], round_epochs) for name in names]
        path.append(number)
        names = [names[place] for place in better_half(scores)]
    return Found(curricula[names[0]], tuple((each, names[0]) for each in path))


def count_halvings(count: int) -> int:
    """Return how many rounds, each of which keeps half, rounded up, lead from a number of candidates to one."""
    return (count - 1).bit_length()


def with_sizes(base: Curriculum, parts: Sequence[tuple[int, int]]) -> Curriculum:
    """Return a curriculum with stages of the given sizes and weights, in order.

    Shares have six digits, and no stage ends before its epochs are complete, when its checkpoint is kept.
    """
    sizes, weights = zip(*parts, strict=True)
    millionths = [-(-(10**6) * end // sum(weights)) for end in accumulate(weights)]
    shares = [(end - start) / 10**6 for start, end in pairwise([0, *millionths])]
    return replace(base, stages=tuple(map(Stage, shares, sizes)))
