"""Evaluations by block: the last block of a masked autoencoder is rarely its best."""

from mae_curriculum.config import ConfigError
from mae_curriculum.evaluation.config import Block


def find_blocks(block: Block, depth: int) -> tuple[int, ...]:
    """Return the numbers of the blocks to evaluate, counted from 0; raises ConfigError if there is no such block.

    depth  number of blocks of the encoder.
    """
    if block == "all":
        return tuple(range(depth))
    if not -depth <= block < depth:
        raise ConfigError(f"block must be in {-depth}..{depth - 1} for this encoder, got {block}")
    return (block % depth,)


def format_best(accuracies: list[float]) -> str:
    """Return which block is best and how it compares with the last: one sentence."""
    best, last = max(accuracies), accuracies[-1]
    number = accuracies.index(best)
    return (
        f"best is block {number} of 0..{len(accuracies) - 1} with {best:.4f}, chosen on the same images; "
        f"the last block has {last:.4f}"
    )
