"""Decided random models of every option, for the tests of engines and exports."""

import itertools
import string

import torch

from dragoman.model.building import build_network
from dragoman.model.transformer import Transformer
from dragoman.settings import ModelSettings, SideSettings
from dragoman.tokenizers.tokenizer import EOS_ID, PairTokenizer, Tokenizer

SIDE = SideSettings(kind="characters")
SOURCE = Tokenizer.train([string.ascii_lowercase], SIDE)  # 30 tokens
TARGET = Tokenizer.train([string.ascii_uppercase[:19]], SIDE)  # 23 tokens

OPTIONS = [
    {"norm_first": n, "activation": a, "positions": p, "tie_embeddings": t, "is_shared": s}
    for (n, a), p, (t, s) in itertools.product(
        [(True, "relu"), (False, "gelu")],
        ["sinusoidal", "learned"],
        [(True, True), (False, True), (False, False), (True, False)],
    )
]
OPTIONS += [
    {**option, "positions": "rotary"}
    for option in OPTIONS
    if option["positions"] == "learned" and option["is_shared"] != option["norm_first"]
]
SOME_OPTIONS = OPTIONS[::3]  # with each value of each option


def name_option(option) -> str:
    return "-".join(str(value) for value in option.values())


def make_model(
    *, is_shared: bool = True, seed: int = 0, features: tuple[str, ...] = (), **options
) -> tuple[ModelSettings, PairTokenizer, Transformer]:
    """The settings, the tokenizer and the network of a model without near ties."""
    torch.manual_seed(seed)
    sizes = {
        "d_model": 32, "nhead": 4, "num_encoder_layers": 2, "num_decoder_layers": 3,
        "dim_feedforward": 64,
    }  # fmt: skip
    model = ModelSettings(**{**sizes, **options})
    tokenizer = PairTokenizer(
        source=SOURCE,
        target=SOURCE if is_shared else TARGET,
        features={name: SOURCE.vocab_size + i for i, name in enumerate(features)},
    )
    network = build_network(model, tokenizer).eval()
    for parameter in network.parameters():
        if parameter.dim() == 1:  # biases and norms that are not as they begin
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    head = network.target_embedding if network.output is None else network.output
    torch.nn.init.normal_(head.weight, std=0.5)
    return model, tokenizer, network


def draw_sources(seed, count=12):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [[*torch.randint(3, 30, (n,), generator=generator).tolist(), EOS_ID] for n in lengths]
