"""The README of an export to ONNX: what its files are, and a greedy search that runs as it stands."""

_LONGEST = 100  # tokens of an output in the loop


def write_onnx_card(num_positions: int | None) -> str:
    """Return the README, in Markdown; `num_positions` is None where a sequence may be of any length.

    Its one block of Python is run by a test, in the folder.
    """
    if num_positions is None:
        lengths = "Sources and outputs may be of any length."
    else:
        lengths = (
            f"Sources and outputs have at most {num_positions} tokens, their ends included: the "
            "model has learned no more positions."
        )
    longest = min(_LONGEST, num_positions or _LONGEST)
    return _CARD.replace("LENGTHS", lengths).replace("LONGEST", str(longest))


_CARD = '''# The model in ONNX

It runs wherever ONNX Runtime does, if that knows opset 20 (ONNX 1.15): neither PyTorch nor
CTranslate2 nor dragoman is needed.

- `encoder.onnx`: the sources, once, into what each step needs of them
- `decoder_step.onnx`: one token a row, into the log-probabilities of the next one, and a grown cache
- `export.json`: names, types and shapes of inputs and outputs, special ids, the weights that it was
  exported from (their SHA-256), and how its outputs compare with PyTorch's

LENGTHS

## Use

Ids in, ids out. A source ends with `eos_id`, shorter ones are padded on the right with `pad_id`; an
output begins after `bos_id`. `tokenizer.json` in the folder above says which token has which id
(`dragoman.tokenizers.pair_tokenizer.PairTokenizer` reads it, and turns text into ids and back).

```python
import json
from pathlib import Path
import numpy as np
import onnxruntime

about = json.loads(Path("export.json").read_text())
encoder = onnxruntime.InferenceSession("encoder.onnx")
decoder_step = onnxruntime.InferenceSession("decoder_step.onnx")
source_names = [value.name for value in encoder.get_outputs()]
cache_names = [v.name for v in decoder_step.get_inputs() if v.name.startswith("target_")]
pad, begin, end = about["pad_id"], about["bos_id"], about["eos_id"]

def decode(sources, longest=LONGEST):
    """Return the most probable token after token of each source: ids without begin and end."""
    ids = np.full((len(sources), max(map(len, sources))), pad, np.int64)
    for row, source in zip(ids, sources):
        row[: len(source)] = source
    source = dict(zip(source_names, encoder.run(None, {"source_ids": ids})))
    empty = np.zeros((len(sources), about["heads"], 0, about["head_width"]), np.float32)
    cache = {name: empty for name in cache_names}
    last = np.full(len(sources), begin, np.int64)
    said = []
    has_ended = np.zeros(len(sources), bool)
    while len(said) < longest and not has_ended.all():
        log_probs, *grown = decoder_step.run(None, {"ids": last, **source, **cache})
        cache = dict(zip(cache_names, grown))
        last = log_probs.argmax(axis=1)
        has_ended |= last == end
        said.append(np.where(has_ended, pad, last))
    return [[token for token in row if token != pad] for row in np.stack(said, axis=1).tolist()]

if __name__ == "__main__":
    print(decode([[4, 4, end], [4, end]]))
```

A row depends on its own source alone. To follow several hypotheses of a source, as a beam does,
repeat or reorder the rows of the inputs and of the cache alike.
'''
