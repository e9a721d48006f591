"""The faults that a user can mend; each says where, what was found, and what to do."""

from collections.abc import Sequence


def shorten(text: str, longest: int = 80) -> str:
    """Return `text` for a message: at most `longest` characters, without control characters."""
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= longest else f"{shown[:longest]}…"


class DragomanError(Exception):
    """A fault in what the user gave: shown on the command line as one message with exit code 2."""

    @classmethod
    def gather(cls, faults: Sequence[str]) -> "DragomanError":
        """Return one error that lists every fault of `faults` (at least one), each on its line."""
        assert faults
        if len(faults) == 1:
            return cls(faults[0])
        return cls(f"{len(faults)} faults:\n" + "\n".join(f"  - {fault}" for fault in faults))


class SettingsError(DragomanError):
    """A setting that is unknown, of a wrong type, out of range, or at odds with another."""


class DataError(DragomanError):
    """A file of pairs that is missing, broken, or cannot serve."""


class ModelFolderError(DragomanError):
    """A model folder that is missing, incomplete, foreign, or in the way."""


class CheckpointError(DragomanError):
    """A checkpoint that is missing, damaged or foreign, or a run that cannot go on from it."""


class TrainingError(DragomanError):
    """A training that cannot go on: its numbers are broken, or the memory is full."""


class Stopped(KeyboardInterrupt):
    """A signal has asked to stop, and what was to be kept is kept.

    `exit_code` is the conventional one: 128 and the number of the signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
