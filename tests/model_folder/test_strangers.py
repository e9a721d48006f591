"""Whatever a stranger put into a model folder is refused: soon, in little memory, by its name."""

import contextlib
import pickle
import random
import re
import shutil
import struct

import pytest

import dragoman
from dragoman.errors import DragomanError
from dragoman.evaluation.evaluation import read_evaluation
from dragoman.model_folder.folder import read_bundle
from strangers import (
    change_header,
    change_json,
    put,
    put_folder,
    put_link,
    put_pipe,
    put_sparse,
    read_all,
    replace_text,
)

NORM = "transformer.encoder.norm.weight"


def claim(name, shape):
    """A tensor says that it has another shape."""
    return change_header(lambda header: header[name].update(shape=shape))


def grow_together(folder):
    """Settings and header agree on a model that the file does not hold."""
    replace_text("config.yaml", "d_model: 64", "d_model: 65536")(folder)
    size = 65536 * 4

    def grow(header):
        header[NORM].update(shape=[65536], data_offsets=[0, size])

    change_header(grow)(folder)


def deepen(folder):
    (folder / "tokenizer.json").write_text("[" * 1_000_000)


def swap_settings_of_tokens(folder):
    change_json("tokenizer.json", lambda content: content["source"]["tokens"].append("z"))(folder)
    change_json("tokenizer.json", lambda content: content["source"]["tokens"].append("\ud800"))(
        folder
    )


