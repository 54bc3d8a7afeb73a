"""How a global batch is split into micro-batches. Pure Python."""

from mae_curriculum.curriculum.clock import Span


def micro_batches(span: Span, rank: int, world_size: int, micro_batch: int | None, pair_size: int = 1) -> list[range]:
    """Split a rank's part of a global batch into micro-batches that fit its device.

    micro_batch  most images at once at the full size, or None for no limit; more fit where images are smaller.
    pair_size    neighbors that stay together, 1 or 2; the batch is a multiple of it.
    Returns      places in the global batch, in order; the parts differ by one pair at most.
    """
    local = split(span.batch_images // pair_size, world_size, rank)
    limit = len(local)
    if micro_batch is not None:
        limit = max(1, int(micro_batch / span.area_share) // pair_size)
    count = -(-len(local) // limit)
    parts = [split(len(local), count, index) for index in range(count)]
    return [range((local.start + part.start) * pair_size, (local.start + part.stop) * pair_size) for part in parts]


def split(count: int, parts: int, part: int) -> range:
    """Return part number `part` of `count` items, split in order into parts as equal as possible."""
    return range(count * part // parts, count * (part + 1) // parts)
