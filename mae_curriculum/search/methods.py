"""The methods of a search, without the runs: generators that yield candidates, are sent their scores, and return what
they found.

So a method is a pure function of the scores, and a search that starts again with the scores of its finished runs takes
the same course.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from pathlib import Path

from mae_curriculum.config import ConfigError
from mae_curriculum.curriculum.schedule import REFERENCE_SIZE, Curriculum, Stage
from mae_curriculum.pretraining_config import PretrainConfig
from mae_curriculum.search.choice import better_half, is_accepted, rank
from mae_curriculum.search.config import SearchConfig


@dataclass(frozen=True)
class Candidate:
    """A pretraining that is to be scored."""

    round: int
    """The stage that is searched, or the round of halving; 0 for the baseline of greedy."""
    label: str
    """The size that is tried in this stage, or the name of the curriculum."""
    curriculum: Curriculum
    epochs: int
    """Equivalent epochs."""
    previous: "Candidate | None" = None
    """Whose kept checkpoint it continues from; None for a fresh start."""
    kept_epochs: int | None = None
    """Equivalent epochs after which a checkpoint is kept for the next stage; None for none."""

    @property
    def name(self) -> str:
        """Name of its run folders."""
        return f"{self.round}-{self.label}"


@dataclass(frozen=True)
class Found:
    """What a search found."""

    curriculum: Curriculum
    path: tuple[tuple[int, str], ...]
    """Round and label of each choice, whether it was a candidate or, as full size in greedy, needed no run."""


Method = Generator[list[Candidate], list[float], Found]
"""Yields the candidates of a round, or a part of one, and is sent their scores."""


def build_method(config: SearchConfig, pretrain: PretrainConfig) -> Method:
    """Return the method of a search; raises ConfigError for too few epochs.

    pretrain  settings of a whole pretraining; the candidates have its augmentation and resizing.
    """
    base, epochs = pretrain.curriculum, pretrain.epochs
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


def follow(method: Method, score: Callable[[Candidate], float]) -> tuple[list[Candidate], Found]:
    """Score the candidates of a method, one after another; return them all, and what it found."""
    candidates: list[Candidate] = []
    try:
        group = next(method)
        while True:
            candidates += group
            group = method.send([score(candidate) for candidate in group])
    except StopIteration as end:
        return candidates, end.value


def greedy(sizes: Sequence[int], base: Curriculum, *, stages: int, tolerance: float, epochs: int) -> Method:
    """Search as EfficientTrain (arXiv:2211.09703): from the first stage to the last but one, take the smallest size
    with which the final score is at most `tolerance` below that of the baseline.

    Each candidate is a whole pretraining, paced by images, at full size after the stage that is searched. Sizes never
    fall from one stage to the next, so a size that failed is not tried again; full size needs no run. The last stage
    has full size.

    base  whose augmentation and resizing the candidates have.
    """
    base = replace(base, pace="images")

    def at_sizes(chosen: Sequence[int]) -> Curriculum:
        filled = [*chosen, *[REFERENCE_SIZE] * (stages - len(chosen))]
        return with_sizes(base, [(size, 1) for size in filled])

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

    The paper's details are not published; these are ours. A candidate trains for a stage's share of `epochs`, paced by
    compute, then for `finish_epochs` at full size, and is scored. The next stage continues from the best candidate's
    weights, encoder and decoder, as they were before its finish; the optimizer starts anew. In each candidate, the
    learning rate warms up and falls along half a cosine to the end of its finish. Sizes may fall from one stage to the
    next. The curriculum that is found is what was scored last: all stages, and one finish.

    base  whose augmentation and resizing the candidates have.
    """
    base = replace(base, pace="compute")
    stage_epochs, finish = epochs // stages, (REFERENCE_SIZE, finish_epochs)
    best: Candidate | None = None
    found: list[int] = []
    for stage in range(1, stages + 1):
        candidates = [
            Candidate(
                stage,
                str(size),
                with_sizes(base, [(size, stage_epochs), finish]),
                stage_epochs + finish_epochs,
                previous=best,
                kept_epochs=stage_epochs,
            )
            for size in sorted(sizes)
        ]
        scores = yield candidates
        best = candidates[rank(scores)[0]]
        found.append(int(best.label))
    curriculum = with_sizes(base, [*((size, stage_epochs) for size in found), finish])
    return Found(curriculum, tuple((stage, str(size)) for stage, size in enumerate(found, start=1)))


def halving(curricula: Mapping[str, Curriculum], *, epochs: int) -> Method:
    """Halve the curricula until one is left; the last round has all the epochs, each one before it half of the next.

    Each round pretrains from the start: a learning rate that falls to 0 cannot be continued.
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
    """Return a curriculum with stages of the given sizes and weights, in order; neighbors of one size are one stage.

    Shares have six digits, and no stage ends before its epochs are complete, when its checkpoint is kept.
    """
    groups = [(size, sum(weight for _, weight in same)) for size, same in groupby(parts, key=itemgetter(0))]
    sizes, weights = zip(*groups, strict=True)
    millionths = [-(-(10**6) * end // sum(weights)) for end in accumulate(weights)]
    shares = [(end - start) / 10**6 for start, end in pairwise([0, *millionths])]
    return replace(base, stages=tuple(map(Stage, shares, sizes)))
