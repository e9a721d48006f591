"""The matrix products of the model, timed alone: the limit of what training can reach.

Each product of the model in its own shape, forward and the two of backward, without padding, as
often as it comes in the model, each with weights of its own. Beside them a large square product:
the rate of the machine.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from contenders import await_question
from torch import Tensor
from training_contender import Entry, Rates
from training_task import Lengths, Sizes, Task

_CACHED_TOKENS = 1000  # target tokens of a pass on a processor: as many as its caches like
_SQUARE = {"cpu": 2048, "cuda": 8192}
_SQUARE_PART = 0.2  # of a turn


def time_products(connection: Connection, entry: Entry, task: Task) -> None:
    """Say that it is ready, then answer seconds with `Rates`."""
    from training_ids import read_ids

    ids = read_ids(task.ids)
    dtype = torch.bfloat16 if entry.precision == "bf16-mixed" else torch.float32
    tokens = _CACHED_TOKENS if entry.device == "cpu" else task.tokens
    products = list_products(task.sizes, ids.vocab_size, ids.lengths, tokens)
    multiply = [make_products(shape, entry.device, dtype) for shape in products]
    flops = sum(3 * shape.flops for shape in products)
    size = _SQUARE[entry.device]
    square = make_products(Shape(batch=1, rows=size, inner=size, outer=size), entry.device, dtype)

    def run_all() -> None:
        for run in multiply:
            run()

    run_all()
    square()
    connection.send("loaded")
    while True:
        turn_s: float = await_question(connection)
        passes_s = _time(run_all, (1 - _SQUARE_PART) * turn_s, entry.device)
        square_s = _time(square, _SQUARE_PART * turn_s, entry.device)
        connection.send(
            Rates(
                rate=tokens / passes_s,
                gflops=flops / passes_s / 1e9,
                square_gflops=3 * 2 * size**3 / square_s / 1e9,
            )
        )


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A product of `batch` times (rows x inner) by (inner x outer)."""

    batch: int
    rows: int
    inner: int
    outer: int

    @property
    def flops(self) -> int:
        """Floating-point operations of one of the three that a product takes in training."""
        return 2 * self.batch * self.rows * self.inner * self.outer


def list_products(sizes: Sizes, vocab_size: int, lengths: Lengths, tokens: int) -> list[Shape]:
    """Return all products of a pass over so many target tokens and their sources.

    In the order of the model; every sequence has the mean length.
    """
    d, f, per_head = sizes.d_model, sizes.dim_feedforward, sizes.d_model // sizes.nhead
    targets, sources = tokens, round(tokens * lengths.source / lengths.target)
    target_length = max(1, round(lengths.target / lengths.num_pairs))
    source_length = max(1, round(lengths.source / lengths.num_pairs))
    heads = max(1, round(targets / target_length)) * sizes.nhead

    def linear(rows: int, inner: int, outer: int) -> Shape:
        return Shape(batch=1, rows=rows, inner=inner, outer=outer)

    def attention(queries: int, keys: int) -> list[Shape]:
        return [
            Shape(batch=heads, rows=queries, inner=per_head, outer=keys),
            Shape(batch=heads, rows=queries, inner=keys, outer=per_head),
        ]

    encoder = [
        linear(sources, d, 3 * d),
        *attention(source_length, source_length),
        linear(sources, d, d),
        linear(sources, d, f),
        linear(sources, f, d),
    ]
    decoder = [
        linear(targets, d, 3 * d),
        *attention(target_length, target_length),
        linear(targets, d, d),
        linear(targets, d, d),
        linear(sources, d, 2 * d),
        *attention(target_length, source_length),
        linear(targets, d, d),
        linear(targets, d, f),
        linear(targets, f, d),
    ]
    return (
        sizes.num_layers * encoder + sizes.num_layers * decoder + [linear(targets, d, vocab_size)]
    )


def make_products(shape: Shape, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """Return what computes a product and the gradients of both its factors, as autograd would."""

    def draw(rows: int, columns: int) -> Tensor:
        size = (rows, columns) if shape.batch == 1 else (shape.batch, rows, columns)
        return torch.randn(size, device=device).to(dtype)

    x, gradient = draw(shape.rows, shape.inner), draw(shape.rows, shape.outer)
    weight = draw(shape.outer, shape.inner)

    def run() -> None:
        torch.matmul(x, weight.mT)
        torch.matmul(gradient, weight)
        torch.matmul(gradient.mT, x)

    return run


def _time(run: Callable[[], None], seconds: float, device: str) -> float:
    """Return the seconds of a call, over as many as fit into `seconds`; the first is left out."""
    run()
    _synchronize(device)
    num_calls, started_at = 0, time.perf_counter()
    while not num_calls or time.perf_counter() - started_at < seconds:
        run()
        num_calls += 1
        _synchronize(device)
    return (time.perf_counter() - started_at) / num_calls


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
