"""A model.bin that is not as dragoman writes it never reaches the library that believes it."""

import json
import math
import shutil
import string
import struct
import time

import pytest
import torch

from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.ctranslate2_engine import CTranslate2Engine
from dragoman.engines.ctranslate2_export import write_model
from dragoman.engines.ctranslate2_file import check_model_file
from dragoman.errors import ModelFolderError
from dragoman.model.transformer import Transformer
from dragoman.model_folder.folder_files import FolderFile
from dragoman.settings import DecodingSettings, SideSettings
from dragoman.tokenizers.pair_tokenizer import PairTokenizer
from dragoman.tokenizers.tokenizer import EOS_ID, Tokenizer

GAMMA = "decoder/layer_norm/gamma"
TABLE = "encoder/embeddings_0/weight"
WIDTHS = {0: 4, 1: 1, 2: 2, 3: 4, 4: 2, 5: 2}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The export of a small random model; weights are in int8 where `quantized` says so."""
    folders = {}
    for quantization in ("float32", "int8"):
        torch.manual_seed(0)
        network = Transformer(
            30, 32, 4, 2, 64, num_decoder_layers=3, target_vocab_size=30, tie_embeddings=False
        ).eval()
        for parameter in network.parameters():  # so that no two are equal, and aliases of one
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter)
        side = Tokenizer.train([string.ascii_lowercase], SideSettings(kind="characters"))
        folder = tmp_path_factory.mktemp("exported") / "ctranslate2"
        folder.mkdir()
        target = Tokenizer.train([string.ascii_uppercase], SideSettings(kind="characters"))
        tokenizer = PairTokenizer(source=side, target=target, features={})
        told = write_model(network, tokenizer, folder, quantization)
        (folder / "export.json").write_text(json.dumps({"weights": "", "format": 1, **told}))
        folders[quantization] = folder
    return folders


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported["float32"], tmp_path / "ctranslate2")


def parse(content):
    """The parts of a model.bin: (head, variables as lists, aliases)."""
    place = 0

    def number(kind):
        nonlocal place
        (value,) = struct.unpack_from(f"<{kind}", content, place)
        place += struct.calcsize(f"<{kind}")
        return value

    def text():
        nonlocal place
        count = number("H")
        place += count
        return content[place - count : place - 1].decode()

    head = [number("I"), text(), number("I")]
    variables = []
    for _ in range(number("I")):
        name, shape = text(), [number("I") for _ in range(number("B"))]
        kind, count = number("B"), number("I")
        variables.append([name, shape, kind, content[place : place + count]])
        place += count
    aliases = [[text(), text()] for _ in range(number("I"))]
    assert place == len(content)
    return [head, variables, aliases]


def build(parts, *, num_bytes=None, count=None):
    """A model.bin of these parts; `num_bytes`: what it claims by name, `count`: how many."""
    head, variables, aliases = parts

    def text(value):
        return struct.pack("<H", len(value.encode()) + 1) + value.encode() + b"\0"

    made = [struct.pack("<I", head[0]), text(head[1]), struct.pack("<I", head[2])]
    made.append(struct.pack("<I", len(variables) if count is None else count))
    for name, shape, kind, data in variables:
        claimed = (num_bytes or {}).get(name, len(data))
        made += [text(name), struct.pack(f"<B{len(shape)}I", len(shape), *shape)]
        made += [struct.pack("<BI", kind, claimed), data]
    made.append(struct.pack("<I", len(aliases)))
    made += [text(value) for alias in aliases for value in alias]
    return b"".join(made)


def change(name, shape=None, kind=None, data=None):
    """What gives a variable another shape (with the bytes for it), type or content."""

    def craft(parts):
        for one in parts[1]:
            if one[0] == name:
                one[1] = one[1] if shape is None else shape
                one[2] = one[2] if kind is None else kind
                size = WIDTHS.get(one[2], 4) * math.prod(one[1])
                one[3] = data if data is not None else one[3][:size].ljust(size, b"\0")
        return build(parts)

    return craft


def drop(name):
    def craft(parts):
        parts[1] = [one for one in parts[1] if one[0] != name]
        parts[2] = [one for one in parts[2] if name not in one]
        return build(parts)

    return craft


def add(*variable):
    return lambda parts: build([parts[0], [*parts[1], list(variable)], parts[2]])


def alias(*pair):
    return lambda parts: build([parts[0], parts[1], [*parts[2], list(pair)]])


TRICKS = {
    "fewer rows than tokens": (change(TABLE, shape=[2, 32]), r"\(2, 32\), expected \(30, 32\)"),
    "a short vector": (
        change("decoder/layer_1/ffn/layer_norm/gamma", shape=[1]),
        r"shape \(1,\), expected \(32,\)",
    ),
    "another width": (change(GAMMA, shape=[64]), "expected"),
    "no width": (change(GAMMA, shape=[0]), "expected|width"),
    "a matrix for a vector": (change(GAMMA, shape=[32, 32]), "not a model that dragoman exported"),
    "a turned matrix": (
        change("encoder/layer_0/ffn/linear_0/weight", shape=[32, 64]),
        "expected",
    ),
    "another bias": (change("decoder/projection/bias", shape=[3]), "expected"),
    "fewer positions": (
        change("decoder/position_encodings/encodings", shape=[3, 32]),
        "expected",
    ),
    "five dimensions": (change(GAMMA, shape=[1, 1, 1, 1, 32]), "5 dimensions"),
    "sizes that overflow": (
        lambda parts: build([parts[0], [[TABLE, [1 << 31, 1 << 31], 0, b""]], parts[2]]),
        "0 bytes for a shape",
    ),
    "terabytes claimed": (
        lambda parts: build(
            [parts[0], [[TABLE, [1 << 15, 1 << 14], 0, b"1234"]], parts[2]],
            num_bytes={TABLE: 1 << 31},
        ),
        "cut short",
    ),
    "bytes that do not match": (
        lambda parts: build(parts, num_bytes={GAMMA: 64}),
        "64 bytes for a shape",
    ),
    "four billion variables": (lambda parts: build(parts, count=0xFFFFFFFF), "ctranslate2"),
    "a type that is none": (change(GAMMA, kind=77), "of a type 77"),
    "numbers of 32 bits": (change(GAMMA, kind=3), "of a type 3"),
    "a vector of bytes": (change(GAMMA, kind=1), "of type int8"),
    "weights of several types": (
        change("encoder/layer_0/ffn/linear_0/weight", kind=4),
        "different types",
    ),
    "no heads": (change("decoder/num_heads", data=b"\0\0"), "num_heads is 0"),
    "heads that do not divide": (change("decoder/num_heads", data=b"\5\0"), "num_heads is 5"),
    "negative heads": (change("encoder/num_heads", data=b"\xff\xff"), "num_heads is -1"),
    "an activation that is none": (change("encoder/activation", data=b"\x63"), "activation is 99"),
    "a layer to align that is none": (
        change("decoder/alignment_layer", data=b"\x63\0"),
        "alignment_layer is 99",
    ),
    "another embedding": (change("encoder/embeddings_merge", data=b"\1"), "embeddings_merge is 1"),
    "a variable is missing": (drop("decoder/projection/weight"), "no 'decoder/projection/weight'"),
    "a layer lacks a part": (
        drop("decoder/layer_2/attention/linear_1/bias"),
        "no 'decoder/layer_2/attention/linear_1/bias'",
    ),
    "all is missing": (lambda parts: build([parts[0], [], []]), "no 'decoder/layer_norm/gamma'"),
    "a variable too many": (add("decoder/rotary_dim", [], 1, b"\1"), "is no part of an export"),
    "a table too many": (add("decoder/other", [4], 0, b"\0" * 16), "is no part of an export"),
    "a name that moves a cursor": (add("\x1b[2J", [], 1, b"\1"), "is no part of an export"),
    "a name twice": (add(GAMMA, [32], 0, b"\0" * 128), "is there twice"),
    "an alias of nothing": (alias("decoder/x", "decoder/nothing"), "stands for"),
    "an alias of an alias": (
        lambda parts: build(
            [parts[0], parts[1], [*parts[2], ["a", GAMMA], ["b", "a"]]]
        ),
        "stands for a,",
    ),
    "an alias of another shape": (
        lambda parts: build(
            [parts[0], [v for v in parts[1] if v[0] != TABLE], [*parts[2], [TABLE, GAMMA]]]
        ),
        r"shape \(32,\), expected \(30, 32\)",
    ),
    "bytes behind the end": (lambda parts: build(parts) + b"x", "1 bytes lie behind its end"),
    "a file that is cut": (lambda parts: build(parts)[:-40], "cut short"),
    "an empty file": (lambda parts: b"", "cut short"),
    "a later format": (lambda parts: build([[7, *parts[0][1:]], *parts[1:]]), "its format is 7"),
    "another layout": (
        lambda parts: build([[6, "WhisperSpec", 7], *parts[1:]]),
        "its layout is WhisperSpec",
    ),
    "names without an end": (lambda parts: build(parts)[:4] + b"\xff\xff" + b"a" * 70_000, "end"),
    "something pickled": (lambda parts: b"\x80\x04\x95" + b"." * 100, "its format is"),
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_a_crafted_model_is_refused_before_it_is_loaded(trick, folder):
    craft, told = TRICKS[trick]
    path = folder / "model.bin"
    path.write_bytes(craft(parse(path.read_bytes())))
    start_s = time.monotonic()
    with pytest.raises(ModelFolderError, match=told) as caught:
        CTranslate2Engine(folder)
    assert time.monotonic() - start_s < 5
    assert "model.bin" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def change_int8(name, **values):
    return change(name, **values)


@pytest.mark.parametrize(
    ("craft", "told"),
    [
        (drop(f"{TABLE}_scale"), "no 'encoder/embeddings_0/weight_scale'"),
        (change(f"{TABLE}_scale", shape=[3]), r"weight_scale has the shape \(3,\)"),
        (change(f"{TABLE}_scale", kind=4), "weight_scale is of type float16"),
        (change(TABLE, shape=[2, 32]), r"\(2, 32\), expected"),
    ],
)
def test_a_crafted_model_in_int8_is_refused_too(craft, told, exported, tmp_path):
    folder = shutil.copytree(exported["int8"], tmp_path / "ctranslate2")
    path = folder / "model.bin"
    path.write_bytes(craft(parse(path.read_bytes())))
    with pytest.raises(ModelFolderError, match=told):
        CTranslate2Engine(folder)


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_what_is_written_again_part_by_part_is_taken(quantization, exported):
    path = exported[quantization] / "model.bin"
    assert build(parse(path.read_bytes())) == path.read_bytes()
    found = CTranslate2Engine(exported[quantization], device="cpu", threads=1)
    config = SearchConfig(decoding=DecodingSettings(max_length_extra=5))
    assert found.search([[5, 6, EOS_ID]], config)
    about = {"num_sources": 30, "num_targets": 30, "num_positions": 4096}
    check_model_file(FolderFile(path, 1 << 30), **about)
    with pytest.raises(ModelFolderError, match="expected"):
        check_model_file(FolderFile(path, 1 << 30), **{**about, "num_sources": 31})


def put_json(name, content):
    return lambda folder: (folder / name).write_text(
        content if isinstance(content, str) else json.dumps(content)
    )


def change_json(name, **values):
    def craft(folder):
        content = json.loads((folder / name).read_text())
        put_json(name, {**content, **values})(folder)

    return craft


def link(name):
    def craft(folder):
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return craft


NAMES = [f"t{i}" for i in range(30)]


@pytest.mark.parametrize(
    ("craft", "told"),
    [
        (put_json("source_vocabulary.json", NAMES[:2]), "tokens are missing"),
        (put_json("source_vocabulary.json", NAMES[:20]), "expected"),
        (put_json("target_vocabulary.json", [*NAMES, "more"]), "expected"),
        (put_json("target_vocabulary.json", ["same"] * 30), "two tokens have one name"),
        (put_json("target_vocabulary.json", "[" * 100_000), "target_vocabulary.json"),
        (put_json("target_vocabulary.json", NAMES), "config.json: it is not as"),
        (change_json("config.json", eos_token="a"), "config.json: it is not as"),
        (change_json("config.json", unk_token="../../x"), "config.json: it is not as"),
        (change_json("config.json", add_source_bos=True), "config.json: it is not as"),
        (change_json("config.json", layer_norm_epsilon=-1.0), "config.json: it is not as"),
        (change_json("config.json", layer_norm_epsilon="1e-5"), "config.json: it is not as"),
        (change_json("config.json", vocabulary="/etc/passwd"), "config.json: expected"),
        (put_json("config.json", "[" * 100_000), "config.json"),
        (change_json("export.json", positions=1 << 40), "positions is 1099511627776"),
        (change_json("export.json", positions=-1), "positions is -1"),
        (change_json("export.json", positions="4096"), "positions is '4096'"),
        (change_json("export.json", has_learned_positions=3), "has_learned_positions is 3"),
        (change_json("export.json", format=2), "its format is 2, .*pip install --upgrade"),
        (put_json("export.json", '{"a":' * 100_000), "export.json: cannot be read"),
        (link("model.bin"), "it is a link"),
        (link("config.json"), "it is a link"),
        (link("export.json"), "it is a link"),
        (link("target_vocabulary.json"), "it is a link"),
    ],
)
def test_files_beside_the_model_are_compared_too(craft, told, folder):
    craft(folder)
    with pytest.raises(ModelFolderError, match=told):
        CTranslate2Engine(folder)


def test_an_export_that_is_a_link_is_refused(folder):
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")
    with pytest.raises(ModelFolderError, match="it is a link"):
        CTranslate2Engine(folder)


def test_no_other_file_of_the_folder_is_given_to_the_library(folder):
    """A map of tokens is a file that CTranslate2 would take by its name alone."""
    (folder / "vmap.txt").write_text("nonsense\t" * 1000)
    (folder / "shared_vocabulary.json").write_text("[]")
    found = CTranslate2Engine(folder, device="cpu", threads=1)
    assert found.search(
        [[5, 6, EOS_ID]], SearchConfig(decoding=DecodingSettings(max_length_extra=5))
    )
