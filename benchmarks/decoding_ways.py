"""The ways to decode that decoding.py compares; each is a `Contender`: texts in, texts out.

What a way needs is imported where it is loaded, so that its process holds that and no more.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from decoding_contender import Entry

from dragoman.decoding.hypothesis import limit_lengths
from dragoman.model_folder.folder import ModelFolder
from dragoman.predictor import Predictor
from dragoman.reading.pairs import take_features
from dragoman.settings import DecodingSettings, Settings

if TYPE_CHECKING:
    import torch

    from dragoman.model.transformer import Memory, Transformer

Ids = list[list[int]]
Names = list[list[str]]


class _OverIds:
    """Between texts and ids, by the tokenizer of the model; and how long its outputs may be."""

    def __init__(self, path: Path) -> None:
        model_folder = ModelFolder.read(path)
        self.tokenizer, self.settings = model_folder.tokenizer, model_folder.settings

    def encode(self, texts: Sequence[str]) -> Ids:
        """Return the ids of each text; with data.leading_tags, of its tags too."""
        rows = [take_features(text, (), (), self.settings.data) for text in texts]
        return self.tokenizer.encode_sources([text for text, _ in rows], [tags for _, tags in rows])

    def decode(self, found: Ids) -> list[str]:
        """Return the texts."""
        return [*map(self.tokenizer.decode_target, found)]

    def find_limit(self, lengths: Sequence[int]) -> int:
        """Return the longest output of any source of these lengths, in tokens with its end."""
        return max(limit.longest for limit in limit_lengths(lengths, self.settings.decoding))


class Predict:
    """dragoman's default: text in, text out, by CTranslate2; its parts are not timed apart."""

    def __init__(self, entry: Entry, path: Path) -> None:
        self._predictor = Predictor.load(
            path, _settings(entry), engine="ctranslate2", device=entry.device, threads=entry.threads
        )

    def encode(self, texts: Sequence[str]) -> Sequence[str]:
        """Return them as they are."""
        return texts

    def search(self, sources: Sequence[str]) -> list[str]:
        """Return what `predict` returns."""
        return self._predictor.predict(sources)

    def decode(self, found: list[str]) -> list[str]:
        """Return them as they are."""
        return found


class CTranslate2:
    """CTranslate2 as its guide shows it: tokens in, tokens out, in batches of at most 2048 tokens.

    It sorts what it is given by length, and its replicas share the batches. Of 32 to 256 sentences
    and 512 to 8192 tokens a batch, these were as quick as any.
    """

    def __init__(self, entry: Entry, path: Path) -> None:
        import ctranslate2

        self._ids, self._beam_size = _OverIds(path), entry.beam_size
        folder = path / "ctranslate2"
        self._source_names = _read_names(folder, "source")
        self._target_ids = {name: i for i, name in enumerate(_read_names(folder, "target"))}
        self._translator = ctranslate2.Translator(
            str(folder),
            entry.device,
            compute_type=entry.compute_type,
            inter_threads=entry.replicas,
            intra_threads=entry.threads,
        )

    def encode(self, texts: Sequence[str]) -> Names:
        """Return the tokens of each text."""
        return [[self._source_names[i] for i in ids] for ids in self._ids.encode(texts)]

    def search(self, sources: Names) -> Names:
        """Return the tokens of the best output of each source."""
        results = self._translator.translate_batch(
            sources,
            max_batch_size=2048,
            batch_type="tokens",
            beam_size=self._beam_size,
            max_decoding_length=self._ids.find_limit([len(names) for names in sources]),
            min_decoding_length=0,
            max_input_length=0,
        )
        return [result.hypotheses[0] for result in results]

    def decode(self, found: Names) -> list[str]:
        """Return the texts."""
        return self._ids.decode([[self._target_ids[name] for name in names] for names in found])


class TorchEngine(_OverIds):
    """dragoman's own search, over its cached decoder."""

    def __init__(self, entry: Entry, path: Path) -> None:
        super().__init__(path)
        self._predictor = _load_torch(entry, path)

    def search(self, sources: Ids) -> Ids:
        """Return the ids of the best output of each source."""
        found = self._predictor.engine.search(sources, self._predictor.config)
        return [list(best_first[0].ids) for best_first in found]


