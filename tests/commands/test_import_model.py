"""Models of other programs become model folders that compute the same."""

import math
import sys
from types import ModuleType

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

import dragoman
from dragoman.cli import main
from dragoman.errors import DragomanError
from dragoman.model.transformer import sinusoidal_positions

LETTERS = ["<unk>", "a", "b", "<pad>", "c", "d", "<bos>", "e", "<eos>"]  # in any order
SOURCES = ["abc", "a", "edcba", "bbb", "ceda", "dddda", "ab", "eeeeee"]


class Script(nn.Module):
    """What people write: names, order of ids and scale are their own."""

    def __init__(self, *, scale, frame, norm_first, activation, learned, bias, has_norm):
        super().__init__()
        self.scale, self.frame = scale, frame
        self.src_tok_emb, self.tgt_tok_emb = nn.Embedding(9, 16), nn.Embedding(9, 16)
        nn.init.normal_(self.src_tok_emb.weight, std=1 / scale)
        nn.init.normal_(self.tgt_tok_emb.weight, std=1 / scale)
        if learned:
            self.pos = nn.Embedding(40, 16)
        else:
            self.register_buffer("pe", sinusoidal_positions(0, 40, 16)[:, None])
        layer = {"dropout": 0.0, "activation": activation, "batch_first": True, "norm_first": norm_first,
                 "bias": bias}  # fmt: skip
        norm = [nn.LayerNorm(16) if has_norm else None for _ in range(2)]
        self.core = nn.ModuleDict(
            {
                "enc": nn.TransformerEncoder(
                    nn.TransformerEncoderLayer(16, 2, 32, **layer),
                    2,
                    norm[0],
                    enable_nested_tensor=False,
                ),
                "dec": nn.TransformerDecoder(
                    nn.TransformerDecoderLayer(16, 2, 32, **layer), 1, norm[1]
                ),
            }
        )
        self.generator = nn.Linear(16, 9)
        for parameter in self.core.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
            else:
                nn.init.normal_(parameter, std=0.4)
        nn.init.normal_(self.generator.weight)

    def embed(self, ids, embedding):
        positions = self.pos.weight if hasattr(self, "pos") else self.pe[:, 0]
        return embedding(torch.tensor([ids])) * self.scale + positions[: len(ids)]

    @torch.no_grad()
    def translate(self, text):
        ids = [LETTERS.index(letter) for letter in text]
        ids = [*([6] if "begin" in self.frame else []), *ids, *([8] if "end" in self.frame else [])]
        memory, out = self.core["enc"](self.embed(ids, self.src_tok_emb)), [6]
        while len(out) < 12 and out[-1] != 8:
            mask = nn.Transformer.generate_square_subsequent_mask(len(out))
            states = self.core["dec"](self.embed(out, self.tgt_tok_emb), memory, tgt_mask=mask)
            logits = self.generator(states[0, -1])
            logits[[0, 3, 6]] = -math.inf
            out.append(int(logits.argmax()))
        return "".join(LETTERS[i] for i in out[1:] if i != 8)


def make(folder, *, seed=0, **options):
    """Write a script's model into `folder`, and return its outputs."""
    options = {"scale": 4.0, "frame": "end", "norm_first": False, "activation": "relu", "learned": False,
               "bias": True, "has_norm": True, **options}  # fmt: skip
    torch.manual_seed(seed)
    script = Script(**options).eval()
    folder.mkdir()
    torch.save({"epoch": 3, "model": script.state_dict()}, folder / "weights.pt")
    (folder / "vocab.txt").write_text("\n".join(LETTERS) + "\n")
    facts = {"nhead": 2, "embedding_scale": options["scale"], "source": {"kind": "characters"}}
    facts |= {name: options[name] for name in ("frame", "norm_first", "activation")}
    (folder / "import.yaml").write_text(yaml.safe_dump(facts))
    pairs = [(source, script.translate(source)) for source in SOURCES]
    (folder / "check.tsv").write_text("".join(f"{source}\t{output}\n" for source, output in pairs))
    return script


LONGEST = {"decoding": {"max_length": 11}, "data": {"header": "no", "broken_rows": "keep_empty"}}


def bring(folder, out, **options):
    return dragoman.import_model(folder, "pytorch", folder / "check.tsv", out, LONGEST, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_first": True, "activation": "gelu", "frame": "begin_end", "scale": 1.0},
        {"learned": True, "frame": "none", "bias": False, "seed": 2},
        {"has_norm": False, "frame": "begin"},
    ],
    ids=lambda one: "-".join(one) or "stock",
)
def test_an_imported_model_gives_the_outputs_of_the_script(options, tmp_path):
    script = make(tmp_path / "old", **options)
    model = bring(tmp_path / "old", tmp_path / "new", min_equal=1.0)
    more = ["cab", "eda", "beee", "adadad"]
    outputs = [best[0].text for best in model.predict_n_best(more)]
    assert outputs == [script.translate(source) for source in more]
    assert len({*outputs}) > 1


