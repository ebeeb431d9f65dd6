"""The errors of this package: one tree, every message one line.

    VDVAEReprError
    ├── ConfigError       a preset, a TOML key, a hyperparameter
    ├── DataError         images, labels, a source that cannot be read
    ├── CheckpointError   weights that cannot be loaded, or fit no model
    ├── LayerError        a layer selector that selects nothing
    ├── StoreError        a latent store that is damaged, incomplete or another one
    ├── TaskError         a protocol that the data at hand cannot support
    ├── TrainingError     a run that cannot go on, or cannot be resumed
    └── Terminated        SIGTERM came; a checkpoint was written

A message says what was expected, what was found and what to do. The command line prints it and
exits with 2; library users catch `VDVAEReprError`.
"""

import unicodedata


class VDVAEReprError(Exception):
    """Base of every error that this package raises on purpose.

    Its text is `printable`, whatever names of files, columns or classes stand in it.
    """

    def __str__(self) -> str:
        """Return the message as one line that moves no cursor."""
        return printable(super().__str__())


class ConfigError(VDVAEReprError):
    """A preset, configuration key or hyperparameter is unknown or impossible."""


class DataError(VDVAEReprError):
    """Images or labels cannot be read, or are not what was asked for."""


class CheckpointError(VDVAEReprError):
    """Weights cannot be loaded, or belong to another architecture."""


class LayerError(VDVAEReprError):
    """A layer selector is malformed or selects nothing."""


class StoreError(VDVAEReprError):
    """A latent store is damaged, incomplete, or belongs to another extraction."""


class TaskError(VDVAEReprError):
    """A protocol cannot be run on the data given."""


class TrainingError(VDVAEReprError):
    """A training run cannot go on, or cannot be resumed as asked."""


class Terminated(VDVAEReprError):
    """SIGTERM came to a training run, which wrote a checkpoint and stopped; exit 143."""


SKIP_ADVICE = (
    ', or leave such images out with on_error="skip", of extract, train, distill and evaluate'
)
"""Ends the message about an image that cannot be read, where nothing has been left out so far."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":. ")


def printable(text: str) -> str:
    r"""Return text that a terminal shows as it stands: without line breaks, escapes and text directions.

    What comes from a file (an id, a class name, a column) may hold control characters, line separators,
    bidirectional marks or lone surrogates; each becomes its escape as Python writes it.

    Examples:
        >>> print(printable("cat\n\x1b[2J.png"))
        cat\n\x1b[2J.png
    """
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if _is_control(c) else c for c in text)


def _is_control(c: str) -> bool:
    kind = unicodedata.category(c)
    return kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and c not in "\u200c\u200d")  # joiners


def counted(count: int, what: str, one: str = "", several: str = "") -> str:
    """Write a number of things, and a verb: `1 image`, `2 images`; with "is" and "are", `1 image is`."""
    ending, verb = ("", one) if count == 1 else ("es" if what.endswith("s") else "s", several)
    return f"{count} {what}{ending} {verb}".rstrip()
