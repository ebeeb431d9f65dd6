"""The likelihood of a whole split: bits per dimension, rate by layer, a tighter bound, active units."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor

from vdvae_repr.config import path_of, shown, whole_number, with_hints
from vdvae_repr.data.loader import default_workers, map_ahead
from vdvae_repr.data.open import open_source, warn
from vdvae_repr.data.source import RESIZE, Preprocessing, Source, about_enlarged, read_images
from vdvae_repr.encoders.load import loaded, refuse_unfetched
from vdvae_repr.errors import CheckpointError, DataError, TaskError, counted, printable
from vdvae_repr.model.base import ImageModel
from vdvae_repr.model.distributions import LayerPosterior
from vdvae_repr.model.noise import seeded_noise
from vdvae_repr.model.precision import arithmetic
from vdvae_repr.training.draws import mark_held_back
from vdvae_repr.training.plan import read_run
from vdvae_repr.training.reading import (
    LEFT_OUT,
    about_mended,
    content_checksums,
    leave_out,
    process,
    reopened,
    unreadable,
)
from vdvae_repr.training.seen import about_unknown, begun_from, count_trained_on

ACTIVE_VARIANCE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Means over a split; an interval is the mean plus and minus 1.96 standard errors over images."""

    source: str
    split: str
    images: int
    seed: int
    nats: float
    """Negative ELBO, nats an image; of a PixelCNN the negative log-likelihood, which is exact."""
    bits_per_dim: float
    bits_per_dim_interval: tuple[float, float] | None
    """None for a single image."""
    distortion_nats: float
    rate_nats: float
    """0 of a PixelCNN, which has no latents."""
    kl_nats: dict[str, float]
    """KL by layer, nats an image."""
    kl_nats_by_resolution: dict[str, float]
    active_units: dict[str, tuple[int, int]]
    """By layer: units (each channel at each position) whose posterior mean varies by more than 0.01 over the
    images (Burda 2016, arXiv:1509.00519, section 4.2); and all. The posterior mean is given the draws of the
    layers above, so that a unit which does no more than follow these counts too."""
    importance_samples: int
    importance_bits_per_dim: float | None
    """The importance-weighted bound (Burda 2016, arXiv:1509.00519, equation 8); None without samples."""
    importance_interval: tuple[float, float] | None
    left_out: dict[str, str] = field(default_factory=dict)
    """Of the images that could not be read, by id, the reason."""

    def to_json(self) -> str:
        """Serialise to one line of JSON; every number is finite."""
        return json.dumps(asdict(self), allow_nan=False)


@dataclass(frozen=True)
class Scores:
    """What `score` finds, each image once, nats, float64."""

    distortion: Tensor
    """(N,)."""
    kl: Tensor
    """By layer, (N, layers)."""
    variance: list[Tensor]
    """By layer, variance over the images of each unit's posterior mean, (zdim, R, R); none if unasked."""
    importance: Tensor | None
    """The negative importance-weighted bound, (N,); None without samples."""


