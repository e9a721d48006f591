"""Train an encoder-decoder Transformer on your own pairs, check it honestly, and ship it.

    import dragoman
    model = dragoman.fit("pairs.tsv", out="model")
    model.predict(["3. Oktober 2024"])

The names below are loaded on first use (PEP 562): importing the package loads neither torch nor
lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from dragoman.errors import DragomanError as DragomanError
from dragoman.errors import name_extra as _name_extra

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from dragoman.commands.compare import compare as compare
    from dragoman.commands.evaluate import evaluate as evaluate
    from dragoman.commands.evaluate import evaluate_outputs as evaluate_outputs
    from dragoman.commands.explain import Explanation as Explanation
    from dragoman.commands.explain import explain as explain
    from dragoman.commands.export import export as export
    from dragoman.commands.fit import fit as fit
    from dragoman.commands.import_model import import_model as import_model
    from dragoman.commands.inspect import derive_schema as derive_schema
    from dragoman.commands.inspect import inspect as inspect
    from dragoman.commands.learning_curve import learning_curve as learning_curve
    from dragoman.commands.suggest import suggest as suggest
    from dragoman.commands.tune import tune as tune
    from dragoman.configuration import read_settings as read_settings
    from dragoman.data.dataset import Batch as Batch
    from dragoman.errors import DataError as DataError
    from dragoman.errors import SettingsError as SettingsError
    from dragoman.evaluation.evaluation import Evaluation as Evaluation
    from dragoman.evaluation.evaluation import Scores as Scores
    from dragoman.model.transformer import Transformer as Transformer
    from dragoman.predictor import Prediction as Prediction
    from dragoman.predictor import Predictor as Predictor
    from dragoman.reading.pairs import Pair as Pair
    from dragoman.reading.pairs import read_pairs as read_pairs
    from dragoman.settings import Settings as Settings
    from dragoman.tokenizers.tokenizer import PairTokenizer as PairTokenizer
    from dragoman.tokenizers.tokenizer import Tokenizer as Tokenizer
    from dragoman.training.datamodule import PairDataModule as PairDataModule
    from dragoman.training.lightning_transformer import LightningTransformer as LightningTransformer

    load = Predictor.load

_HOMES = {
    "Batch": "dragoman.data.dataset",
    "DataError": "dragoman.errors",
    "Evaluation": "dragoman.evaluation.evaluation",
    "Explanation": "dragoman.commands.explain",
    "LightningTransformer": "dragoman.training.lightning_transformer",
    "Pair": "dragoman.reading.pairs",
    "PairDataModule": "dragoman.training.datamodule",
    "PairTokenizer": "dragoman.tokenizers.tokenizer",
    "Prediction": "dragoman.predictor",
    "Predictor": "dragoman.predictor",
    "Scores": "dragoman.evaluation.evaluation",
    "Settings": "dragoman.settings",
    "SettingsError": "dragoman.errors",
    "Tokenizer": "dragoman.tokenizers.tokenizer",
    "Transformer": "dragoman.model.transformer",
    "compare": "dragoman.commands.compare",
    "derive_schema": "dragoman.commands.inspect",
    "evaluate": "dragoman.commands.evaluate",
    "evaluate_outputs": "dragoman.commands.evaluate",
    "explain": "dragoman.commands.explain",
    "export": "dragoman.commands.export",
    "fit": "dragoman.commands.fit",
    "import_model": "dragoman.commands.import_model",
    "inspect": "dragoman.commands.inspect",
    "learning_curve": "dragoman.commands.learning_curve",
    "read_pairs": "dragoman.reading.pairs",
    "read_settings": "dragoman.configuration",
    "suggest": "dragoman.commands.suggest",
    "tune": "dragoman.commands.tune",
}
__all__ = ["DragomanError", "load", "predict", *sorted(_HOMES)]


def predict(
    path: "str | Path", sources: "Iterable[str]", features: "Iterable[Sequence[str]] | None" = None
) -> list[str]:
    """Return the output of the model in the folder `path` for each source: `Predictor.predict`."""
    from dragoman.predictor import Predictor

    return Predictor.load(path).predict(sources, features)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("dragoman")
    if name == "load":
        from dragoman.predictor import Predictor

        return Predictor.load
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _name_extra(f"dragoman.{name}"):
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "__doc__", "__file__", "__name__", "__path__"])
