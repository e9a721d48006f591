"""An ensemble folder: models that differ only by their seed, and predict together (`fit --seeds`).

    seeds.json          the seeds, and the search that was chosen for the ensemble
    seed-1/ seed-2/ …   a model folder each
    calibration.json metrics.json README.md report.html evaluation/   of the ensemble

It is written atomically, once all models are trained. Until then they are in `{out}.training/`, where
seeds.json is written first.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dragoman.configuration import merge_settings
from dragoman.errors import ModelFolderError
from dragoman.model_folder.calibration import read_calibration
from dragoman.model_folder.folder import SEEDS, ModelFolder, is_model_folder
from dragoman.settings import Settings
from dragoman.storage import consistent_read, describe_first, read_bytes, staged_file

_MAX_BYTES = 1 << 16


class SeedIndex(BaseModel):
    """The content of seeds.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    version: Literal[1] = 1
    seeds: Annotated[tuple[int, ...], Field(min_length=1, max_length=1000, strict=False)]
    decoding: dict[Literal["beam_size", "length_penalty"], int | float] = {}
    """Of the ensemble, in place of those of the first model."""

    @classmethod
    def read(cls, folder: Path) -> "SeedIndex | None":
        """Return the index in `folder`; None: there is none.

        Raises: ModelFolderError, when it is invalid.
        """
        path = folder / SEEDS
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(read_bytes(path, _MAX_BYTES))
        except ValidationError as error:
            raise ModelFolderError(f"{path}: {describe_first(error)}; copy it again") from error

    def write(self, folder: Path) -> None:
        """Write it into `folder`, atomically."""
        with staged_file(folder / SEEDS) as temporary:
            temporary.write_text(self.model_dump_json() + "\n", encoding="utf-8")

    def list_models(self, folder: Path) -> list[Path]:
        """Return the model folder of each seed in `folder`, which may not be there yet."""
        return [folder / f"seed-{seed}" for seed in self.seeds]

    def override(self, settings: Settings) -> Settings:
        """Return the settings of the first model with the search of the ensemble."""
        values: dict[str, Any] = {f"decoding.{name}": one for name, one in self.decoding.items()}
        return merge_settings(settings, values, overrule=True)


def list_models(path: Path) -> list[Path]:
    """Return the model folders of an ensemble folder; [path] if it is none.

    Raises: ModelFolderError, when one is missing; names it.
    """
    index = SeedIndex.read(path)
    if index is None:
        return [path]
    found = index.list_models(path)
    if missing := [one.name for one in found if not is_model_folder(one)]:
        out = re.sub(r"\.training$", "", str(path))
        raise ModelFolderError(
            f"{path}: not all of its {len(found)} models are there: {', '.join(missing)} missing; "
            f"resume the training with `dragoman fit --out {out} --resume`, or copy it again"
        )
    return found


def read_models(path: Path) -> list[ModelFolder]:
    """Return the model at `path`, or all models of an ensemble folder; without their metrics.

    The models of an ensemble have its search, and the first one its calibration.

    Raises: ModelFolderError: see `ModelFolder.read`.
    """
    index = SeedIndex.read(path)
    if index is None:
        return [ModelFolder.read(path, with_metrics=False)]
    with consistent_read(path):
        models = [ModelFolder.read(one, with_metrics=False) for one in list_models(path)]
        calibration = read_calibration(path)
        return [
            replace(
                one,
                settings=index.override(one.settings),
                calibration=None if number else calibration,
            )
            for number, one in enumerate(models)
        ]