@with_hints
@arithmetic()
def evaluate(
    model: ImageModel | str | Path,
    data: str | Path | Source | NDArray[np.uint8] | None,
    *,
    split: str | None = None,
    run: str | Path | None = None,
    crop: int | None = None,
    resize: Literal["bicubic", "bilinear"] = "bicubic",
    on_error: str = "raise",
    batch_size: int = 16,
    importance_samples: int = 0,
    seed: int = 0,
    progress: Callable[[int], object] = lambda count: None,
) -> Evaluation:
    """Score every image of a split, once each; noise depends on seed, image id and layer alone.

    The result does not depend on the batch size beyond rounding, nor on the number of processes: those
    that `join_processes` joined each score a share of the batches, and each returns the whole result.

    Args:
        model: in eval mode; or what `load` takes.
        data: what `--data` takes; None, with `run`, for what that run was trained on. What is left out of it
            is logged as a warning.
        split: `train`, `val` or `test`; None scores every image.
        run: a run folder, whose division of its data into `train` and `held-back` replaces the source's
            splits; its crop is taken, if none is given.
        crop: central square to take first, pixels.
        resize: how a square is resized, `bicubic` or `bilinear`; both antialiased.
        on_error: "raise", or "skip" to leave out images that cannot be read, and list them.
        batch_size: images a forward pass.
        importance_samples: K of the importance-weighted bound; 0 leaves it out.
        seed: of the posterior draws.
        progress: receives the number of images finished.

    Raises:
        DataError: the split is empty, an image cannot be read, or the run was trained on other data.
        CheckpointError: the score is not finite.
        TaskError: an option that is none, or no VDVAE and no PixelCNN.
        TrainingError: images that the run was trained on have been replaced.

    Example:
        >>> vr.evaluate(model, "photos/", split="test").bits_per_dim  # doctest: +SKIP
    """
    if on_error not in ("raise", "skip"):
        raise TaskError(f"on_error: expected raise or skip, found {on_error!r}")
    batch_size = whole_number("batch_size", batch_size, 1)
    importance_samples = whole_number("importance_samples", importance_samples, 0)
    seed = whole_number("seed", seed, 0)
    if crop is not None:
        crop = whole_number("crop", crop, 1)
    if resize not in RESIZE:
        raise DataError(f"resize: expected {' or '.join(RESIZE)}, found {resize!r}")
    if run is not None and not isinstance(run, str | Path):
        raise TaskError(f"run: expected a run folder with config.toml, found {shown(run)}")
    if run is None and data is None:
        raise DataError("data: expected images to score, found none given")
    refuse_unfetched(model, "a VDVAE or a PixelCNN")
    model = loaded(model)
    if not isinstance(model, ImageModel):
        raise TaskError(
            f"expected a VDVAE or a PixelCNN, found {type(model).__name__}: others have no likelihood"
        )
    if importance_samples and not model.layers:
        raise TaskError(
            f"importance_samples: expected a VDVAE, found {model!r}, whose likelihood is exact; leave it out"
        )
    left_out: dict[str, str] = {}
    if run is not None:
        source, crop, left_out = _divided(path_of("run", run), data, crop)
    else:
        source = open_source(data)  # type: ignore[arg-type]  # None is refused above
    chosen = [
        i
        for i, name in enumerate(source.splits)
        if name != LEFT_OUT and (split is None or (name and name == split))
    ]
    if not chosen:
        known = sorted({name for name in source.splits if name and name != LEFT_OUT})
        divided = split in ("train", "held-back") and run is None and "data_sha256" in model.record
        more = '; of what a run divided, split="held-back" is known, and in Python both with run=FOLDER'
        raise DataError(
            f"{source.name}: no image is in split {split!r}; it has {', '.join(known) or 'no splits'}"
            f"{more if divided else ''}"
        )
    if run is None and (line := model.about_crop(crop)):
        warn(line)
    if line := about_enlarged(source, model.config.image_size, crop, chosen):
        warn(line)
    preprocessing = Preprocessing(size=model.config.image_size, crop=crop, resize=resize)
    if on_error == "skip":
        left_out = left_out | unreadable(source, preprocessing, chosen, default_workers())
        chosen = [i for i in chosen if source.ids[i] not in left_out]
    if split != "train" and (line := _about_trained_on(model, source, chosen, run, split)):
        warn(line)
    if left_out:
        why = next(iter(left_out.values()))  # which names the image
        all_of_them = "" if len(left_out) == 1 else "; left_out of the result lists all"
        left = counted(len(left_out), "image", "is", "are")
        warn(f"{left} left out, as {printable(why)}{all_of_them}")
    scores = score(
        model, source, preprocessing, chosen, batch_size=batch_size,
        importance_samples=importance_samples, variance=True, seed=seed, progress=progress,
    )  # fmt: skip
    _refuse_unfinite(model, scores, [source.ids[i] for i in chosen])
    found = _summary(model, source, split, seed, importance_samples, scores)
    return replace(found, left_out=left_out)


def _about_trained_on(
    model: ImageModel,
    source: Source,
    chosen: Sequence[int],
    run: str | Path | None,
    split: str | None,
) -> str:
    """Say how many of the images to score the model was trained on, or that a run's file does not tell.

    A source that its `run` divides has them as its split `train` where no hashes are known.
    """
    found = count_trained_on(model, source, chosen, default_workers())
    if found is None and run is not None:
        found = sum(source.splits[i] == "train" for i in chosen), len(chosen)
    if found is None:
        known = split is not None and not begun_from(model)
        tells = known or "data_sha256" not in model.record
        return "" if tells else about_unknown(model, model.name, f"images of {source.name}")
    count, asked = found
    if not count:
        unknown = begun_from(model)
        return about_unknown(model, model.name, f"images of {source.name}") if unknown else ""
    divided = run is not None or model.record.get("data_sha256") == source.fingerprint()
    looked_at = " looked at" if asked < len(chosen) else ""
    line = f"{source.name}: {count} of {asked} images{looked_at} are those the model was trained on"
    if split is None and divided:
        return f'{line}; split="held-back" scores those held back'
    return f"{line}, so that their score is not of new images"


