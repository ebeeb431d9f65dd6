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


class VDVAEReprError(Exception):
    """Base of every error that this package raises on purpose."""


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


SKIP_ADVICE = ", or leave such images out with --on-error skip"
"""Ends the message about an image that cannot be read, where nothing has been left out so far."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":. ")
