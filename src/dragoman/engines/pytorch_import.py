"""Read the model of another PyTorch program as a model folder, if it computes a function that ours has.

A reader for each program returns its tensors, with the names of `nn.TransformerEncoder` and
`nn.TransformerDecoder`, its vocabularies, and the `Facts` that these do not show. Files may come from
strangers: no pickled code is run.
"""

import math
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import pad

from dragoman.configuration import merge_settings
from dragoman.errors import DataError, ModelFolderError, SettingsError
from dragoman.model.transformer import sinusoidal_positions
from dragoman.model_folder.folder import ModelFolder
from dragoman.settings import Settings, SideSettings
from dragoman.storage import describe_first, read_bytes
from dragoman.tokenizers.tokenizer import Frame, PairTokenizer, Tokenizer

Program = Literal["pytorch", "joeynmt", "yoyodyne"]
Role = Literal[
    "source_embedding", "target_embedding", "source_positions", "target_positions", "output.weight",
    "output.bias",
]  # fmt: skip
FACTS: Final = "import.yaml"

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_SPECIAL = ("pad", "bos", "eos", "unk")  # in the order of our ids
_USUAL = {"blank": "pad", "p": "pad", "s": "bos", "sos": "bos", "start": "bos", "cls": "bos",
          "/s": "eos", "end": "eos", "e": "eos", "sep": "eos", "unknown": "unk"}  # fmt: skip
_FIRST_LAYER = re.compile(r"^(.*)layers\.0\.self_attn\.in_proj_weight$")
_KINDS = {  # of tensors outside of the layers, by their names in lower case
    "positions": r"pos|\bpe\b",
    "embedding": r"emb|tok|lut",
    "output.weight": r"out|fc|head|gen|proj|class|linear|logit",
}
_JOEYNMT = {  # names in its layers -> stock names
    r"(src_src|trg_trg)_att\.": "self_attn.",
    r"src_trg_att\.": "multihead_attn.",
    r"output_layer\.": "out_proj.",
    r"feed_forward\.pwff_layer\.0": "linear1",
    r"feed_forward\.pwff_layer\.3": "linear2",
    r"^(encoder.*\.)feed_forward\.layer_norm": r"\1norm2",
    r"feed_forward\.layer_norm": "norm3",
    r"x_layer_norm": "norm1",
    r"dec_layer_norm": "norm2",
    r"(layers\.\d+\.)layer_norm": r"\1norm1",
    r"layer_norm": "norm",
}


