"""The engine that every model has: PyTorch, with every kind of search and every setting."""

import os
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from dragoman.data.dataset import pad
from dragoman.decoding.ensemble import Ensemble
from dragoman.decoding.hypothesis import Hypothesis
from dragoman.decoding.search import score_targets, search
from dragoman.decoding.search_config import SearchConfig
from dragoman.engines.engine import Ids, Quantization, ThreadRace, make_batches, name_call
from dragoman.errors import SettingsError
from dragoman.model.transformer import Transformer

_STATE_TOKENS = 8192  # in a batch

if hasattr(os, "register_at_fork"):
    # The threads of OpenMP are not in a forked process, which would wait for them for ever.
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


class TorchEngine:
    """One model, or an ensemble of models that share their vocabularies; they must not change.

    Args:
        device: "auto": a GPU if there is one.
        races_threads: On the CPU, search with one thread where that is quicker than with all: a
            `ThreadRace` finds out for calls of each size. The last bits of scores may change.

    Raises: SettingsError, when PyTorch does not know the device, or cannot use it.
    """

    name = "torch"
    quantization: Quantization = "float32"

    def __init__(
        self, networks: Sequence[Transformer], device: str = "auto", *, races_threads: bool = False
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
            torch.empty(1, device=self.device).item()  # "meta" has no values
        except (RuntimeError, AssertionError, TypeError) as error:  # Assertion: without CUDA
            has_gpu = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
            usable = ", ".join(["cpu", *(name for name, is_there in has_gpu.items() if is_there)])
            reason = str(error).partition("\n")[0].partition(". ")[0]
            raise SettingsError(
                f"--device {device}: PyTorch cannot use it ({reason}); give auto or one of: {usable}"
            ) from error
        self.networks = [network.to(self.device).eval() for network in networks]
        self._ensemble = Ensemble(self.networks)
        self._races_threads = races_threads and self.device.type == "cpu"
        self._races: dict[str, ThreadRace] = {}

    def search(
        self, sources: Ids, config: SearchConfig, prefixes: Ids | None = None
    ) -> list[list[Hypothesis]]:
        """Return the hypotheses of each source, best first: see `Engine.search`."""
        num_threads = torch.get_num_threads()  # 1 after a fork: others would be waited for for ever
        if not self._races_threads or num_threads == 1:
            return self._search(sources, config, prefixes)
        kind = name_call(len(sources), config.decoding.num_candidates)
        new = ThreadRace((num_threads, 1), f"PyTorch, {kind}: threads")
        race = self._races.setdefault(kind, new)
        layout, started_s = race.choose(), time.perf_counter()
        torch.set_num_threads(layout)
        try:
            found = self._search(sources, config, prefixes)
        finally:
            torch.set_num_threads(num_threads)  # a training in this process keeps its own
        num_tokens = sum(map(len, sources)) + sum(len(one[0].ids) for one in found if one)
        race.record(layout, (time.perf_counter() - started_s) / max(1, num_tokens))
        return found

    def _search(
        self, sources: Ids, config: SearchConfig, prefixes: Ids | None
    ) -> list[list[Hypothesis]]:
        found: list[list[Hypothesis]] = [[] for _ in sources]
        costs = [len(ids) * config.decoding.num_candidates for ids in sources]
        for batch in make_batches(costs, config.decoding.batch_tokens):
            given = None if prefixes is None else [prefixes[i] for i in batch]
            padded = self._pad([sources[i] for i in batch])
            hypotheses = search(self._ensemble, padded, config, given)
            for i, best_first in zip(batch, hypotheses, strict=True):
                found[i] = best_first
        return found

    def score(self, sources: Ids, targets: Ids, config: SearchConfig) -> list[Hypothesis]:
        """Return each target with its log-probabilities: see `Engine.score`."""
        found: dict[int, Hypothesis] = {}
        costs = [max(len(s), len(t) + 1) for s, t in zip(sources, targets, strict=True)]
        for batch in make_batches(costs, config.decoding.batch_tokens):
            padded, given = self._pad([sources[i] for i in batch]), [targets[i] for i in batch]
            scored = score_targets(self.networks, padded, given, config.decoding)
            found.update(zip(batch, scored, strict=True))
        return [found[i] for i in range(len(sources))]

    @torch.no_grad()
    def pool_states(self, sources: Ids) -> NDArray[np.float32]:
        """Return the mean of the encoder's states of each source, of length 1: (N, D).

        They are those of the first model.
        """
        found = np.empty((len(sources), self.networks[0].d_model), np.float32)
        for batch in make_batches([len(ids) for ids in sources], _STATE_TOKENS):
            memory = self.networks[0].encode(self._pad([sources[i] for i in batch]))
            is_token = memory.is_token[..., None]  # (B, S) -> (B, S, 1)
            means = (memory.states * is_token).sum(dim=1) / is_token.sum(dim=1)
            found[batch] = torch.nn.functional.normalize(means, dim=1).cpu().numpy()
        return found

    def _pad(self, rows: Ids) -> torch.Tensor:
        return pad(rows, self.networks[0].pad_id).to(self.device)