def give_many_tokens(count):
    tokens = [chr(0x10000 + i % 0xF0000) * (1 + i // 0xF0000) for i in range(count)]

    def change(content):
        content["source"]["settings"]["kind"] = "symbols"
        content["source"]["tokens"] = tokens

    return change_json("tokenizer.json", change)


def nest_in_bpe(folder):
    """What Hugging Face could do to a text: blow it up, by any expression."""
    from dragoman.settings import SideSettings
    from dragoman.tokenizers.tokenizer import Tokenizer

    content = Tokenizer.train(["ein Haus"], SideSettings(vocab_size=300)).to_dict()
    content["tokens"]["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000},
        ]
        * 5,
    }
    change_json("tokenizer.json", lambda whole: whole.update(source=content))(folder)


def run_away_in_bpe(folder):
    from dragoman.settings import SideSettings
    from dragoman.tokenizers.tokenizer import Tokenizer

    content = Tokenizer.train(["ein Haus"], SideSettings(vocab_size=300)).to_dict()
    content["tokens"]["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(a+)+b"}
    change_json("tokenizer.json", lambda whole: whole.update(source=content))(folder)


def dig_in_unigram(folder):
    """A piece of a million bytes: a tree of that depth, which the stack of Rust would not hold."""
    from dragoman.settings import SideSettings
    from dragoman.tokenizers.tokenizer import Tokenizer

    side = SideSettings(kind="unigram", vocab_size=300)
    content = Tokenizer.train(["ein Haus"], side).to_dict()
    content["tokens"]["model"]["vocab"].append(["a" * 1_000_000, -1.0])
    change_json("tokenizer.json", lambda whole: whole.update(source=content))(folder)


TRICKS = {
    # The weights
    "a tensor claims terabytes": (claim(NORM, [1 << 40]), "model.safetensors"),
    "a shape overflows": (claim(NORM, [1 << 62, 1 << 62]), "model.safetensors"),
    "a shape is negative": (claim(NORM, [-64]), "model.safetensors"),
    "a shape has a thousand dimensions": (claim(NORM, [1] * 1000), "model.safetensors"),
    "a shape holds no numbers": (claim(NORM, ["64"]), "model.safetensors"),
    "a shape is none of the settings": (claim(NORM, [8, 8]), r"shape \(8, 8\), expected \(64,\)"),
    "half floats": (change_header(lambda h: h[NORM].update(dtype="F16")), "of type F16"),
    "a type that is none": (change_header(lambda h: h[NORM].update(dtype="\x1b[2J")), "of type"),
    "a tensor is missing": (
        change_header(lambda h: h.update({"other": h.pop(NORM)})),
        "other: unknown; .*weight: missing",
    ),
    "tensors overlap": (
        change_header(lambda h: h[NORM].update(data_offsets=[0, 256])),
        "overlap|gap",
    ),
    "bytes behind the last tensor": (change_header(lambda h: None, b"x"), "tensors end at byte"),
    "a header longer than the file": (
        put("model.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
        "its header has",
    ),
    "a header without end": (
        put("model.safetensors", struct.pack("<Q", 500_000) + b"[" * 500_000),
        "nested too deep",
    ),
    "a header of lists": (
        put("model.safetensors", struct.pack("<Q", 9_000_002) + b'{"a":' + b"[]," * 2_999_999),
        "lists and objects",
    ),
    "a header that is a list": (put("model.safetensors", struct.pack("<Q", 2) + b"[]"), "object"),
    "weights of a terabyte": (put_sparse("model.safetensors", 1 << 40), "bytes, more than"),
    "weights of 30 GB that the header does not tell of": (
        put_sparse("model.safetensors", 30 << 30),
        "tensors end at byte",
    ),
    "weights that are pickled": (
        put("model.safetensors", pickle.dumps({"a": 1}) + b"." * 100),
        "model.safetensors",
    ),
    # The settings
    "a width without end": (replace_text("config.yaml", "d_model: 64", "d_model: 99999999999"), "too large"),
    "a width that the weights do not have": (
        replace_text("config.yaml", "d_model: 64", "d_model: 65536"),
        "do not fit the settings",
    ),
    "settings and header claim the same": (grow_together, "model.safetensors"),
    "a thousand layers": (
        replace_text("config.yaml", "num_encoder_layers: 1", "num_encoder_layers: 1000"),
        "missing",
    ),
    "positions without end": (
        replace_text("config.yaml", "max_positions: 1024", "max_positions: 100000000000"),
        "too large",
    ),
    "a huge learned table": (
        replace_text("config.yaml", "positions: sinusoidal", "positions: learned"),
        "source_positions.weight: missing",
    ),
    "a beam without end": (replace_text("config.yaml", "beam_size: 1", "beam_size: 1000000"), "too large"),
    "a call in the settings": (
        replace_text("config.yaml", "version:", "x: !!python/object/apply:os.system [id]\nversion:"),
        "not valid YAML",
    ),
    "aliases of aliases": (
        replace_text(
            "config.yaml",
            "version:",
            "x0: &x0 [a]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]\n" for i in range(1, 40)) + "version:",
        ),
        "alias",
    ),
    "settings of a later version": (
        replace_text("config.yaml", "version: 0.1.0", "version: 9.1.0\nmode: quick"),
        "dragoman 9.1.0 wrote it.*pip install --upgrade dragoman",
    ),
    "a later format": (replace_text("config.yaml", "format: 1", "format: 2"), "upgrade"),
    "a cache of its own": (replace_text("config.yaml", "cache: auto", "cache: /tmp"), r"data\.cache"),
    # Files that settings name
    "a list of choices elsewhere": (
        replace_text("config.yaml", "choices: ''", "choices: /etc/passwd"),
        r"decoding\.choices names the file /etc/passwd",
    ),
    "a list of choices without end": (
        replace_text("config.yaml", "choices: ''", "choices: /dev/zero"),
        r"decoding\.choices names",
    ),
    "a grammar above the folder": (
        replace_text("config.yaml", "grammar: ''", "grammar: ../../secret.lark"),
        r"decoding\.grammar names",
    ),
    "a schema in the home folder": (
        replace_text("config.yaml", "json_schema: ''", "json_schema: ~/schema.json"),
        r"decoding\.json_schema names",
    ),
    "choices that are missing": (
        replace_text("config.yaml", "choices: ''", "choices: choices.txt"),
        r"choices\.txt: missing",
    ),
    "choices that are a link": (
        lambda folder: (
            replace_text("config.yaml", "choices: ''", "choices: choices.txt")(folder),
            put_link("choices.txt", "/etc/passwd")(folder),
        ),
        "it is a link",
    ),
    "choices that are a pipe": (
        lambda folder: (
            replace_text("config.yaml", "choices: ''", "choices: choices.txt")(folder),
            put_pipe("choices.txt")(folder),
        ),
        "found a pipe",
    ),
    # The tokens
    "tokens nested without end": (deepen, r"tokenizer\.json.*lists and objects|nested too deep"),
    "tokens in a file of gigabytes": (put_sparse("tokenizer.json", 1 << 32), "bytes, more than"),
    "millions of tokens": (give_many_tokens(1_100_000), "1,100,000 different tokens"),
    "half a character": (swap_settings_of_tokens, "lone surrogate"),
    "a normaliser that blows text up": (nest_in_bpe, "its normalizer is not the one"),
    "an expression that runs away": (run_away_in_bpe, "its pre_tokenizer is not the one"),
    "a piece that is a million bytes long": (dig_in_unigram, "or too long"),
    "tokens of a later version": (
        replace_text("tokenizer.json", '"version": 1', '"version": 7'),
        r"its format is 7.*pip install --upgrade dragoman",
    ),
    "a feature that is a book": (
        change_json("tokenizer.json", lambda content: content["features"].append("x" * 5000)),
        "a feature has more than",
    ),
    # The rest
    "metrics nested without end": (put("metrics.json", '{"a":' * 90_000), "nested too deep"),
    "metrics of lists": (put("metrics.json", "[" + "[]," * 2_000_000), "lists and objects"),
    "metrics beyond the numbers": (put("metrics.json", '{"a": 1e999}'), "too large a number"),
    "metrics that are no number": (put("metrics.json", '{"a": NaN}'), "NaN is no number"),
    "a number of a million digits": (put("metrics.json", '{"a": ' + "9" * 1_000_000 + "}"), "metrics"),
    "metrics of gigabytes": (put_sparse("metrics.json", 1 << 32), "bytes, more than"),
    "a model card of gigabytes": (put_sparse("README.md", 1 << 32), "bytes, more than"),
    "a model card that is a link": (put_link("README.md", "/etc/passwd"), "it is a link"),
    "a model card that is a pipe": (put_pipe("README.md"), "found a pipe"),
    "counts that are lists": (put("token_counts.json", "[" * 2_000_000), "lists and objects"),
    "counts of gigabytes": (put_sparse("token_counts.json", 1 << 32), "bytes, more than"),
    "counts that are a pipe": (put_pipe("token_counts.json"), "found a pipe"),
    "a calibration that is a pipe": (put_pipe("calibration.json"), "found a pipe"),
    "a calibration without end": (put_link("calibration.json", "/dev/zero"), "it is a link"),
    "a calibration of a later version": (
        replace_text("calibration.json", '"version": 1', '"version": 2'),
        "its format is 2.*upgrade",
    ),
}  # fmt: skip
for name in ("model.safetensors", "config.yaml", "tokenizer.json", "metrics.json"):
    TRICKS |= {
        f"{name} is a pipe": (put_pipe(name), f"{name}: cannot be read: .*found a pipe"),
        f"{name} is a folder": (put_folder(name), f"{name}: cannot be read: .*found a folder"),
        f"{name} is a device": (put_link(name, "/dev/zero"), f"{name}: it is a link"),
        f"{name} is a link out": (put_link(name, f"../../{name}"), f"{name}: it is a link"),
        f"{name} is a link to nothing": (put_link(name, "nothing"), f"{name}: it is a link"),
    }


@pytest.fixture(scope="module")
def answers(trained, tmp_path_factory):
    """What each trick gave, all in one process of 1 GiB."""
    top, paths = tmp_path_factory.mktemp("strangers"), []
    for number, (craft, _) in enumerate(TRICKS.values()):
        folder = shutil.copytree(trained[0], top / f"{number}" / "model")
        craft(folder)
        paths.append(folder)
    imports = "from dragoman.model_folder.folder import read_bundle"
    found = read_all(paths, imports, "read_bundle(path)", memory_mib=1024)
    return dict(zip(TRICKS, found, strict=True))


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_is_refused_soon_and_by_its_name(trick, answers):
    kind, told, seconds = answers[trick]
    assert kind == "ModelFolderError", told
    assert seconds < 5  # 0.4 at most on a quiet machine
    assert re.search(TRICKS[trick][1], told), told
    assert "\x1b" not in told
    assert len(told) < 5000


def test_checkpoints_in_a_model_folder_are_never_read(trained, tmp_path):
    """Whatever is pickled in it: no name of Lightning's, of PyTorch's or of pickle's is opened."""
    folder = shutil.copytree(trained[0], tmp_path / "model")
    before = dragoman.load(folder, engine="torch").predict(["abc"])
    called = tmp_path / "CALLED"

    class Trap:
        def __reduce__(self):
            return open, (str(called), "w")

    for name in ("last.ckpt", "model.ckpt", "pytorch_model.bin", "model.pt", "state.pkl"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_bytes(pickle.dumps(Trap()))
    assert dragoman.load(folder, engine="torch").predict(["abc"]) == before
    assert read_bundle(folder).settings.model.d_model == 64
    assert not called.exists()


def change_bytes(content, chance):
    """The content with a few changes: of bytes, of parts, of values."""
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        place = chance.randrange(len(changed) + 1)
        match chance.randrange(5):
            case 0 if place < len(changed):
                changed[place] = chance.randrange(256)
            case 1:
                del changed[place : place + chance.randint(1, 20)]
            case 2:
                changed[place:place] = chance.randbytes(chance.randint(1, 8))
            case 3:
                del changed[place:]
            case _:
                found = list(re.finditer(rb'-?\d+(\.\d+)?|"[^"]*"|true|false|null', changed))
                if found:
                    one, values = chance.choice(found), [b"null", b"-1", b"1e999", b"[]", b'"x"']
                    changed[one.start() : one.end()] = chance.choice(values)
    return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
def test_no_change_of_a_file_makes_a_traceback(seed, trained, tmp_path):
    chance = random.Random(seed)
    folder = shutil.copytree(trained[0], tmp_path / "model")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for _ in range(60):
        path = chance.choice(files)
        content = path.read_bytes()
        head, rest = content[:4000], content[4000:]
        path.write_bytes(change_bytes(head, chance) + rest)
        with contextlib.suppress(DragomanError):
            dragoman.load(folder, engine="ctranslate2", threads=1).predict(["abc", ""])
        with contextlib.suppress(DragomanError):
            read_evaluation(folder / "evaluation" / "valid")
        path.write_bytes(content)
    assert dragoman.load(folder).predict(["abc"]) == ["ABC"]
