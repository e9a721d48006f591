"""What the tests share: random ids, small random models."""

import itertools

import pytest
import torch

from dragoman.model.transformer import Transformer

PAD, BOS, EOS = 0, 1, 2


def random_ids(rows: int, length: int, vocab_size: int, *, seed: int = 0) -> torch.Tensor:
    """Ids without special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab_size, (rows, length), generator=generator)


def pad_right(ids: torch.Tensor, extra: int) -> torch.Tensor:
    return torch.nn.functional.pad(ids, (0, extra), value=PAD)


OPTIONS = [
    {"norm_first": n, "activation": a, "positions": p, "tie_embeddings": t, "target_vocab_size": v}
    for (n, a), p, (t, v) in itertools.product(
        [(True, "relu"), (False, "gelu")],
        ["sinusoidal", "learned"],
        [(True, None), (False, 23), (True, 23)],
    )
]


@pytest.fixture(params=OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def network(request: pytest.FixtureRequest) -> Transformer:
    """A small random model in evaluation mode, for every combination of options."""
    torch.manual_seed(0)
    model = Transformer(30, 32, 4, 2, 64, num_decoder_layers=3, **request.param)
    return model.eval()
