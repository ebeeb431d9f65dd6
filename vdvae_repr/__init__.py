"""vdvae-repr: what does each layer of a very deep VAE know, and what is it good for?

Importing this is instant; each name is loaded from its module when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vdvae_repr.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LayerError,
    StoreError,
    TaskError,
    Terminated,
    TrainingError,
    VDVAEReprError,
)

if TYPE_CHECKING:
    from vdvae_repr import brain
    from vdvae_repr.config import Config, ModelConfig, PixelCNNConfig, StudentConfig
    from vdvae_repr.data.open import open_source
    from vdvae_repr.data.source import Source
    from vdvae_repr.encoders.base import TorchEncoder
    from vdvae_repr.encoders.export import export_model
    from vdvae_repr.encoders.load import load
    from vdvae_repr.heads.few_shot import NearestPrototype
    from vdvae_repr.heads.linear import LogisticProbe, Ridge, RidgeRegressor
    from vdvae_repr.heads.neighbors import NearestNeighbor, WeightedNeighbors
    from vdvae_repr.heads.sgd import SGDProbe
    from vdvae_repr.latents.exchange import import_latents
    from vdvae_repr.latents.extract import extract
    from vdvae_repr.latents.side_by_side import side_by_side
    from vdvae_repr.latents.store import LatentStore
    from vdvae_repr.latents.store import open_store as open
    from vdvae_repr.latents.transformer import LatentTransformer
    from vdvae_repr.model.pixelcnn import PixelCNN
    from vdvae_repr.model.student import Student
    from vdvae_repr.model.vdvae import VDVAE
    from vdvae_repr.probing.report import Report
    from vdvae_repr.probing.similarity import compare
    from vdvae_repr.probing.task import Problem, Split, Task
    from vdvae_repr.report import plots as plot
    from vdvae_repr.results import Result
    from vdvae_repr.tasks import (
        RSA,
        Classification,
        Encoding,
        FaceId,
        FaceVerification,
        Factors,
        FewShot,
        OmniglotOneShot,
        probe,
    )
    from vdvae_repr.training.distill import distill
    from vdvae_repr.training.evaluate import evaluate
    from vdvae_repr.training.trainer import train

__version__ = "0.1.0"

_MODULES = {
    "Classification": "tasks",
    "Encoding": "tasks",
    "FaceId": "tasks",
    "FaceVerification": "tasks",
    "Factors": "tasks",
    "FewShot": "tasks",
    "OmniglotOneShot": "tasks",
    "RSA": "tasks",
    "probe": "tasks",
    "Task": "tasks",
    "Problem": "probing.task",
    "Split": "probing.task",
    "Report": "probing.report",
    "Result": "results",
    "LogisticProbe": "heads.linear",
    "Ridge": "heads.linear",
    "RidgeRegressor": "heads.linear",
    "SGDProbe": "heads.sgd",
    "NearestNeighbor": "heads.neighbors",
    "WeightedNeighbors": "heads.neighbors",
    "NearestPrototype": "heads.few_shot",
    "Config": "config",
    "brain": "brain",
    "compare": "probing.similarity",
    "import_latents": "latents.exchange",
    "open": "latents.store",
    "ModelConfig": "config",
    "PixelCNN": "model.pixelcnn",
    "PixelCNNConfig": "config",
    "StudentConfig": "config",
    "evaluate": "training.evaluate",
    "distill": "training.distill",
    "export_model": "encoders.export",
    "Student": "model.student",
    "extract": "latents.extract",
    "LatentStore": "latents.store",
    "side_by_side": "latents.side_by_side",
    "LatentTransformer": "latents.transformer",
    "load": "encoders.load",
    "open_source": "data.open",
    "plot": "report.plots",
    "Source": "data.source",
    "TorchEncoder": "encoders.base",
    "VDVAE": "model.vdvae",
    "train": "training.trainer",
}

_INSIDE = {"open": "open_store"}  # names that differ inside their modules

__all__ = [
    "CheckpointError",
    "Classification",
    "Config",
    "ConfigError",
    "DataError",
    "Encoding",
    "FaceId",
    "FaceVerification",
    "Factors",
    "FewShot",
    "LatentStore",
    "LatentTransformer",
    "LayerError",
    "LogisticProbe",
    "ModelConfig",
    "NearestNeighbor",
    "NearestPrototype",
    "OmniglotOneShot",
    "PixelCNN",
    "PixelCNNConfig",
    "Problem",
    "RSA",
    "Report",
    "Result",
    "Ridge",
    "RidgeRegressor",
    "SGDProbe",
    "Source",
    "Split",
    "StoreError",
    "Student",
    "StudentConfig",
    "Task",
    "TaskError",
    "Terminated",
    "TorchEncoder",
    "TrainingError",
    "VDVAE",
    "VDVAEReprError",
    "WeightedNeighbors",
    "brain",
    "compare",
    "distill",
    "evaluate",
    "export_model",
    "extract",
    "import_latents",
    "load",
    "open",
    "open_source",
    "plot",
    "probe",
    "side_by_side",
    "train",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'vdvae_repr' has no attribute {name!r}")
    module = importlib.import_module(f"vdvae_repr.{_MODULES[name]}")
    return module if name in ("plot", "brain") else getattr(module, _INSIDE.get(name, name))
