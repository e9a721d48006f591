"""A graph that is not one of dragoman's never reaches ONNX Runtime."""

import json
import shutil
import string
import time

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import helper

from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.onnx_engine import OnnxEngine
from dragoman.engines.onnx_export import write_model
from dragoman.engines.onnx_file import read_graph
from dragoman.errors import ModelFolderError
from dragoman.model.transformer import Transformer
from dragoman.settings import DecodingSettings
from dragoman.tokenizers.tokenizer import EOS_ID


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    network = Transformer(len(string.ascii_lowercase) + 4, 32, 4, 2, 64).eval()
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    folder.mkdir()
    (folder / "export.json").write_text(json.dumps({"weights": "", **write_model(network, folder)}))
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "onnx")


def change(craft):
    """What changes the encoder's graph."""

    def on_disk(folder):
        model = onnx.load(folder / "encoder.onnx")
        craft(model)
        (folder / "encoder.onnx").write_bytes(model.SerializeToString())

    return on_disk


def loop(model):
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("Loop", ["a", "b"], ["c"], body=inner))


def hide_a_graph(model):
    inner = helper.make_graph([helper.make_node("Loop", [], [])], "inner", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("body", inner))


def move_outside(where):
    def craft(model):
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", where), ("length", "4")):
            tensor.external_data.add(key=key, value=value)

    return craft


def claim(sizes):
    def craft(model):
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(sizes)

    return craft


def write(content):
    return lambda folder: (folder / "encoder.onnx").write_bytes(content)


def change_told(**values):
    def craft(folder):
        about = json.loads((folder / "export.json").read_text())
        (folder / "export.json").write_text(json.dumps({**about, **values}))

    return craft


def link(folder):
    (folder / "encoder.onnx").rename(folder.parent / "encoder.onnx")
    (folder / "encoder.onnx").symlink_to(folder.parent / "encoder.onnx")


TRICKS = {
    "parameters of /etc/passwd": (change(move_outside("/etc/passwd")), "lies in /etc/passwd"),
    "parameters above the folder": (change(move_outside("../../weights")), "lies in ../../weights"),
    "parameters in a file that is a link": (
        lambda folder: (
            change(move_outside("encoder.onnx.data"))(folder),
            (folder / "encoder.onnx.data").symlink_to("/etc/passwd"),
        ),
        "bytes for the sizes|it is a link",
    ),
    "a shape of terabytes": (change(claim([1 << 40])), "bytes for the sizes"),
    "a shape that overflows": (change(claim([1 << 32, 1 << 32])), "bytes for the sizes"),
    "a negative shape": (change(claim([-5])), "bytes for the sizes"),
    "many dimensions": (change(claim([1] * 100)), "of a kind that no export has"),
    "a loop": (change(loop), "the operator Loop|field 6"),
    "a graph in an attribute": (change(hide_a_graph), "field 6"),
    "an operator of somebody": (
        change(lambda model: model.graph.node.append(helper.make_node("Run", [], [], domain="my"))),
        "the operator Run|operators of my",
    ),
    "an operator that makes much of little": (
        change(lambda model: model.graph.node.append(helper.make_node("Expand", ["a"], ["b"]))),
        "the operator Expand",
    ),
    "functions": (change(lambda model: model.functions.add(name="f")), "field 25"),
    "training": (change(lambda model: model.training_info.add()), "field 20"),
    "sparse parameters": (
        change(lambda model: model.graph.sparse_initializer.add(dims=[1 << 40])),
        "field 15",
    ),
    "a million parts": (write(b"\x3a\x80\x89\x7a" + b"\x0a\x00" * 1_000_000), "parts"),
    "nothing": (write(b""), "cannot be run"),
    "something else": (write(b"\x80\x04\x95 something else \xff" * 20), "encoder.onnx"),
    "a length beyond the end": (write(b"\x3a\xff\xff\xff\xff\x07ab"), "cut short"),
    "a number without an end": (write(b"\xff" * 100), "encoder.onnx"),
    "a file of gigabytes": (
        lambda folder: (folder / "encoder.onnx").open("r+b").truncate(1 << 33),
        "bytes, more than",
    ),
    "a link": (link, "it is a link"),
    "more tokens than the graph has": (
        change_told(target_vocab_size=31),
        "not the one that export.json tells of",
    ),
    "no heads": (change_told(heads=0), "heads is 0"),
    "an id that is none": (change_told(eos_id=-1), "eos_id is -1"),
    "positions without end": (change_told(positions=1 << 50), "positions is"),
    "a later format": (change_told(format=2), "its format is 2.*upgrade"),
}


@pytest.mark.filterwarnings("ignore:unclosed file")
@pytest.mark.parametrize("trick", TRICKS)
def test_a_crafted_graph_is_refused(trick, folder):
    craft, told = TRICKS[trick]
    craft(folder)
    start_s = time.monotonic()
    with pytest.raises(ModelFolderError, match=told):
        OnnxEngine(folder, threads=1)
    assert time.monotonic() - start_s < 5


def test_what_dragoman_writes_is_taken(exported):
    for name in ("encoder.onnx", "decoder_step.onnx"):
        assert read_graph(exported / name) == (exported / name).read_bytes()
    engine = OnnxEngine(exported, threads=1)
    assert engine.vocab_sizes == (30, 30)
    assert engine.search([[5, EOS_ID]], SearchConfig(decoding=DecodingSettings(max_length_extra=5)))


def test_parameters_may_lie_in_the_file_named_after_the_graph(folder):
    """As those of over 2 GB do."""
    for name in ("encoder.onnx", "decoder_step.onnx"):
        model = onnx.load(folder / name)
        onnx.save_model(
            model, folder / name, save_as_external_data=True, location=f"{name}.data",
            size_threshold=512,
        )  # fmt: skip
        assert read_graph(folder / name) is None
    engine = OnnxEngine(folder, threads=1)
    assert engine.search([[5, EOS_ID]], SearchConfig(decoding=DecodingSettings(max_length_extra=5)))


def test_a_graph_that_cannot_be_run_says_nothing_on_standard_output(folder, capfd):
    """Results stand there, and nothing else."""
    path = folder / "encoder.onnx"
    path.write_bytes(path.read_bytes().replace(b"Transpose_", b"Transp\xe6se_", 1))
    with pytest.raises(ModelFolderError, match="cannot be run"):
        OnnxEngine(folder, threads=1)
    assert capfd.readouterr().out == ""