class UsualLoop(_OverIds):
    """What the tutorials teach: at each step the whole decoder over all tokens so far, no cache.

    "usual" computes the logits of all positions, as a call of the whole model does; "usual-lean"
    those of the last one alone, as PyTorch's own translation tutorial does.
    """

    def __init__(self, entry: Entry, path: Path) -> None:
        super().__init__(path)
        self._model = _find_network(_load_torch(entry, path))
        self._is_lean, self._device = entry.kind == "usual-lean", entry.device

    def search(self, sources: Ids) -> Ids:
        """Return the ids of the output of each source; all go on until all have ended."""
        import torch

        model = self._model
        with torch.no_grad():
            memory = model.encode(_pad(sources, model.pad_id, self._device))
            ids = torch.full((len(sources), 1), model.bos_id, device=self._device)
            has_ended = torch.zeros(len(sources), dtype=torch.bool, device=self._device)
            for _ in range(self.find_limit([len(row) for row in sources])):
                following = self._find_logits(ids, memory).argmax(dim=-1)
                following = following.masked_fill(has_ended, model.pad_id)
                ids = torch.cat((ids, following[:, None]), dim=1)
                has_ended |= following == model.eos_id
                if has_ended.all():
                    break
        return _cut(ids[:, 1:].tolist(), model.eos_id)

    def _find_logits(self, ids: "torch.Tensor", memory: "Memory") -> "torch.Tensor":
        if self._is_lean:
            return self._model.project(self._model.decode_states(ids, memory)[:, -1])
        return self._model.decode(ids, memory)[:, -1]


class HuggingFace(_OverIds):
    """Hugging Face's `generate`, over a model of theirs with the weights of ours."""

    def __init__(self, entry: Entry, path: Path) -> None:
        from decoding_twin import make_twin

        super().__init__(path)
        network = _find_network(_load_torch(entry, path))
        self._beam_size, self._device = entry.beam_size, entry.device
        self._pad_id, self._bos_id, self._eos_id = network.pad_id, network.bos_id, network.eos_id
        self._model = make_twin(network, self.settings.model)

    def search(self, sources: Ids) -> Ids:
        """Return the ids of the best output of each source; all go on until all have ended."""
        ids = _pad(sources, self._pad_id, self._device)
        found = self._model.generate(
            ids,
            attention_mask=(ids != self._pad_id).long(),
            num_beams=self._beam_size,
            do_sample=False,
            early_stopping=self._beam_size > 1,  # as CTranslate2 and we: when beam_size have ended
            max_new_tokens=self.find_limit([len(row) for row in sources]),
            suppress_tokens=[self._pad_id, self._bos_id],
        )
        return _cut(found[:, 1:].tolist(), self._eos_id)


def _read_names(folder: Path, side: str) -> list[str]:
    """Return the tokens of the exported model by id; the export may name them in its own way."""
    path = folder / f"{side}_vocabulary.json"
    names: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return names


def _settings(entry: Entry) -> Settings:
    """Return what is set over the settings of the model: the search, and no cut mark in texts."""
    return Settings(decoding=DecodingSettings(beam_size=entry.beam_size, truncation_mark=""))


def _load_torch(entry: Entry, path: Path) -> Predictor:
    return Predictor.load(
        path, _settings(entry), engine="torch", device=entry.device, threads=entry.threads
    )


def _find_network(predictor: Predictor) -> "Transformer":
    from dragoman.engines.torch_engine import TorchEngine as Engine

    assert isinstance(predictor.engine, Engine)
    return predictor.engine.networks[0]


def _pad(rows: Ids, pad_id: int, device: str) -> "torch.Tensor":
    from dragoman.data.dataset import pad

    return pad(rows, pad_id).to(device)


def _cut(rows: Ids, eos_id: int) -> Ids:
    """Return the rows up to their end."""
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]
