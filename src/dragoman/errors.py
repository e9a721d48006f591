"""Errors that a user can fix. Each says where, what was found, and what to do."""

import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dragoman.characters import escape_controls


def shorten(text: str, longest: int = 80) -> str:
    """Return `text` for a message: at most `longest` characters, without control characters."""
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= longest else f"{shown[:longest]}…"


# Messages of torch, of oneDNN below it, and of CTranslate2. torch's own error is for GPUs alone.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a primitive",
    "could not create a memory",
    "could not execute a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that the machine or a GPU has too little memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


class DragomanError(Exception):
    """An error in the input: the command line shows one message and exits with code 2."""

    def __str__(self) -> str:
        return escape_controls(super().__str__())

    @classmethod
    def gather(cls, messages: Sequence[str]) -> "DragomanError":
        """Return one error that lists all of `messages` (at least one), each on a line."""
        assert messages
        if len(messages) == 1:
            return cls(messages[0])
        return cls(f"{len(messages)} errors:\n" + "\n".join(f"  - {one}" for one in messages))


class SettingsError(DragomanError):
    """A setting is unknown, of a wrong type, out of range, or conflicts with another."""


class DataError(DragomanError):
    """A data file is missing, invalid or unsuitable."""


class ModelFolderError(DragomanError):
    """A model folder is missing, incomplete, invalid, or already exists."""


class CheckpointError(DragomanError):
    """A checkpoint is missing, damaged or of another run, or the run cannot resume from it."""


class TrainingError(DragomanError):
    """Training cannot continue: the loss stays non-finite, or memory is full."""


class Stopped(KeyboardInterrupt):
    """A signal stopped the run, after its state was saved.

    `exit_code` is 128 + the number of the signal. `is_requeued`: SLURM sent it, to run the job again.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
        self.is_requeued = signal_number == getattr(signal, "SIGUSR1", None)


class MissingPackageError(SettingsError):
    """A package of an extra of dragoman is not installed."""


@contextmanager
def name_extra(what: str) -> Iterator[None]:
    """Turn the lack of a package into an error that names the extra of dragoman that brings it.

    Args:
        what: What needs the package.

    Raises: MissingPackageError, when an import failed within, of a package that an extra names.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0].replace("_", "-").lower()
        if extra := map_extras().get(name):
            raise MissingPackageError(
                f'{what} needs {name}, which is not installed: pip install "dragoman[{extra}]"'
            ) from error
        raise


def map_extras() -> dict[str, str]:
    """Return the smallest extra of dragoman that brings each package; "": it always needs it."""
    from importlib.metadata import requires  # on demand: errors are imported at each start

    pattern = r"([\w.-]+)(?:.*extra == ['\"]([\w-]+))?"
    found = [re.findall(pattern, line)[0] for line in requires("dragoman") or ()]
    sizes = Counter(extra for _, extra in found)
    smallest_last = sorted(found, key=lambda one: -sizes[one[1]])
    return {package.lower(): extra for package, extra in smallest_last}


def later_format_reason(found: object, known: int) -> str:
    """Return why a file of format `found` cannot be read: `known` is the latest one known here."""
    from importlib.metadata import version  # on demand: errors are imported at each start

    return (
        f"its format is {found}, and this dragoman ({version('dragoman')}) reads up to {known}: "
        "a later version wrote it; upgrade with `pip install --upgrade dragoman`"
    )
