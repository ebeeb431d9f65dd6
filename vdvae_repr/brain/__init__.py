"""Brains: what responses say of each layer. Tasks `encoding` and `rsa` ask the other way round.

`vr.brain.fit(responses, store)` returns a `Decoder`, whose `predict` writes latents that can be decoded.
"""

from vdvae_repr.brain.decoding import Decoder, Prediction, fit
from vdvae_repr.brain.images import ImageScores, score_images, two_way_identification
from vdvae_repr.brain.nsd import NSDResponses, read_nsd, synthetic_nsd
from vdvae_repr.brain.responses import Responses, read_responses

__all__ = [
    "Decoder",
    "ImageScores",
    "NSDResponses",
    "Prediction",
    "Responses",
    "fit",
    "read_nsd",
    "read_responses",
    "score_images",
    "synthetic_nsd",
    "two_way_identification",
]
