from collections.abc import Callable, Sequence

from mae_curriculum.search.methods import Candidate


def each(score: Callable[[Candidate], float]) -> Callable[[Sequence[Candidate]], list[float]]:
    """Return what scores candidates one by one."""
    return lambda group: [*map(score, group)]