class Facts(BaseModel):
    """What neither tensors nor vocabularies show; for pytorch, the content of import.yaml."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    nhead: int
    embedding_scale: float | Literal["sqrt"]
    """By what embeddings are multiplied; sqrt: by sqrt(d_model)."""
    frame: Frame
    """Which special tokens are around a source: end, begin_end, begin, none."""
    source: SideSettings
    """How text is split, as tokenizer.source."""
    target: SideSettings | None = None
    """As tokenizer.target; None: as source."""
    norm_first: bool = False
    activation: Literal["relu", "gelu"] = "relu"
    positions: Literal["sinusoidal", "rotary"] | None = None
    """None: they are among the tensors."""
    special: dict[Literal["pad", "bos", "eos", "unk"], int] = {}
    """Ids of special tokens that have no usual name."""
    tensors: dict[Role, str] = {}
    """Names of tensors outside of the layers, where they do not tell what they are."""
    unused: list[str] = []
    """Names of tensors that do not matter for the outputs."""


class _Vocabulary(NamedTuple):
    rows: dict[str, int]  # of each token in an embedding
    special: tuple[int | None, ...]  # rows of _SPECIAL; None: there is none


_Found = tuple[dict[str, Tensor], Sequence[_Vocabulary], Facts]  # vocabularies of source and target


class _RefusedError(Exception):
    """Why a model is not imported."""


def read_model(folder: Path, program: Program, typed: Settings) -> ModelFolder:
    """Return the model of another program in `folder`, with our names, ids and scale, without metrics.

    Raises:
        DragomanError: It computes another function than ours, or cannot be read; says why.
    """
    read = {"pytorch": _read_pytorch, "joeynmt": _read_joeynmt, "yoyodyne": _read_yoyodyne}
    try:
        return _convert(*read[program](folder), typed)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: not as {program} writes it: {error!r}") from error
    except _RefusedError as error:
        raise ModelFolderError(f"{folder}: cannot be imported: {error}") from error


def _read_pytorch(folder: Path) -> _Found:
    """Read a state dictionary, import.yaml, and vocab.txt, or source.txt and target.txt."""
    try:
        facts = Facts.model_validate(_read_yaml(folder / FACTS))
    except ValidationError as error:
        raise SettingsError(f"{folder / FACTS}: {describe_first(error)}") from error
    is_shared = (folder / "vocab.txt").exists()
    names = ["vocab.txt"] * 2 if is_shared else ["source.txt", "target.txt"]
    vocabularies = [_read_vocabulary(folder / name, facts.special) for name in names]
    return _find_state(_load(_find_weights(folder))), vocabularies, facts


def _read_joeynmt(folder: Path) -> _Found:
    """Read a model_dir of JoeyNMT 2: its layers compute what stock ones do, by other names."""
    config = _read_yaml(folder / "config.yaml")
    found: dict[str, Any] = {}
    for name, allowed, default in (
        ("type", ("transformer",), None),
        ("num_heads", (), None),
        ("layer_norm", ("pre", "post"), None),
        ("activation", ("relu", "gelu"), "relu"),
        ("alpha", (1.0,), 1.0),
        ("scale", (True, False), False),
    ):
        both = [config["model"][part] for part in ("encoder", "decoder")]
        found[name], other = ({**one, **one["embeddings"]}.get(name, default) for one in both)
        if found[name] != other or (allowed and other not in allowed):
            raise _RefusedError(
                f"{name} is {found[name]} in its encoder and {other} in its decoder; ours has one for "
                f"both{f', of {allowed}' if allowed else ''}"
            )
    vocabularies, sides = list[_Vocabulary](), list[SideSettings]()
    for name in ("src", "trg"):
        side, vocabulary = config["data"][name], _read_vocabulary(folder / f"{name}_vocab.txt")
        if side["level"] not in ("word", "char") or side.get("lowercase"):
            raise _RefusedError("its texts are in subwords of another library, or in lower case")
        sides.append(SideSettings(kind="symbols" if side["level"] == "word" else "characters"))
        if side["level"] == "char" and "▁" in vocabulary.rows:  # a space
            vocabulary.rows[" "] = vocabulary.rows.pop("▁")
        vocabularies.append(vocabulary)
    facts = Facts(
        nhead=found["num_heads"], activation=found["activation"], norm_first=found["layer_norm"] == "pre",
        embedding_scale="sqrt" if found["scale"] else 1.0, frame="end", source=sides[0], target=sides[1],
    )  # fmt: skip
    best, tensors = folder / "best.ckpt", dict[str, Tensor]()
    for name, one in _find_state(_load(best if best.exists() else _find_weights(folder))).items():
        for pattern, stock in (
            _JOEYNMT.items() if re.search(r"\.layers\.|\.layer_norm\.", name) else ()
        ):
            name = re.sub(pattern, stock, name)
        tensors[name] = one
    for name in [one for one in tensors if "q_layer." in one]:
        parts = [tensors.pop(name.replace("q_layer", f"{part}_layer")) for part in "qkv"]
        tensors[name.replace("q_layer.", "in_proj_")] = torch.cat(parts)
    return tensors, vocabularies, facts


def _read_yoyodyne(folder: Path) -> _Found:
    """Read a checkpoint of yoyodyne 0.5, and the one YAML file with its configuration."""
    files = sorted(folder.glob("*.yaml"))
    if len(files) != 1:
        raise DataError(f"{folder}: expected one .yaml, the configuration, found {len(files)}")
    config, content = _read_yaml(files[0]), _load(_find_weights(folder))
    data, given, made = config["data"], config["model"]["init_args"], content["hyper_parameters"]
    encoder, index = given["source_encoder"], made["index"]
    kinds = [one["class_path"].rpartition(".")[2] for one in (config["model"], encoder)]
    if kinds != ["TransformerModel", "TransformerEncoder"] or given.get("features_encoder"):
        raise _RefusedError(
            f"it is a {kinds[0]} with a {kinds[1]}; only a TransformerModel with a TransformerEncoder and "
            "without a features_encoder computes what ours does (rotary ones rotate the attention to "
            "the source, too)"
        )
    heads = encoder.get("init_args", {}).get("attention_heads", 4)
    if isinstance(heads, int) and heads != made["decoder_attention_heads"]:  # not "${model...}"
        raise _RefusedError(
            "attention_heads of its encoder and its decoder differ; ours has one nhead"
        )
    source, target = sorted(index["source_vocabulary"]), sorted(index["target_vocabulary"])
    special = ["<P>", "<UNK>", "<S>", "<E>", "<SOURCE>", "<FEATURES>"]
    if index["tie_embeddings"]:
        vocabularies = [_number(enumerate([*special, *sorted({*source, *target})]))] * 2
    else:  # those of the source, in braces, follow
        rows = [*enumerate([*special, *target])]
        braced = enumerate((one[1:-1] for one in source), start=len(rows))
        vocabularies = [_number([*rows[: len(special)], *braced]), _number(rows)]
    sides = [
        SideSettings(kind="symbols", separator=one) if one else SideSettings(kind="characters")
        for one in (data.get("source_sep"), data.get("target_sep"))
    ]
    facts = Facts(
        nhead=made["decoder_attention_heads"], embedding_scale="sqrt", frame="begin_end", norm_first=True,
        source=sides[0], target=sides[1],
    )  # fmt: skip
    return _find_state(content), vocabularies, facts


def _read_yaml(path: Path) -> Any:  # noqa: ANN401
    try:
        return yaml.safe_load(read_bytes(path))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML: {error}") from error


def _read_vocabulary(path: Path, special: Mapping[Any, int] | None = None) -> _Vocabulary:
    """Read a file with one token a line; the number of a line, from 0, is the token's row."""
    text = read_bytes(path).decode("utf-8", "replace")
    tokens = text.removesuffix("\n").split("\n")
    if twice := [token for token, count in Counter(tokens).items() if count > 1]:
        raise DataError(f"{path}: the token {twice[0]!r} has two lines, and so two ids")
    return _number(enumerate(tokens), special)


