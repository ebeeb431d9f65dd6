"""Libraries of the extra `brain`, imported where they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from vdvae_repr.errors import TaskError


def needed(module: str, purpose: str) -> Any:
    """Import a module of the extra `brain`.

    Args:
        module: as `himalaya.kernel_ridge`.
        purpose: what needs it, the beginning of the message: `banded ridge`.

    Raises:
        TaskError: its library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != library:
            raise
        raise TaskError(
            f"{purpose} needs {library}, which is not installed; pip install 'vdvae-repr[brain]'"
        ) from error
