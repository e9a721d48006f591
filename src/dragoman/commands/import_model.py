"""Import a model of another program into a model folder, if it gives the outputs of that program."""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from dragoman.commands.fit_results import NUM_SAMPLES, check_parity
from dragoman.commands.fit_setup import check_folders
from dragoman.configuration import SettingsLike, as_settings, check_sections
from dragoman.engines.load import PARITY
from dragoman.engines.pytorch_import import Program, read_model
from dragoman.engines.torch_engine import TorchEngine
from dragoman.errors import ModelFolderError, SettingsError, shorten
from dragoman.model.building import load_network
from dragoman.predictor import Predictor
from dragoman.reading.pairs import read_pairs


def import_model(
    folder: str | Path,
    program: Program,
    check: str | Path,
    out: str | Path = "model",
    settings: SettingsLike = None,
    *,
    min_equal: float = 0.95,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda message: None,
) -> Predictor:
    """Write the model of another program in `folder` to `out`, and return it, if its outputs are equal.

    Args:
        program: What trained it: "pytorch" (a script of one's own), "joeynmt" or "yoyodyne".
        check: A file of sources, each with the output of the old program.
        settings: How `check` is read (data) and decoded (decoding); the model keeps them.
        min_equal: Share of outputs that must be equal, 0 to 1; with fewer, nothing is written.
        report: Gets messages: how many outputs are equal, and how CTranslate2 compares.

    Raises:
        DragomanError: The model computes another function than ours, cannot be read, or its outputs
            differ; says why.
    """
    folder, out, typed = Path(folder), Path(out), as_settings(settings, is_whole=False)
    check_sections(typed, "an import", ("data", "decoding"))
    if program not in get_args(Program):
        raise SettingsError(f"--from {program}: give {', '.join(get_args(Program))}")
    check_folders(out, overwrite, trains=False)
    pairs = list(read_pairs(check, typed.data))
    model_folder = read_model(folder, program, typed)
    parts = (model_folder.settings.model, model_folder.tokenizer, model_folder.weights)
    engine = TorchEngine([load_network(*parts)], "cpu")
    predictor = Predictor(engine, parts[1], model_folder.settings, [model_folder])
    found = predictor.predict_n_best([pair.source for pair in pairs])
    rows = [(pair, best[0].text if best else "") for pair, best in zip(pairs, found, strict=True)]
    wrong = [(pair, output) for pair, output in rows if output != pair.target]
    equal = f"{len(rows) - len(wrong):,} of {len(rows):,} outputs are those of the old program"
    if len(rows) - len(wrong) < min_equal * len(rows):
        shown = "".join(
            f"\n  {shorten(pair.source, 60)} -> {shorten(output, 60)}, not {shorten(pair.target, 60)}"
            for pair, output in wrong[:3]
        )
        raise ModelFolderError(
            f"{folder}: not imported: {equal}, fewer than --min-equal {min_equal:g}; look at what "
            f"is said of the model, and whether {check} was decoded in the same way (decoding.*):{shown}"
        )
    metrics: dict[str, Any] = {
        "imported_from": program,
        "num_parameters": sum(one.size for one in model_folder.weights.values()),
        "samples": [
            {"features": [], "source": pair.source, "reference": pair.target, "prediction": output}
            for pair, output in rows[:NUM_SAMPLES]
        ],
    }
    model_folder = replace(
        model_folder,
        metrics=metrics,
        card=f"# {out.resolve().name}\n\nImported from {program} by dragoman {version('dragoman')}: {equal}.\n",
    )
    _, metrics[PARITY], message = check_parity(model_folder, engine)  # the last: see load_engine
    model_folder.write(out)
    for line in (message, equal):
        report(line)
    return Predictor.load(out)
