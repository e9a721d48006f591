"""The faults that a user can mend; each says where, what was found, and what to do."""

from collections.abc import Sequence


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