def _divided(
    run: Path, data: str | Path | Source | NDArray[np.uint8] | None, crop: int | None
) -> tuple[Source, int | None, dict[str, str]]:
    """Return a source as a run divides it, the run's crop if none is given, and what the run left out."""
    if not (run / "config.toml").is_file():
        raise TaskError(f"run: expected a run folder with config.toml, found {run}")
    plan = read_run(run)
    if data is None and plan.data is None:
        raise DataError(f"data: expected the images that {run} was trained on, found none given")
    left_out = dict(plan.left_out or {})
    given = data is not None or plan.data is None
    source = leave_out(open_source(data) if given else reopened(plan.data), left_out)  # type: ignore[arg-type]
    if plan.fingerprint not in (None, source.fingerprint()):
        raise DataError(
            f"{run}: was trained on other data than {source.name}; give what it was trained on"
            f"{about_mended(left_out)}"
        )
    if plan.checksums is not None:  # else none need be read
        plan.refuse_replaced(source, *content_checksums(source, default_workers()))
    return (
        mark_held_back(source, plan.recipe),
        plan.options.crop if crop is None else crop,
        left_out,
    )


def _refuse_unfinite(model: ImageModel, scores: Scores, ids: Sequence[str]) -> None:
    """Refuse scores that are NaN or infinite.

    Raises:
        CheckpointError: there are some; the message names a parameter that is not finite, if that is why.
    """
    rows = torch.cat([scores.distortion[:, None], scores.kl], dim=1)
    if scores.importance is not None:
        rows = torch.cat([rows, scores.importance[:, None]], dim=1)
    bad = torch.isfinite(rows).all(dim=1).logical_not()
    if not bad.any():
        return
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise CheckpointError(
                f"{model.name}: the weights {name} are not finite, so there is no score; load other weights"
            )
    first = ids[int(bad.nonzero()[0])]
    where = "are not finite"
    for spec, kl in zip(model.layers, scores.kl.T, strict=True):
        if not torch.isfinite(kl).all():
            beyond = ", of more nats than float32 holds" if torch.isinf(kl).any() else ""
            where += f" from layer {spec.name} on{beyond}"
            break
    raise CheckpointError(
        f"{model.name}: the scores of {int(bad.sum())} of {len(ids)} images {where}, {first} the first; such "
        "images, or the model's shift and scale, are far from what it was trained on"
    )


