"""The weights in CTranslate2's format."""

import ctranslate2
import numpy as np
import pytest

from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.ctranslate2_export import convert_model, list_token_names
from dragoman.engines.engine import UnsupportedError
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import ModelFolderError
from dragoman.model.building import copy_weights
from dragoman.settings import DecodingSettings
from exported import OPTIONS, draw_sources, make_model, name_option


def write(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return ctranslate2.Translator(str(folder), "cpu")


@pytest.mark.parametrize("option", OPTIONS, ids=name_option)
def test_another_program_can_load_the_files(tmp_path, option):
    model, tokenizer, network = make_model(**option)
    translator = write(tmp_path / "model", convert_model(model, tokenizer, copy_weights(network)))
    source_names, target_names = list_token_names(tokenizer)
    sources = draw_sources(1)
    config = SearchConfig(decoding=DecodingSettings(max_length_ratio=0.0, max_length_extra=10))
    expected = TorchEngine([network], "cpu").search(sources, config)
    found = translator.translate_batch(
        [[source_names[i] for i in ids] for ids in sources],
        beam_size=1, max_decoding_length=10, min_decoding_length=0,
    )  # fmt: skip
    for [one], other in zip(expected, found, strict=True):
        assert [target_names[i] for i in one.ids] == other.hypotheses[0]


@pytest.mark.parametrize("quantization", ["int8", "int8_float16", "float16", "bfloat16"])
def test_a_quantized_model_is_smaller_and_close(tmp_path, quantization):
    model, tokenizer, network = make_model(d_model=64, dim_feedforward=256)
    weights = copy_weights(network)
    whole, small = (
        convert_model(model, tokenizer, weights, kind, num_positions=64)
        for kind in ("float32", quantization)
    )
    share = len(small["model.bin"]) / len(whole["model.bin"])
    assert share < (0.35 if quantization.startswith("int8") else 0.55)
    names = list_token_names(tokenizer)[0]
    sources = [[names[i] for i in ids] for ids in draw_sources(2)]
    targets = [["a", "b", "c"]] * len(sources)
    scores = [
        [sum(one.log_probs) for one in write(tmp_path / name, files).score_batch(sources, targets)]
        for name, files in (("whole", whole), ("small", small))
    ]
    assert scores[1] == pytest.approx(scores[0], abs=0.5)
    assert scores[1] != scores[0]


def test_converting_does_not_change_the_weights():
    model, tokenizer, network = make_model(tie_embeddings=True)
    weights = copy_weights(network)
    before = {name: value.copy() for name, value in weights.items()}
    for quantization in ("float32", "int8", "float16", "bfloat16"):
        convert_model(model, tokenizer, weights, quantization)
    assert all(np.array_equal(value, weights[name]) for name, value in before.items())


@pytest.mark.parametrize("option", OPTIONS, ids=name_option)
def test_each_array_that_is_missing_or_of_another_shape_is_named(option):
    model, tokenizer, network = make_model(**option)
    weights = copy_weights(network)
    for name, value in weights.items():
        others = {other: array for other, array in weights.items() if other != name}
        with pytest.raises(ModelFolderError, match=f"{name}: found nothing, expected "):
            convert_model(model, tokenizer, others)
        with pytest.raises(ModelFolderError, match=f"{name}: found .*, expected "):
            convert_model(model, tokenizer, {**weights, name: value[:-1]})


def test_tokens_of_the_same_name_are_refused(monkeypatch):
    model, tokenizer, network = make_model()
    names = tokenizer.target_names()
    monkeypatch.setattr(type(tokenizer), "target_names", lambda self: [*names[:-1], names[-2]])
    with pytest.raises(UnsupportedError, match="the same name"):
        convert_model(model, tokenizer, copy_weights(network))
