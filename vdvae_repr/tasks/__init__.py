"""Tasks, one file each: a frozen dataclass of its options, its split, and its figures.

Importing this makes all of them known by name to `vr.probe`.
"""

from vdvae_repr.probing.engine import probe
from vdvae_repr.probing.task import Task
from vdvae_repr.tasks.classification import Classification
from vdvae_repr.tasks.encoding import Encoding
from vdvae_repr.tasks.face_id import FaceId
from vdvae_repr.tasks.face_verification import FaceVerification
from vdvae_repr.tasks.factors import Factors
from vdvae_repr.tasks.few_shot import FewShot
from vdvae_repr.tasks.omniglot_oneshot import OmniglotOneShot
from vdvae_repr.tasks.rsa import RSA

__all__ = [
    "Classification",
    "Encoding",
    "FaceId",
    "FaceVerification",
    "Factors",
    "FewShot",
    "OmniglotOneShot",
    "RSA",
    "Task",
    "probe",
]
