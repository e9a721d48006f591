"""Which sequences an engine computes together."""

from collections.abc import Iterator, Sequence


def make_batches(costs: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Yield the rows, cheap ones first, in batches of at most `limit`, padded to the dearest.

    A row that is dearer than `limit` is a batch of its own.
    """
    batch: list[int] = []
    for row in sorted(range(len(costs)), key=costs.__getitem__):
        if batch and (len(batch) + 1) * costs[row] > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
