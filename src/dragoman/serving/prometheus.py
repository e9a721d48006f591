"""The figures of the server, for Prometheus."""

from functools import lru_cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
        self.queue_rows = Gauge("queue_rows", "Rows that wait", pool, **own)
        self.queue_bytes = Gauge("queue_bytes", "Their bytes", pool, **own)
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
