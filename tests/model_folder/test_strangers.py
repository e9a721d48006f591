"""A model folder from a stranger runs no code and reads no other file; errors name the file."""

import contextlib
import json
import pickle
import random
import re
import shutil

import pytest

import dragoman
from dragoman.errors import DragomanError, ModelFolderError
from dragoman.evaluation.evaluation import read_evaluation
from dragoman.model_folder.folder import ModelFolder


def replace_text(name, old, new):
    def change(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def change_json(name, **values):
    def change(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **values}))

    return change


def put(name, content):
    return lambda folder: (folder / name).write_text(content)


def put_sparse(name, size):
    def change(folder):
        with (folder / name).open("r+b") as file:
            file.truncate(size)

    return change


def put_folder(name):
    def change(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


DAMAGE = {
    "a call in the settings": (
        replace_text(
            "config.yaml", "version:", "x: !!python/object/apply:os.system [id]\nversion:"
        ),
        "could not determine a constructor",
    ),
    "settings of a later version": (
        replace_text("config.yaml", "version: 0.1.0", "version: 9.1.0\nmode: quick"),
        "dragoman 9.1.0 wrote it.*pip install --upgrade dragoman",
    ),
    "settings of a later format": (
        replace_text("config.yaml", "format: 1", "format: 2"),
        "pip install --upgrade dragoman",
    ),
    "tokens of a later version": (
        change_json("tokenizer.json", version=7),
        r"its format is 7.*pip install --upgrade dragoman",
    ),
    "a calibration of a later version": (
        change_json("calibration.json", version=3),
        r"its format is 3.*pip install --upgrade dragoman",
    ),
    "choices in another file": (
        replace_text("config.yaml", "choices: ''", "choices: /etc/passwd"),
        r"decoding\.choices names the file /etc/passwd",
    ),
    "a grammar above the folder": (
        replace_text("config.yaml", "grammar: ''", "grammar: ../../secret.lark"),
        r"decoding\.grammar names",
    ),
    "choices that are missing": (
        replace_text("config.yaml", "choices: ''", "choices: choices.txt"),
        r"choices\.txt: missing",
    ),
    "metrics that are a list": (put("metrics.json", "[]"), r"metrics\.json: expected .* object"),
    "counts that are texts": (
        put("token_counts.json", '{"source": ["a"]}'),
        r"token_counts\.json: expected",
    ),
    "a tokenizer of gigabytes": (put_sparse("tokenizer.json", 1 << 32), "larger than"),
    "settings that are a folder": (put_folder("config.yaml"), r"config\.yaml: cannot be read"),
    "weights that are a folder": (put_folder("model.safetensors"), r"model\.safetensors: .*cannot"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_an_error_names_the_damaged_file(name, trained, tmp_path):
    change, message = DAMAGE[name]
    folder = shutil.copytree(trained[0], tmp_path / "model")
    change(folder)
    with pytest.raises(ModelFolderError, match=message):
        ModelFolder.read(folder)


def test_pickled_files_in_a_model_folder_are_never_read(trained, tmp_path):
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
    assert ModelFolder.read(folder).settings.model.d_model == 64
    assert not called.exists()


def change_bytes(content, chance):
    """The content with a few changes of bytes or of values."""
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
def test_a_changed_file_never_gives_a_traceback(seed, trained, tmp_path):
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