@torch.no_grad()
def score(
    model: ImageModel,
    source: Source,
    preprocessing: Preprocessing,
    indices: Sequence[int],
    *,
    batch_size: int = 16,
    importance_samples: int = 0,
    variance: bool = False,
    seed: int = 0,
    progress: Callable[[int], object] = lambda count: None,
) -> Scores:
    """Return the likelihood's terms of some images; processes share the batches and all get everything."""
    rank, world = process()
    # Rows that other processes score stay 0 here, so that a sum over processes puts all together exactly.
    rows = torch.zeros(len(indices), 2 + len(model.layers), dtype=torch.float64)
    # Sums of each unit's posterior mean and of its square.
    sums = [
        torch.zeros(2, *spec.shape, dtype=torch.float64, device=model.device)
        for spec in (model.layers if variance else ())
    ]
    starts = range(len(indices))[rank * batch_size :: world * batch_size]
    workers = default_workers()

    def read_batch(start: int) -> NDArray[np.uint8]:
        return read_images(source, preprocessing, indices[start : start + batch_size])

    batches = map_ahead(read_batch, starts, workers=workers, ahead=workers + 1)
    for start, images in zip(starts, batches, strict=True):
        part = indices[start : start + batch_size]
        ids = [source.ids[i] for i in part]
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2).to(model.device)
        noise = seeded_noise(seed, ids, model.device)
        read, log_likelihood = model.log_likelihood(tensor, noise)
        mine = rows[start : start + len(part)]
        mine[:, 0] = -log_likelihood.cpu()
        for column, layer in enumerate(read, start=2):
            mine[:, column] = layer.kl.double().sum(dim=(1, 2, 3)).cpu()
        for total, layer in zip(sums, read if variance else (), strict=True):
            mean = layer.mean.double()
            total += torch.stack([mean.sum(dim=0), (mean**2).sum(dim=0)])
        if importance_samples:
            weights = [_log_weight(read, log_likelihood)]
            for draw in range(1, importance_samples):
                again = [f"{image_id}\0draw {draw}" for image_id in ids]
                noise = seeded_noise(seed, again, model.device)
                weights.append(_log_weight(*model.log_likelihood(tensor, noise)))
            bound = torch.logsumexp(torch.stack(weights), dim=0) - math.log(importance_samples)
            mine[:, 1] = -bound
        progress(len(part))
    if world > 1:
        for tensor in (rows, *sums):
            joint = tensor.to(model.device)
            torch.distributed.all_reduce(joint)
            tensor.copy_(joint)
    moments = [total.cpu() / len(indices) for total in sums]
    return Scores(
        distortion=rows[:, 0], kl=rows[:, 2:],
        variance=[square - mean**2 for mean, square in moments],
        importance=rows[:, 1] if importance_samples else None,
    )  # fmt: skip


def join_processes(device: str) -> str:
    """Join the other processes under torchrun, and return this one's device, `cuda` with its number."""
    if not torch.distributed.is_torchelastic_launched():
        return device
    state = PartialState(cpu=device == "cpu")
    return str(state.device) if device == "cuda" else device


def _log_weight(layers: Sequence[LayerPosterior], log_likelihood: Tensor) -> Tensor:
    """Return log p(x, z) - log q(z | x), (N,), float64 nats."""
    log_weight = log_likelihood.clone()
    for layer in layers:
        prior = _standard(layer.z, layer.prior_mean, layer.prior_log_std)
        posterior = _standard(layer.z, layer.mean, layer.log_std)
        log_weight += (prior - posterior).sum(dim=(1, 2, 3))
    return log_weight.cpu()


def _standard(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of a diagonal Gaussian, elementwise, less the constant that cancels; float64."""
    scaled = (z - mean).double() * torch.exp(-log_std.double())
    return -0.5 * scaled**2 - log_std.double()


def _summary(
    model: ImageModel,
    source: Source,
    split: str | None,
    seed: int,
    importance_samples: int,
    scores: Scores,
) -> Evaluation:
    dims = 3 * model.config.image_size**2

    def bits(nats: Tensor) -> tuple[float, tuple[float, float] | None]:
        mean = float(nats.mean()) / (math.log(2) * dims)
        if len(nats) == 1:
            return mean, None
        error = float(nats.std()) / math.sqrt(len(nats)) / (math.log(2) * dims)
        return mean, (mean - 1.96 * error, mean + 1.96 * error)

    negative = scores.distortion + scores.kl.sum(dim=1)
    kl = dict(zip((s.name for s in model.layers), scores.kl.mean(dim=0).tolist(), strict=True))
    by_resolution: dict[str, float] = {}
    active: dict[str, tuple[int, int]] = {}
    for spec, variance in zip(model.layers, scores.variance, strict=True):
        key = f"{spec.resolution}x{spec.resolution}"
        by_resolution[key] = by_resolution.get(key, 0.0) + kl[spec.name]
        active[spec.name] = (int((variance > ACTIVE_VARIANCE).sum()), variance.numel())
    mean_bits, interval = bits(negative)
    tighter: Any = (None, None) if scores.importance is None else bits(scores.importance)
    return Evaluation(
        source=source.name, split=split or "all", images=len(negative), seed=seed,
        nats=float(negative.mean()), bits_per_dim=mean_bits, bits_per_dim_interval=interval,
        distortion_nats=float(scores.distortion.mean()), rate_nats=sum(kl.values(), 0.0), kl_nats=kl,
        kl_nats_by_resolution=by_resolution, active_units=active,
        importance_samples=importance_samples, importance_bits_per_dim=tighter[0],
        importance_interval=tighter[1],
    )  # fmt: skip
