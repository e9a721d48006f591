"""Going on with a run that was interrupted: which run it is, and what may be changed about it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dragoman.configuration import (
    flatten_settings,
    list_set_values,
    merge_settings,
    update_stored,
)
from dragoman.errors import CheckpointError, SettingsError
from dragoman.settings import Settings
from dragoman.training.checkpoint_files import BEST, list_checkpoints, read_checkpoint
from dragoman.training.checkpoints import RECORD, find_state
from dragoman.training.early_stopping import is_out_of_patience

CHECKPOINTS, DATA = "checkpoints", "data"  # folders in `{out}.training`

# What may be set anew when a run goes on. All else is part of what is being trained.
MAY_CHANGE = (
    "training.max_steps",  # longer, or shorter
    "training.max_minutes",
    "training.patience",
    "training.batch_tokens",  # where the memory is too small; the run goes on with the next epoch
    "training.accumulate",
    "training.checkpoint_every",
    "training.loggers",
    "training.export",
    "decoding.batch_tokens",
    "evaluation.",  # all of it comes after the training
    "data.cache",
)

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What every checkpoint says of the run that it is of."""

    version: str
    settings: Settings  # resolved
    typed: Mapping[str, Any]  # what the user set, by dotted name
    precision: str
    pairs: tuple[str, ...]
    sha256: Mapping[str, str]  # by file

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return {
            "format": _FORMAT,
            "version": self.version,
            "settings": self.settings.model_dump(mode="json"),
            "typed": {name: _make_plain(value) for name, value in self.typed.items()},
            "precision": self.precision,
            "pairs": list(self.pairs),
            "sha256": dict(self.sha256),
        }

    @classmethod
    def from_dict(cls, content: object) -> "RunRecord":
        """Return what `to_dict` returned.

        Raises:
            CheckpointError: It is not that, or of another version.
        """
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise CheckpointError("it is not of a run of this version of dragoman")
        try:
            return cls(
                version=content["version"],
                settings=Settings.model_validate(update_stored(content["settings"])),
                typed=update_stored(content["typed"]),
                precision=content["precision"],
                pairs=tuple(content["pairs"]),
                sha256=content["sha256"],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"what it says of its run cannot be read: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """Where a run goes on."""

    path: Path  # of the checkpoint
    record: RunRecord
    step: int  # updates done
    validated_step: int  # updates before the last validation
    checkpoint: Mapping[str, Any] = field(repr=False)

    def is_complete(self, settings: Settings) -> bool:
        """Return whether no update is left, by the limits of `settings`."""
        training = settings.training
        if self.step >= training.max_steps:
            return True
        is_pending = find_state(self.checkpoint)["awaits_validation"]
        return not is_pending and is_out_of_patience(self.checkpoint, training.patience)


def find_resumption(folder: Path, faults: list[str]) -> Resumption | None:
    """Return the newest whole checkpoint in the folder of a run; None where there is none.

    Those that are damaged are passed over, and told in `faults`.
    """
    found: list[Resumption] = []
    for path in list_checkpoints(folder / CHECKPOINTS):
        try:
            checkpoint = read_checkpoint(path, is_mapped=True)
            resumption = Resumption(
                path=path,
                record=RunRecord.from_dict(checkpoint.get(RECORD)),
                step=int(checkpoint["global_step"]),
                validated_step=int(checkpoint["validated_step"]),
                checkpoint=checkpoint,
            )
            is_whole = bool(find_state(checkpoint)["is_whole"])
        except CheckpointError as error:
            faults.append(str(error))
        except (KeyError, TypeError, ValueError) as error:
            faults.append(f"{path}: not a checkpoint of a run: {error!r}")
        else:
            if is_whole:
                found.append(resumption)
                if path.name != BEST:
                    break  # those that follow are older
    return max(found, key=lambda one: one.step, default=None)


def merge_for_resuming(record: RunRecord, typed: Settings) -> Settings:
    """Return the settings of a run, with those typed now that may change in their place.

    Raises:
        SettingsError: Others were typed, with other values than the run has; names each.
    """
    ours = flatten_settings(record.settings)
    values = dict(list_set_values(typed))
    if faults := list(_find_changes(ours, values)):
        raise SettingsError.gather(faults)
    return merge_settings(record.settings, values, overrule=True)


def _find_changes(ours: Mapping[str, Any], typed: Mapping[str, Any]) -> Iterator[str]:
    for name, value in typed.items():
        is_free = any(
            name == one or (one[-1] == "." and name.startswith(one)) for one in MAY_CHANGE
        )
        # A typed auto stands for a choice, which was made when the run began.
        if not is_free and _make_plain(value) not in (ours[name], "auto"):
            yield (
                f"--{name}: {_make_plain(value)!r} is not {ours[name]!r}, with which the run began; "
                "leave it out to go on, or begin anew with --overwrite. What may change: "
                + ", ".join(f"{one}*" if one[-1] == "." else one for one in MAY_CHANGE)
            )


def _make_plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