def _number(
    tokens: Iterable[tuple[int, str]], special: Mapping[Any, int] | None = None
) -> _Vocabulary:
    rows, found = dict[str, int](), dict[str, int](special or {})
    for row, token in tokens:
        rows[token] = row
        if bracketed := re.fullmatch(r"[<\[_|]+(.+?)[>\]_|]+", token):
            name = bracketed[1].lower()
            found.setdefault(_USUAL.get(name, name), row)
    return _Vocabulary(rows, tuple(found.get(name) for name in _SPECIAL))


def _find_weights(folder: Path) -> Path:
    files = [one.name for one in sorted(folder.glob("*")) if one.suffix in _SUFFIXES]
    if len(files) != 1:
        found = ", ".join(files) or "none"
        raise DataError(
            f"{folder}: expected one file of weights ({' '.join(_SUFFIXES)}), found {found}"
        )
    return folder / files[0]


def _load(path: Path) -> Any:  # noqa: ANN401
    """Return the content of a file of weights: tensors, plain values; other objects are refused."""
    # What makes the vocabularies of yoyodyne gets one dictionary; `dict` does no harm in its place.
    index = (dict, "yoyodyne.data.indexes._reconstruct_index")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([index]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: it has Python objects, which could run code; write the tensors alone in the old "
            "program: torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise DataError(f"{path}: not a file of weights: {error}") from error


def _find_state(content: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """Return the state dictionary that is the content of a file, or in a checkpoint."""
    for state in (content, *(content.values() if isinstance(content, dict) else ())):
        if isinstance(state, dict) and any("layers.0." in str(name) for name in state):
            return {
                name: one.detach().float() for name, one in state.items() if isinstance(one, Tensor)
            }
    raise _RefusedError("its weights have no layers of nn.Transformer: no name has layers.0")


def _convert(
    tensors: dict[str, Tensor], vocabularies: Sequence[_Vocabulary], facts: Facts, typed: Settings
) -> ModelFolder:
    weights, num_layers = dict[str, Tensor](), dict[str, int]()
    for stem in [match[1] for name in tensors if (match := _FIRST_LAYER.match(name))]:
        is_decoder = f"{stem}layers.0.multihead_attn.in_proj_weight" in tensors
        part = "decoder" if is_decoder else "encoder"
        if part in num_layers:
            raise _RefusedError(f"it has two stacks of {part} layers")
        names = [one for one in tensors if re.match(re.escape(stem) + r"(layers\.\d+|norm)\.", one)]
        stack = {name.removeprefix(stem): tensors.pop(name) for name in names}
        num_layers[part] = len({name.split(".")[1] for name in stack if name[0] == "l"})
        last_norm = f"layers.{num_layers[part] - 1}.norm{3 if is_decoder else 2}"
        _complete(stack, last_norm, facts)
        weights |= {f"transformer.{part}.{name}": one for name, one in stack.items()}
    if len(num_layers) < 2:
        raise _RefusedError("it needs an nn.TransformerEncoder and an nn.TransformerDecoder")
    d_ff, d_model = weights["transformer.encoder.layers.0.linear1.weight"].shape
    outer = _assign(tensors, facts, d_model)
    scale = 1.0 if facts.embedding_scale == "sqrt" else facts.embedding_scale / math.sqrt(d_model)
    sides, (source, target) = [facts.source, facts.target or facts.source], vocabularies
    bias = outer.get("output.bias", torch.zeros(len(outer["output.weight"])))
    weights |= {
        "source_embedding.weight": _pick(scale * outer["source_embedding"], source, facts.frame),
        "target_embedding.weight": _pick(scale * outer["target_embedding"], target, "begin_end"),
        "output.weight": _pick(outer["output.weight"], target, "end"),
        "output.bias": _pick(bias[:, None], target, "end")[:, 0],
    }

    has_same_embeddings, has_tied_output = (
        torch.equal(weights[f"{name}.weight"], weights["target_embedding.weight"])
        for name in ("source_embedding", "output")
    )
    is_shared = source == target and sides[0] == sides[1] and has_same_embeddings
    if is_tied := has_tied_output and not weights["output.bias"].any():
        del weights["output.weight"], weights["output.bias"]
        if is_shared:
            del weights["source_embedding.weight"]
    values: dict[str, Any] = {
        "version": version("dragoman"),
        "model.d_model": d_model,
        "model.nhead": facts.nhead,
        "model.num_encoder_layers": num_layers["encoder"],
        "model.num_decoder_layers": num_layers["decoder"],
        "model.dim_feedforward": d_ff,
        "model.activation": facts.activation,
        "model.norm_first": facts.norm_first,
        "model.positions": facts.positions,
        "model.tie_embeddings": is_tied,
        "tokenizer.source": sides[0],
        "tokenizer.target": sides[1],
        "tokenizer.shared": is_shared,
    }
    if "source_positions" in outer:
        tables = {side: outer[f"{side}_positions"] for side in ("source", "target")}
        length = min(map(len, tables.values()))
        ours = sinusoidal_positions(0, length, d_model)
        values["model.positions"] = "sinusoidal"
        if not all(torch.allclose(one[:length], ours, atol=1e-3) for one in tables.values()):
            values["model.positions"] = "learned"
            values["model.max_positions"] = values["data.max_tokens"] = length
            weights |= {f"{side}_positions.weight": one[:length] for side, one in tables.items()}
    tokenizers = list[Tokenizer]()
    for side, one in zip(sides, vocabularies, strict=True):
        if side.kind in ("bpe", "unigram"):
            raise _RefusedError(
                f"kind {side.kind}: a vocabulary does not tell how its subwords are joined; import with "
                "kind symbols, and give sources that the old tokenizer has cut, with spaces between"
            )
        texts = [token for token, row in one.rows.items() if row not in one.special]
        tokenizers.append(Tokenizer.from_dict({"settings": side.model_dump(), "tokens": texts}))
    first, last = tokenizers[0], tokenizers[0 if is_shared else 1]
    return ModelFolder(
        settings=merge_settings(typed, values, overrule=True),
        tokenizer=PairTokenizer(source=first, target=last, features={}, frame=facts.frame),
        weights={name: one.contiguous().numpy() for name, one in weights.items()},
        metrics={},
        card="",
    )


def _complete(stack: dict[str, Tensor], last_norm: str, facts: Facts) -> None:
    """Add biases and the LayerNorm at the end that a stack of layers may lack, without effect."""
    for name in [one for one in stack if one.endswith("weight")]:
        stack.setdefault(f"{name.removesuffix('weight')}bias", torch.zeros(len(stack[name])))
    if "norm.weight" not in stack:
        if facts.norm_first:
            raise _RefusedError("its pre-norm layers have no LayerNorm at their end, as ours have")
        # Post-norm layers end with one; without scale and shift, a second one changes nothing.
        for kind, neutral in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
            stack[f"norm.{kind}"] = stack[f"{last_norm}.{kind}"]
            stack[f"{last_norm}.{kind}"] = neutral(stack[f"norm.{kind}"])


def _assign(tensors: Mapping[str, Tensor], facts: Facts, d_model: int) -> dict[str, Tensor]:
    """Return the tensors outside of the layers by their role, found by their names and shapes."""
    found: dict[str, list[str]] = {kind: [] for kind in (*_KINDS, "output.bias")}
    squeezed = {name: one.squeeze() if one.dim() > 2 else one for name, one in tensors.items()}
    for name, tensor in squeezed.items():
        kinds = [kind for kind, pattern in _KINDS.items() if re.search(pattern, name.lower())]
        if kinds[:1] == ["output.weight"] and name.endswith("bias"):
            found["output.bias"].append(name)
        elif kinds and tensor.dim() == 2 and tensor.shape[1] == d_model:
            found[kinds[0]].append(name)
    roles = {kind: names[0] for kind, names in found.items() if len(names) == 1}
    for kind in ("embedding", "positions"):  # of both sides, or one for both
        names, roles[kind] = sorted(found[kind], key=_names_target), ""
        if len(names) == 1 or [_names_target(one) for one in names] == [False, True]:
            roles |= {f"source_{kind}": names[0], f"target_{kind}": names[-1]}
    roles.update((role, name) for role, name in facts.tensors.items())
    needed = ["source_embedding", "target_embedding", "output.weight"]
    needed += [] if facts.positions else ["source_positions", "target_positions"]
    missing = [role for role in needed if roles.get(role) not in tensors]
    left = sorted(tensors.keys() - {*roles.values(), *facts.unused})
    if missing or left:
        shown = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in left)
        raise _RefusedError(
            f"not found: {', '.join(missing) or 'nothing'}; not known: {shown or 'nothing'}. If one is the "
            f"other, or does not matter, say so in {FACTS}: `tensors: {{output.weight: NAME}}`, `unused: "
            "[NAME]`, `positions: sinusoidal`"
        )
    return {role: squeezed[name] for role, name in roles.items() if name}


def _names_target(name: str) -> bool:
    return re.search(r"tgt|trg|target|dec|out", name.lower()) is not None


def _pick(matrix: Tensor, vocabulary: _Vocabulary, frame: str) -> Tensor:
    """Return the rows of a matrix in the order of our ids, rounded up to a multiple of 8.

    `frame`: which special tokens are needed.
    """
    _, begin, end, _ = special = vocabulary.special
    for row, name in ((begin, "bos"), (end, "eos")):
        if row is None and {"bos": "begin", "eos": "end"}[name] in frame:
            raise _RefusedError(
                f"its vocabulary has no {name} token with a usual name, such as <{name}>; give its id in "
                f"{FACTS}: `special: {{{name}: 1}}`"
            )
    texts = [row for row in vocabulary.rows.values() if row not in special]
    if max(row for row in (*special, *texts) if row is not None) >= len(matrix):
        raise _RefusedError(f"its vocabulary has more ids than the {len(matrix)} rows of a matrix")
    mean = matrix[texts].mean(0)  # for special tokens that it does not have
    rows = [mean if row is None else matrix[row] for row in (*special, *texts)]
    return pad(torch.stack(rows), (0, 0, 0, -len(rows) % 8))
