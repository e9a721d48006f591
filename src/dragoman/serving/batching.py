"""Dynamic batching: rows of many requests wait in one queue and are searched together; figures.

A free worker takes the oldest request, and with it the others that have the same options, up to
about one batch of the engine. A long request gives a part at a time and then goes to the end of the
queue. So no options and no long request keep the others waiting for more than their turn.
"""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from dragoman.predictor import Prediction, Predictor
from dragoman.reading.pairs import InvalidRow, Source
from dragoman.serving.messages import RequestError

Answer = tuple[Source | InvalidRow, list[Prediction]]

_WAIT_S = 0.002  # while other workers compute, for more rows
_SMALL_ROWS = 8  # not spread over several workers
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TENTHS = tuple(i / 10 for i in range(1, 10))


class Metrics:
    """All figures, each with the labels that it is counted by."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.find = lru_cache(maxsize=4096)(lambda figure, *labels: figure.labels(*labels))
        """A figure with labels; quicker than its own method."""
        own: dict[str, Any] = {"namespace": "dragoman", "registry": self.registry}
        pool, model = ["pool"], ["model"]
        queue = {**own, "multiprocess_mode": "livesum"}
        self.queue_rows = Gauge("queue_rows", "Rows that wait", pool, **queue)
        self.queue_bytes = Gauge("queue_bytes", "Their bytes", pool, **queue)
        self.batch_rows = Histogram("batch_rows", "Rows of a batch", pool, buckets=_ROWS, **own)
        self.seconds = Histogram(
            "request_seconds", "Until the response", ["path", "status"], buckets=_SECONDS, **own
        )
        self.errors = Counter("errors", "Responses that are errors", ["kind"], **own)
        self.tokens = Counter("tokens", "Of sources and outputs", ["model", "side"], **own)
        self.confidence = Histogram(
            "confidence", "Of the best outputs", model, buckets=_TENTHS, **own
        )
        self.reloads = Counter("reloads", "Models loaded again", ["model", "result"], **own)

    def describe(self) -> bytes:
        """Return the figures for Prometheus, of all workers if there are several."""
        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


@dataclass(eq=False, kw_only=True)
class _Request:
    """Rows of one request; those from `first` on are waiting."""

    predictor: Predictor
    rows: Sequence[Source]
    sizes: Sequence[int]  # bytes
    answered: "asyncio.Future[list[Answer]]"
    first: int = 0
    answers: dict[int, Answer] = field(default_factory=dict)


class Batcher:
    """A queue, and worker threads that search its rows.

    Args:
        name: For the metrics.
        workers: Batches that are searched at the same time.
        most_rows: Of the queue.
        most_bytes: Of the texts in the queue.
    """

    def __init__(
        self, name: str, workers: int, most_rows: int, most_bytes: int, metrics: Metrics
    ) -> None:
        self._name = name
        self._most_rows, self._most_bytes, self._metrics = most_rows, most_bytes, metrics
        self._workers = self._free = workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=f"search-{name}")
        self._waiting: list[_Request] = []
        self._rows = self._bytes = 0  # waiting
        self._timer: asyncio.TimerHandle | None = None
        self._add(0, 0)

    async def search(self, predictor: Predictor, rows: Sequence[Source]) -> list[Answer]:
        """Return each row with its outputs, as `Predictor.predict_window` does; see `check`."""
        sizes = [len(row.source.encode()) + len(row.features) + 1 for row in rows]
        self.check(len(rows), sum(sizes))
        answered = asyncio.get_running_loop().create_future()
        request = _Request(predictor=predictor, rows=rows, sizes=sizes, answered=answered)
        self._waiting.append(request)
        self._add(len(rows), sum(sizes))
        self._wake()
        try:
            return await request.answered
        finally:  # of a request that is given up, the waiting rows
            if request in self._waiting:
                self._waiting.remove(request)
                self._forget(request, range(request.first, len(rows)))

    def check(self, rows: int, size_bytes: int) -> None:
        """Raise the error of a request of this size, if it cannot be taken now, or ever.

        Raises: RequestError, when the queue is full, or there are more rows than it ever holds.
        """
        if rows > self._most_rows or size_bytes > self._most_bytes:
            message = (
                f"{rows:,} texts of {size_bytes:,} bytes; send at most {self._most_rows:,} texts "
                f"and {self._most_bytes:,} bytes at once"
            )
            raise RequestError.invalid("source", message)
        if self._rows + rows > self._most_rows or self._bytes + size_bytes > self._most_bytes:
            raise RequestError(503, "queue_full", "queue", "too many rows are waiting; try later")

    def _wake(self) -> None:
        """Start a batch, at once if no worker computes, else after waiting for more rows."""
        if self._free and self._timer is None:
            loop = asyncio.get_running_loop()
            # At once is after what this turn of the loop reads: requests that came together.
            delay = 0.0 if self._free == self._workers else _WAIT_S
            self._timer = loop.call_later(delay, self._start)

    def _start(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._free and self._waiting:
            batch = self._next_batch()
            self._free -= 1
            rows = [request.rows[i] for request, places in batch for i in places]
            self._metrics.batch_rows.labels(self._name).observe(len(rows))
            predictor = batch[0][0].predictor
            running = loop.run_in_executor(self._threads, _search, predictor, rows)
            running.add_done_callback(partial(self._finish, batch))

    def _next_batch(self) -> list[tuple[_Request, range]]:
        """Take the oldest request's rows, and others with the same options, from the queue."""
        predictor = self._waiting[0].predictor
        same = [one for one in self._waiting if one.predictor is predictor]
        decoding = predictor.settings.decoding
        # No token has less than a byte. At least one row.
        budget = max(1, decoding.batch_tokens // decoding.num_candidates)
        share = -(-sum(len(one.rows) - one.first for one in same) // self._free)
        share = max(_SMALL_ROWS, share)
        batch = []
        for request in same:
            first = request.first
            while request.first < len(request.rows) and share and budget > 0:
                budget -= request.sizes[request.first]
                share -= 1
                request.first += 1
            if request.first > first:
                batch.append((request, range(first, request.first)))
                self._forget(request, batch[-1][1])
        taken = [request for request, _ in batch]
        rest = [one for one in taken if one.first < len(one.rows)]
        self._waiting = [one for one in self._waiting if one not in taken] + rest
        return batch

    def _finish(
        self, batch: list[tuple[_Request, range]], running: "asyncio.Future[list[Answer]]"
    ) -> None:
        """Give the answers of a batch to its requests, and start the next."""
        self._free += 1
        error = running.exception()
        answers = iter(() if error else running.result())
        for request, places in batch:
            if request.answered.done():  # given up, or failed in an earlier batch
                list(islice(answers, len(places)))
            elif error is not None:
                request.answered.set_exception(error)
            else:
                request.answers.update(zip(places, answers, strict=False))
                if len(request.answers) == len(request.rows):
                    ordered = [request.answers[i] for i in range(len(request.rows))]
                    request.answered.set_result(ordered)
        self._start()

    def _forget(self, request: _Request, places: range) -> None:
        """Count rows that wait no more."""
        self._add(-len(places), -sum(request.sizes[i] for i in places))

    def _add(self, rows: int, size_bytes: int) -> None:
        self._rows += rows
        self._bytes += size_bytes
        self._metrics.find(self._metrics.queue_rows, self._name).set(self._rows)
        self._metrics.find(self._metrics.queue_bytes, self._name).set(self._bytes)


def _search(predictor: Predictor, rows: Sequence[Source]) -> list[Answer]:
    """Return each row with its outputs; of records, the values are scored here, all at once."""
    answers = predictor.predict_window(rows)
    if predictor.record_format:  # when one asks for its values, those of all are scored
        _ = next((best_first[0].fields for _, best_first in answers if best_first), ())
    return answers