def test_an_imported_folder_is_a_model_folder_like_others(tmp_path, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    make(old, frame="begin_end")
    command = ["import", old, "--from", "pytorch", "--check", old / "check.tsv", "--out", new]
    assert main([str(word) for word in (*command, "--decoding.max_length", 11)]) == 0
    assert "8 of 8 outputs are those of the old program" in capsys.readouterr().err
    assert main([*map(str, command)]) == 2
    assert "already there; choose another --out, or replace it" in capsys.readouterr().err
    assert dragoman.evaluate(new, old / "check.tsv").scores.exact_match == 100.0
    for to in ("ctranslate2", "pytorch"):
        assert dragoman.export(new, to).is_equal
    dragoman.export(new, "html")  # where there is a browser, the ids of texts are compared
    assert (
        main(["evaluate", *map(str, (new, old / "check.tsv", "--report", tmp_path / "r.html"))])
        == 0
    )
    tuned = dragoman.fit(old / "check.tsv", tmp_path / "tuned", {
        "training": {"start_from": str(new), "max_steps": 1, "loggers": "none"},
        "data": {"valid": [str(old / "check.tsv")]},
    })  # fmt: skip
    assert tuned.tokenizer.encode_sources(["a"], [()]) == [[1, 4, 2]]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"nhead": 1}, "of 8 outputs are those of the old program, fewer than --min-equal 0.95"),
        ({"nhead": "many"}, "import.yaml: nhead"),
        ({"head": 1}, "import.yaml: head"),
        ({"embedding_scale": 1.0}, "fewer than --min-equal"),
        ({"source": {"kind": "bpe"}}, "import with kind symbols"),
        ({"tensors": {"output.weight": "gone"}}, r"not found: output.weight; .* generator.weight \(9, 16\)"),
    ],
    ids=str,
)  # fmt: skip
def test_what_differs_is_refused_and_nothing_is_written(facts, said, tmp_path):
    old = tmp_path / "old"
    make(old)
    given = yaml.safe_load((old / "import.yaml").read_text())
    (old / "import.yaml").write_text(yaml.safe_dump({**given, **facts}))
    with pytest.raises(DragomanError, match=said):
        bring(old, tmp_path / "new")
    assert [one.name for one in tmp_path.iterdir()] == ["old"]


def test_weights_with_other_objects_are_not_read(tmp_path):
    make(tmp_path / "old")
    torch.save({"model": {}, "config": tmp_path}, tmp_path / "old/weights.pt")
    with pytest.raises(DragomanError, match=r"could run code; .* torch.save\(model.state_dict"):
        bring(tmp_path / "old", tmp_path / "new")


def test_a_vocabulary_may_have_other_names_for_special_tokens(tmp_path):
    script = make(tmp_path / "old")
    names = {"<unk>": "?", "<pad>": "PAD", "<bos>": "GO", "<eos>": "!"}
    lines = "\n".join(names.get(one, one) for one in LETTERS)
    (tmp_path / "old/vocab.txt").write_text(lines)
    with pytest.raises(DragomanError, match="no eos token"):
        bring(tmp_path / "old", tmp_path / "new")
    with (tmp_path / "old/import.yaml").open("a") as file:
        file.write("special: {unk: 0, pad: 3, bos: 6, eos: 8}\n")
    save_file(script.state_dict(), tmp_path / "old/weights.safetensors")
    (tmp_path / "old/weights.pt").unlink()
    model = bring(tmp_path / "old", tmp_path / "new", min_equal=1.0)
    assert model.tokenizer.source.tokens(range(6)) == ["<pad>", "<s>", "</s>", "<unk>", "a", "b"]


