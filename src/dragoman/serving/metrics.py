"""The figures of the server, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TENTHS = tuple(i / 10 for i in range(1, 10))


class Metrics:
    """All figures, each with the labels that it is counted by."""

    def __init__(self) -> None:
        all_ = self.registry = CollectorRegistry()
        name = "dragoman_{}".format
        pool, model = ["pool"], ["model"]
        self.queue_rows = Gauge(name("queue_rows"), "Rows that wait", pool, registry=all_)
        self.queue_bytes = Gauge(name("queue_bytes"), "Their bytes", pool, registry=all_)
        self.batch_rows = Histogram(
            name("batch_rows"), "Rows of a batch", pool, registry=all_, buckets=_ROWS
        )
        self.seconds = Histogram(
            name("request_seconds"),
            "From a request to its response",
            ["path", "status"],
            registry=all_,
            buckets=_SECONDS,
        )
        self.errors = Counter(name("errors"), "Responses that are errors", ["kind"], registry=all_)
        self.tokens = Counter(
            name("tokens"), "Tokens of sources and outputs", ["model", "side"], registry=all_
        )
        self.confidence = Histogram(
            name("confidence"), "Of the best outputs", model, registry=all_, buckets=_TENTHS
        )
        self.reloads = Counter(
            name("reloads"), "Models loaded again", ["model", "result"], registry=all_
        )
