"""The models at work: settings of a request, batches, figures, and new versions of a model."""

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from typing import Any

from dragoman.errors import DragomanError
from dragoman.predictor import PRODUCED_NAN, Prediction
from dragoman.reading.pairs import InvalidRow
from dragoman.serving.batching import Batcher
from dragoman.serving.messages import (
    Limits,
    PredictRequest,
    RequestError,
    describe_outputs,
    make_rows,
)
from dragoman.serving.prometheus import Metrics
from dragoman.serving.served_models import ServedModels

_RELOAD_EVERY_S = 1.0


class Service:
    """The models at work.

    Args:
        workers: Batches that CTranslate2 computes at the same time; PyTorch computes one.
    """

    def __init__(self, models: ServedModels, limits: Limits, *, workers: int) -> None:
        self.models, self.metrics = models, Metrics()
        rows, size = limits.queue_rows, limits.queue_bytes
        self._fast = Batcher("ctranslate2", workers, rows, size, self.metrics)
        self._slow = Batcher("torch", 1, max(1, rows // 8), max(1, size // 8), self.metrics)

    def check_queue(self) -> None:
        """Raise the error that a request of one row would get.

        Raises:
            RequestError: The queue is full.
        """
        self._fast.check(1, 1)

    async def predict(self, asked: PredictRequest) -> dict[str, Any]:
        """Return the response to a request: see `PredictResponse`.

        Raises:
            RequestError: It is wrong, the queue is full, or a row is too long for the model.
        """
        model = self.models.find(asked.model)
        rows = make_rows(asked, model.predictor)
        try:
            adapted = await model.adapt(
                asked.decoding, nbest=asked.nbest, alignment=asked.alignment
            )
            batcher = self._slow if adapted.needs_torch else self._fast
            answers = await batcher.search(adapted.predictor, rows)
        except DragomanError as error:
            raise RequestError.from_settings(error) from error
        for i, (row, _) in enumerate(answers):
            if isinstance(row, InvalidRow):
                if row.reason == PRODUCED_NAN:
                    raise RequestError(500, "internal", "model", row.reason)
                where = "source" if isinstance(asked.source, str) else f"source[{i}]"
                raise RequestError.invalid(where, row.reason)
        self._count(model.name, [best_first[0] for _, best_first in answers])

        def describe() -> list[dict[str, Any]]:
            return [describe_outputs(best_first, asked) for _, best_first in answers]

        # Of records in a thread: it searches each value in the source.
        is_plain = adapted.predictor.record_format is None
        predictions = describe() if is_plain else await asyncio.to_thread(describe)
        return {"model": model.name, "digest": model.digest, "predictions": predictions}

    def _count(self, model: str, outputs: Sequence[Prediction]) -> None:
        find, tokens = self.metrics.find, self.metrics.tokens
        find(tokens, model, "source").inc(sum(len(one.source_tokens) for one in outputs))
        find(tokens, model, "output").inc(sum(len(one.tokens) for one in outputs))
        confidence = find(self.metrics.confidence, model)
        for one in outputs:
            confidence.observe(one.confidence)

    async def watch(self) -> None:
        """Load models again whose folders are replaced, and all on SIGHUP; runs until cancelled."""
        hangup = asyncio.Event()
        if hasattr(signal, "SIGHUP"):  # not on Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hangup.wait(), _RELOAD_EVERY_S)
            is_asked = hangup.is_set()
            hangup.clear()
            for name, is_loaded in (await self.models.reload(all_of_them=is_asked)).items():
                result = "loaded" if is_loaded else "failed"
                self.metrics.reloads.labels(name, result).inc()