def test_joeynmt_is_read_by_its_own_names(tmp_path):
    old = tmp_path / "old"
    script = make(old, has_norm=False)  # its post-norm
    names = {
        "self_attn.out_proj": "{0}_{0}_att.output_layer", "multihead_attn.out_proj": "src_trg_att.output_layer",
        "linear1": "feed_forward.pwff_layer.0", "linear2": "feed_forward.pwff_layer.3",
        "norm1": "{1}layer_norm", "norm2": "{2}layer_norm", "norm3": "feed_forward.layer_norm",
        "self_attn.in_proj_": "{0}_{0}_att.$_layer.", "multihead_attn.in_proj_": "src_trg_att.$_layer.",
    }  # fmt: skip
    state = {
        "src_embed.lut.weight": script.src_tok_emb.weight, "trg_embed.lut.weight": script.tgt_tok_emb.weight,
        "decoder.output_layer.weight": script.generator.weight,
        "encoder.pe.pe": script.pe.transpose(0, 1), "decoder.pe.pe": script.pe.transpose(0, 1),
    }  # fmt: skip
    script.generator.bias.data.zero_()
    for name, tensor in script.core.state_dict().items():
        part, _, rest = name.partition(".")
        words = ("src", "", "feed_forward.") if part == "enc" else ("trg", "x_", "dec_")
        for stock, theirs in names.items():
            rest = rest.replace(stock, theirs.format(*words))
        parts = {"q": 0, "k": 1, "v": 2} if "$" in rest else {"$": 0}
        for letter, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            state[f"{part}oder.{rest.replace('$', letter)}"] = piece
    torch.save({"model_state": state, "steps": 9}, old / "weights.pt")
    (old / "weights.pt").rename(old / "9.ckpt")
    side = {"level": "char", "lang": "x"}
    stack = {"type": "transformer", "num_heads": 2, "layer_norm": "post",
             "embeddings": {"embedding_dim": 16, "scale": True}}  # fmt: skip
    config = {"data": {"src": side, "trg": side}, "model": {"encoder": stack, "decoder": stack}}
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    for name in ("src_vocab.txt", "trg_vocab.txt"):
        (old / name).write_text("\n".join(LETTERS))
    pairs = [f"{source}\t{script.translate(source)}\n" for source in SOURCES]
    (old / "check.tsv").write_text("".join(pairs))
    dragoman.import_model(
        old, "joeynmt", old / "check.tsv", tmp_path / "new", LONGEST, min_equal=1.0
    )
    config["model"]["decoder"] = {**stack, "alpha": 0.5}
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        DragomanError, match=r"alpha is 1\.0 in its encoder and 0\.5 in its decoder"
    ):
        dragoman.import_model(old, "joeynmt", old / "check.tsv", tmp_path / "other", LONGEST)


class Index:
    """As yoyodyne stores it: a call of a function of its own."""

    def __reduce__(self):
        vocabularies = {"source_vocabulary": ["b", "a", "d", "c", "e"], "tie_embeddings": True}
        vocabularies["target_vocabulary"] = vocabularies["source_vocabulary"]
        return sys.modules["yoyodyne.data.indexes"]._reconstruct_index, (vocabularies,)


def test_yoyodyne_is_read_from_a_checkpoint_and_its_configuration(tmp_path, monkeypatch):
    theirs = ModuleType("yoyodyne.data.indexes")
    exec("def _reconstruct_index(state): raise AssertionError('its code is run')", theirs.__dict__)
    theirs._reconstruct_index.__module__ = theirs.__name__
    old = tmp_path / "old"
    script = make(old, norm_first=True, frame="begin_end")
    rows = [3, 0, 6, 8, 3, 3, 1, 2, 4, 5, 7]  # of ours, in their order
    script.tgt_tok_emb.weight = script.src_tok_emb.weight
    state = {
        "embeddings.weight": script.src_tok_emb.weight[rows], "classifier.weight": script.generator.weight[rows],
        "classifier.bias": script.generator.bias[rows].index_fill(0, torch.tensor([4, 5]), -99.0),
    }  # fmt: skip
    for part, name in (("enc", "source_encoder"), ("dec", "decoder")):
        state |= {
            f"{name}.module.{one}": tensor for one, tensor in script.core[part].state_dict().items()
        }
        state[f"{name}.positional_encoding.positional_encoding"] = script.pe.transpose(0, 1)
    made = {"decoder_attention_heads": 2, "index": Index()}
    with monkeypatch.context() as patch:
        for name in ("yoyodyne", "yoyodyne.data", theirs.__name__):
            patch.setitem(sys.modules, name, theirs)
        torch.save({"state_dict": state, "hyper_parameters": made}, old / "last.ckpt")
    (old / "weights.pt").unlink()
    encoder = {
        "class_path": "yoyodyne.models.modules.TransformerEncoder",
        "init_args": {"attention_heads": 2},
    }
    model = {
        "class_path": "yoyodyne.models.TransformerModel",
        "init_args": {"source_encoder": encoder},
    }
    (old / "import.yaml").write_text(
        yaml.safe_dump({"model": model, "data": {"train": "train.tsv"}})
    )
    pairs = [f"{source}\t{script.translate(source)}\n" for source in SOURCES]
    (old / "check.tsv").write_text("".join(pairs))
    dragoman.import_model(
        old, "yoyodyne", old / "check.tsv", tmp_path / "new", LONGEST, min_equal=1.0
    )
    model["class_path"] = "yoyodyne.models.RotaryTransformerModel"
    (old / "import.yaml").write_text(yaml.safe_dump({"model": model, "data": {}}))
    with pytest.raises(DragomanError, match="it is a RotaryTransformerModel"):
        dragoman.import_model(old, "yoyodyne", old / "check.tsv", tmp_path / "other", LONGEST)
