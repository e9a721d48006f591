"""The queue before the workers: order, bounds, and requests that are given up."""

import asyncio
import time

import pytest

from conftest import make_words
from dragoman.reading.pairs import Source
from dragoman.serving.batching import Batcher, Metrics
from dragoman.serving.messages import RequestError
from dragoman.settings import DecodingSettings, Settings


def rows_of(words):
    return [Source(word, (), 0) for word in words]


def texts_of(answers):
    return [best_first[0].text for _, best_first in answers]


def make_batcher(workers=1, most_rows=4096, most_bytes=1 << 20):
    return Batcher("test", workers, most_rows, most_bytes, Metrics())


def by_options(model, **decoding):
    return model.with_decoding(Settings(decoding=DecodingSettings(**decoding)))


def batch_sizes(batcher):
    [metric] = batcher._metrics.batch_rows.collect()
    return {one.name.rpartition("_")[2]: one.value for one in metric.samples}


def test_requests_with_equal_options_share_a_batch(trained):
    words = make_words(40)

    async def run():
        batcher = make_batcher()
        answers = await asyncio.gather(
            *(batcher.search(trained[1], rows_of([word])) for word in words)
        )
        assert [texts_of(one) for one in answers] == [[word.upper()] for word in words]
        return batch_sizes(batcher)

    sizes = asyncio.run(run())
    assert (sizes["count"], sizes["sum"]) == (1, 40)


def test_a_batch_is_bounded_by_tokens_and_rows_keep_their_order(trained):
    model = by_options(trained[1], batch_tokens=64)
    words = make_words(100)

    async def run():
        batcher = make_batcher(workers=2)
        answers = await batcher.search(model, rows_of(words))
        assert texts_of(answers) == trained[1].predict(words)
        return batch_sizes(batcher)

    sizes = asyncio.run(run())
    # A word has up to 6 letters and an end.
    assert sizes["sum"] == 100
    assert sizes["count"] >= sum(len(word) + 1 for word in words) / (64 + 7)


def test_neither_other_options_nor_a_long_request_keep_one_waiting(trained):
    common = by_options(trained[1], batch_tokens=64)
    rare = by_options(trained[1], batch_tokens=64, beam_size=2)
    order = []

    async def ask(batcher, name, model, words):
        await batcher.search(model, rows_of(words))
        order.append(name)

    async def run():
        batcher = make_batcher()
        long = asyncio.create_task(ask(batcher, "long", common, make_words(300)))
        await asyncio.sleep(0)
        others = [
            asyncio.create_task(ask(batcher, "rare", rare, ["abc"])),
            *(asyncio.create_task(ask(batcher, "common", common, ["abc"])) for _ in range(20)),
        ]
        await asyncio.gather(long, *others)

    asyncio.run(run())
    assert order[-1] == "long"
    assert order.index("rare") <= 20


def test_a_full_queue_refuses_and_takes_again_when_it_is_empty(trained):
    async def run():
        batcher = make_batcher(most_rows=4)
        first = asyncio.create_task(batcher.search(trained[1], rows_of(["abc"] * 3)))
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="too many rows are waiting") as refused:
            await batcher.search(trained[1], rows_of(["abc"] * 2))
        assert (refused.value.status, refused.value.kind) == (503, "queue_full")
        with pytest.raises(RequestError, match="send at most 4 texts") as refused:
            await batcher.search(trained[1], rows_of(["abc"] * 5))
        assert refused.value.status == 422
        assert len(await first) == 3
        assert len(await batcher.search(trained[1], rows_of(["abc"] * 4))) == 4
        small = make_batcher(most_bytes=10)
        with pytest.raises(RequestError, match="10 bytes at once"):
            await small.search(trained[1], rows_of(["abcdef", "abcdef"]))

    asyncio.run(run())


def test_a_request_that_is_given_up_leaves_the_queue(trained):
    model = by_options(trained[1], batch_tokens=64)

    async def run():
        batcher = make_batcher(most_rows=5000)
        long = asyncio.create_task(batcher.search(model, rows_of(["abc"] * 5000)))
        await asyncio.sleep(0.01)
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        start = time.monotonic()
        assert len(await batcher.search(model, rows_of(["abc"] * 5))) == 5
        assert (batcher._rows, batcher._bytes, batcher._waiting) == (0, 0, [])
        return time.monotonic() - start

    assert asyncio.run(run()) < 5.0
