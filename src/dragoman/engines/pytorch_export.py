"""Export to plain PyTorch: the state dictionary of an `nn.Transformer`, and a script that decodes."""

import json
import runpy
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from dragoman.engines.parity import ExportedModel
from dragoman.model.transformer import LearnedPositions, Transformer
from dragoman.settings import ModelSettings
from dragoman.tokenizers.tokenizer import BOS_ID

_SCRIPT = "decode.py"


def write_pytorch(network: Transformer, model: ModelSettings, folder: Path) -> None:
    """Write the weights of `network`, its sizes and the script into `folder`."""
    sizes = ("source", network.source_vocab_size), ("target", network.target_vocab_size)
    tensors = {}
    for side, size in sizes:  # without the rows that round the matrices up
        tensors[f"{side}_embedding"] = getattr(network, f"{side}_embedding").weight[:size]
        positions = getattr(network, f"{side}_positions")
        if isinstance(positions, LearnedPositions):
            tensors[f"{side}_positions"] = positions.weight
    output, size = network.output, network.target_vocab_size
    weight = network.target_embedding.weight if output is None else output.weight
    tensors["output_weight"] = weight[:size]
    tensors["output_bias"] = weight.new_zeros(size) if output is None else output.bias[:size]
    state = network.transformer.state_dict()
    for name, content in (("transformer", state), ("embeddings", tensors)):
        # Clones, because safetensors refuses tensors that share memory, as tied ones do.
        save_file(
            {key: tensor.detach().clone() for key, tensor in content.items()},
            folder / f"{name}.safetensors",
        )
    config = {
        "transformer": {
            "d_model": model.d_model,
            "nhead": model.nhead,
            "num_encoder_layers": model.num_encoder_layers,
            "num_decoder_layers": model.num_decoder_layers,
            "dim_feedforward": model.dim_feedforward,
            "activation": model.activation,
            "norm_first": model.norm_first,
        },
        "positions": model.positions,
        "bos_id": network.bos_id,
        "eos_id": network.eos_id,
        "never_emitted": list(network.never_emitted),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    script = Path(__file__).with_name("pytorch_decode.py").read_text(encoding="utf-8")
    (folder / _SCRIPT).write_text(script, encoding="utf-8")
    for path in folder.glob("*.safetensors"):  # created for the owner only, whatever the umask
        shutil.copymode(folder / _SCRIPT, path)


class PytorchModel(ExportedModel):
    """The script in `folder`, run to check it."""

    name = "pytorch"

    def __init__(self, folder: Path, num_positions: int | None = None) -> None:
        super().__init__(num_positions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that pre-norm has no nested tensors
            self._script = runpy.run_path(str(folder / _SCRIPT))

    def decode(self, source: Sequence[int], longest: int) -> list[int]:
        """Return the greedy output of a source."""
        ids: list[int] = self._script["decode"](list(source), longest)
        return ids

    def score_tokens(self, source: Sequence[int], emitted: Sequence[int]) -> list[float]:
        """Return the log-probability of each token of an output."""
        steps = self._script["score"](list(source), [BOS_ID, *emitted[:-1]])
        return [float(step[token]) for step, token in zip(steps, emitted, strict=True)]
