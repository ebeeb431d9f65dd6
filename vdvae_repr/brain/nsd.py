"""The Natural Scenes Dataset's own files: reading responses from them, and writing small made-up ones.

Source: Allen et al. 2022, Nature Neuroscience 25, and the data manual of naturalscenesdataset.org. Betas of
a session stand in `betas_session01.hdf5` as `betas`, int16 (trials, Z, Y, X), 300 times the per cent signal
change; `nsd_expdesign.mat` says which image each trial showed (`masterordering`, `subjectim`, both from 1)
and which images all subjects saw (`sharedix`); masks and regions are NIfTI volumes (X, Y, Z).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

from vdvae_repr.brain.responses import read_mat
from vdvae_repr.config import path_of, whole_number, without_order
from vdvae_repr.data.hdf5 import missing_values, unwritten_chunks
from vdvae_repr.data.kinds import why_unreadable
from vdvae_repr.data.names import natural_key
from vdvae_repr.errors import DataError, TaskError, first_line
from vdvae_repr.heads.algebra import HALF_OF_MEMORY
from vdvae_repr.heads.gram import centre_and_scale
from vdvae_repr.latents.base import Latents, expect_store
from vdvae_repr.output import expect_writable, replacing

SCALE = 300  # of betas
REPETITIONS = 3
TRIALS = 50  # read at once
NAMED = 5  # regions in a line
MOST_BYTES = HALF_OF_MEMORY  # of what is gathered
NIFTI = {2: np.uint8, 4: np.int16, 8: np.int32, 16: np.float32, 64: np.float64, 512: np.uint16}

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class NSDResponses:
    """One subject's responses, as `vdvae-repr` takes them.

    Args:
        values: (3, N, V) float32, z-scored over the trials of each session; NaN where an image was not seen
            so often.
        ids: of the images (N,): their numbers among the 73,000, from 0, as in `nsd_stimuli.hdf5`.
        splits: `test` of images that all subjects saw, else `train`.
        rois: voxels of each region, by its name.
        notes: what is not as expected, or left out.
    """

    values: NDArray[np.float32]
    ids: tuple[str, ...]
    splits: tuple[str, ...]
    rois: Mapping[str, NDArray[np.intp]]
    notes: tuple[str, ...] = ()

    def save(self, path: str | Path) -> list[Path]:
        """Write `PATH`, a .npz, and of regions a table beside it, `PATH` with `-rois.csv`; return both.

        Raises:
            DataError: they cannot be written.
        """
        path, table = self.expect_place(path)
        lines = io.StringIO()
        rows = ((voxel, name) for name, own in self.rois.items() for voxel in own.tolist())
        csv.writer(lines, lineterminator="\n").writerows([("voxel", "roi"), *rows])
        try:
            with replacing(path) as file:
                np.savez(
                    file,
                    responses=self.values,
                    ids=np.array(self.ids),
                    splits=np.array(self.splits),
                )
            if self.rois:
                with replacing(table) as file:
                    file.write(lines.getvalue().encode())
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
        return [path, table] if self.rois else [path]

    @staticmethod
    def expect_place(path: str | Path) -> tuple[Path, Path]:
        """Refuse a path that `save` would refuse, before the betas are read; return both files' paths.

        Raises:
            DataError: as `save`.
        """
        path = path_of("path", path)
        if path.suffix != ".npz":
            raise DataError(f"{path}: expected the name of a .npz file")
        table = path.with_name(f"{path.stem}-rois.csv")
        for each in (path, table):
            if each.exists():
                raise DataError(f"{each}: exists already; choose another path")
        try:
            expect_writable(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
        return path, table


def read_nsd(
    betas: str | Path,
    design: str | Path,
    *,
    subject: int | None = None,
    mask: str | Path | None = None,
    rois: Sequence[str | Path] = (),
    progress: Callable[[str], None] = lambda name: None,
) -> NSDResponses:
    """Gather one subject's responses from NSD's files, a session at a time.

    Memory: the result, a session's responses twice, and 50 trials of whole volumes.

    Args:
        betas: the folder of `betas_session*.hdf5`, as `betas_fithrf_GLMdenoise_RR`; those that are there are
            taken, from the first session on.
        design: `nsd_expdesign.mat`.
        subject: from 1 to 8; if not given, the one that paths name, as `ppdata/subj01/`.
        mask: a NIfTI volume, as `nsdgeneral.nii.gz`, whose voxels above 0 are taken; every voxel if not
            given.
        rois: NIfTI volumes of whole numbers, as `prf-visualrois.nii.gz`, whose number 3 becomes the region
            `prf-visualrois-3`; no two of one name.
        progress: receives the name of each session's file when it is read.

    Raises:
        DataError: a file, or a session before others, that is missing; a file that is not as NSD's are; no
            subject, or another than paths name; more than half of the machine's memory would be taken.
    """
    folder, design = path_of("betas", betas), path_of("design", design)
    mask = None if mask is None else path_of("mask", mask)
    if why := without_order(rois, "files"):
        raise DataError(f"rois: {why}")
    volumes = [path_of("rois", path) for path in rois]
    subject = _subject_of([folder, *([] if mask is None else [mask]), *volumes], subject)
    regions = _volumes_of(volumes)
    sessions = sorted(folder.glob("betas_session*.hdf5"), key=lambda p: natural_key(p.name))
    if not sessions:
        raise DataError(f"{folder}: expected files betas_session01.hdf5, ..., found none")
    numbered: dict[str, Path] = {}
    for path in sessions:
        named = re.fullmatch(r"betas_session0*(\d+)", path.stem)
        if named is None or numbered.setdefault(named[1], path) is not path:
            raise DataError(
                f"{folder}: expected one file a session, as betas_session01.hdf5, found {path.name} too; "
                "remove it, or rename it if it is another session"
            )
    for number, (own, path) in enumerate(numbered.items(), start=1):
        if own != str(number):
            raise DataError(
                f"{folder}: expected betas_session{number:02d}.hdf5, as trials are counted from the first "
                f"session on, found {path.name}"
            )
    images, shared = _read_design(design, subject)
    flags: NDArray[np.bool_] | None = None
    if mask is not None:
        flags = read_nifti(mask).T > 0
        if not flags.any():
            raise DataError(f"{mask}: expected voxels above 0, which are taken, found none")
    rows = {image: row for row, image in enumerate(np.unique(images).tolist())}
    seen = np.zeros(len(rows), np.intp)
    values: Array | None = None
    trial = 0
    lengths: list[int] = []
    notes: list[str] = []
    known: dict[bytes, str] = {}  # which session holds what
    for path in sessions:
        with _opened(path) as file:
            data = file["betas"]
            if flags is None:
                flags = np.ones(data.shape[1:], bool)
            if data.shape[1:] != flags.shape:
                raise DataError(
                    f"{path}: expected volumes {flags.shape}, as of the mask, found {data.shape[1:]}"
                )
            if trial + len(data) > len(images):
                raise DataError(
                    f"{path}: expected {len(images)} trials at most, as in {design}, found more"
                )
            if values is None:
                size = 4 * REPETITIONS * len(rows) * int(flags.sum())
                if size > MOST_BYTES:
                    raise DataError(
                        f"{folder}: expected responses of {MOST_BYTES / 2**30:.1f} GiB at most, half of this "
                        f"machine's memory, found {size / 2**30:.1f} GiB: {len(rows)} images, seen by "
                        f"{int(flags.sum())} voxels; give a mask of fewer, as nsdgeneral.nii.gz"
                    )
                values = np.full((REPETITIONS, len(rows), int(flags.sum())), np.nan, np.float32)
            found = np.concatenate(
                [data[i : i + TRIALS][:, flags] for i in range(0, len(data), TRIALS)]
            ).astype(np.float32)
        if np.isinf(found).any():
            raise DataError(f"{path}: expected finite betas, or NaN for none, found infinity")
        found /= SCALE
        there = ~np.isnan(found).all(axis=1)
        some = found if there.all() else found[there]
        if gone := len(found) - len(some):
            notes.append(
                f"{path.name}: {gone} of {len(found)} trials {'is' if gone == 1 else 'are'} NaN"
            )
        if len(some):
            alike = int((some == some[:, :1]).all(axis=1).sum())
            # A constant's deviation is not 0 but rounding.
            varies = some.min(axis=0) < some.max(axis=0)
            digest = hashlib.blake2b(np.ascontiguousarray(some).data).digest()
            if varies.any() and (twin := known.setdefault(digest, path.name)) != path.name:
                raise DataError(f"{path}: expected a session of its own, found what {twin} holds")
            if not varies.any():
                notes.append(f"{path.name}: no voxel varies over its trials, so that all are NaN")
            elif alike and some.shape[1] > 1:
                notes.append(
                    f"{path.name}: {alike} of {len(found)} trials have one value in every voxel, as what was "
                    "never written has, and count as measured"
                )
            found = (found - some.mean(axis=0)) / np.where(varies, some.std(axis=0), np.nan)
        lengths.append(len(found))
        for one in found:
            row = rows[int(images[trial])]
            if seen[row] == REPETITIONS:
                raise DataError(f"{design}: image {images[trial]} is shown more than 3 times")
            values[seen[row], row] = one
            seen[row] += 1
            trial += 1
        progress(path.name)
    assert values is not None
    assert flags is not None
    kept = np.flatnonzero(seen)
    numbers = np.array(list(rows))[kept]
    notes += _of_other_lengths(lengths)
    found_regions = {}
    for name, volume in regions.items():
        if volume.shape != flags.shape:
            raise DataError(f"{name}: expected a volume {flags.shape}, found {volume.shape}")
        inside, outside = volume[flags], Counter(volume[(volume > 0) & ~flags].tolist())
        for number in np.unique(inside[inside > 0]).tolist():
            found_regions[f"{name}-{int(number)}"] = np.flatnonzero(inside == number)
        if outside:
            counts = {n: (outside[n], int((volume == n).sum())) for n in sorted(outside)[:NAMED]}
            listed = ", ".join(f"{o} of {a} of {name}-{int(n)}" for n, (o, a) in counts.items())
            more = f" and more of {len(outside) - NAMED} others" if len(outside) > NAMED else ""
            notes.append(f"voxels of regions outside the mask are left out: {listed}{more}")
    return NSDResponses(
        values[:, kept] if len(kept) < len(rows) else values,
        tuple(str(number) for number in numbers.tolist()),
        tuple("test" if number in shared else "train" for number in numbers.tolist()),
        found_regions,
        tuple(notes),
    )


def _subject_of(paths: Sequence[Path], subject: int | None) -> int:
    """Return the subject that is given, or that paths name, as NSD's folders `subj01` do.

    Raises:
        DataError: neither says one, or they say several.
    """
    named = {
        int(numbers[-1]): str(path)
        for path in paths
        if (numbers := re.findall(r"subj(\d+)", str(path.absolute())))
    }
    if subject is not None:
        subject = whole_number("subject", subject, 1)
    given = {} if subject is None else {subject: f"subject {subject}"}
    said = given | {number: where for number, where in named.items() if number not in given}
    if not said:
        raise DataError(
            f"subject: expected a number, as no path names one, as subj01 in {paths[0]} would; give it"
        )
    if len(said) > 1:
        raise DataError(f"subject: expected one, found {' and '.join(said.values())}")
    return next(iter(said))


def _volumes_of(rois: Sequence[Path]) -> dict[str, Array]:
    """Return the volumes of regions (Z, Y, X) by the files' names.

    Raises:
        DataError: two of one name, or one of no region, or of other numbers than whole ones.
    """
    volumes: dict[str, Array] = {}
    for path in rois:
        name = path.name.removesuffix(".gz").removesuffix(".nii")
        if name in volumes:
            raise DataError(
                f"{path}: expected regions in files of other names, by which they are called, found two "
                f"{name}; rename a copy, as lh.{name}.nii.gz"
            )
        volumes[name] = read_nifti(path).T
        numbers = volumes[name][volumes[name] > 0]
        if not numbers.size:
            raise DataError(f"{path}: expected regions by numbers above 0, found none")
        if (other := numbers[~(np.isfinite(numbers) & (numbers == np.floor(numbers)))]).size:
            raise DataError(
                f"{path}: expected regions by whole numbers, found {other[0]}; give a volume of labels"
            )
    return volumes


def _of_other_lengths(lengths: Sequence[int]) -> list[str]:
    """Return a line about sessions, other than the last, that have fewer trials than another; maybe none."""
    usual = max(lengths)
    fewer = [
        f"{length} in session {number}"
        for number, length in enumerate(lengths[:-1], start=1)
        if length < usual
    ]
    if not fewer:
        return []
    more = ", ..." if len(fewer) > NAMED else ""
    return [
        f"a session has {usual} trials, but {', '.join(fewer[:NAMED])}{more}: if trials are missing, all "
        "that follow are given the responses to other images"
    ]


def _read_design(path: Path, subject: int) -> tuple[NDArray[np.intp], set[int]]:
    """Return the image of each trial of a subject, from 0, and those that all subjects saw."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; NSD's is nsd_expdesign.mat")
    try:
        found = read_mat(path)
        order = _counted(np.ravel(found["masterordering"]))
        of_subjects = _counted(np.atleast_2d(found["subjectim"]))
        shared = set(_counted(np.ravel(found["sharedix"])).tolist())
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: expected masterordering, subjectim and sharedix ({first_line(error)})"
        ) from error
    if not 1 <= subject <= len(of_subjects):
        raise DataError(f"subject: expected 1 to {len(of_subjects)}, found {subject}")
    if order.max(initial=0) >= of_subjects.shape[1]:
        raise DataError(
            f"{path}: expected subjectim (subjects, images), and as masterordering numbers of its columns, "
            f"found {of_subjects.shape} and numbers up to {order.max() + 1}"
        )
    return of_subjects[subject - 1, order], shared


def _counted(numbers: Array) -> NDArray[np.intp]:
    """Return whole numbers that count from 1 as such that count from 0.

    Raises:
        ValueError: they do not, as those that have fractions.
    """
    if not (numbers == np.floor(numbers)).all() or np.isinf(numbers).any():
        raise ValueError("numbers that are not whole")
    if (least := numbers.min(initial=1)) < 1:
        raise ValueError(f"numbers from 1, found {least:g}")
    return numbers.astype(np.intp) - 1


def _opened(path: Path) -> h5py.File:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: expected an HDF5 file ({why_unreadable(path, error)})") from error
    if not isinstance(file.get("betas"), h5py.Dataset) or file["betas"].ndim != 4:
        file.close()
        raise DataError(f"{path}: expected an array betas (trials, Z, Y, X), found none")
    data = file["betas"]
    why = missing_values(data)
    if not why and (missing := unwritten_chunks(data)):
        why = f"has {missing} chunks of {data.chunks} that were never written"
    if why:
        file.close()
        raise DataError(f"{path}: betas {why}; copy or download it again")
    return file


def read_nifti(path: str | Path) -> Array:
    """Return the volume (X, Y, Z) of a NIfTI-1 file, .nii or .nii.gz, in the order in which it is stored.

    Raises:
        DataError: no such file, or another format.
    """
    path = path_of("path", path)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        order: Literal["<", ">"] = "<" if struct.unpack_from("<i", content)[0] == 348 else ">"
        if struct.unpack_from(f"{order}i", content)[0] != 348:
            raise ValueError("no header of NIfTI-1")
        dims = struct.unpack_from(f"{order}8h", content, 40)
        code = struct.unpack_from(f"{order}h", content, 70)[0]
        offset, slope, intercept = struct.unpack_from(f"{order}3f", content, 108)
        if code not in NIFTI:
            raise ValueError(f"data type {code}")
        kind = np.dtype(NIFTI[code]).newbyteorder(order)
        shape = dims[1 : 1 + dims[0]]
        count = int(np.prod(shape))
        volume = np.frombuffer(content, kind, count, int(offset)).reshape(shape, order="F")
    except (OSError, EOFError, struct.error, ValueError, zlib.error) as error:
        raise DataError(
            f"{path}: expected a NIfTI volume ({why_unreadable(path, error)})"
        ) from error
    if math.isfinite(slope) and slope != 0:  # else values are as they stand, as nibabel has it
        if not math.isfinite(intercept):
            raise DataError(
                f"{path}: expected an intercept beside its slope {slope:g}, found {intercept}"
            )
        if (slope, intercept) != (1, 0):
            volume = volume * slope + intercept
    return np.asarray(volume)


def write_nifti(path: str | Path, volume: Array) -> None:
    """Write a volume (X, Y, Z) as NIfTI-1, compressed where the name ends in .gz."""
    kind = np.dtype(volume.dtype)
    code = next(code for code, known in NIFTI.items() if kind == known)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, volume.ndim, *volume.shape, *[1] * (7 - volume.ndim))
    struct.pack_into("<2h", header, 70, code, 8 * kind.itemsize)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    header[344:348] = b"n+1\0"
    content = bytes(header) + volume.tobytes(order="F")
    path = Path(path)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def synthetic_nsd(
    folder: str | Path,
    store: Latents,
    sees: Mapping[str, str | None],
    *,
    voxels: int = 50,
    noise: float = 1.0,
    sessions: int = 4,
    shared: float = 0.2,
    seed: int = 0,
) -> dict[str, Path]:
    """Write a small dataset in NSD's files, of a brain whose regions see layers that are known.

    A voxel's signal is a random weighting of its layer's standardised latents, of variance 1; noise of the
    given deviation is added to each of three repetitions, so that its noise ceiling is 1 / (1 + noise^2 / 3).

    Args:
        folder: made if need be.
        store: of images and their latents.
        sees: the layer, or selector, that each region sees; None of a region that sees nothing.
        voxels: of each region.
        noise: deviation of noise.
        sessions: files of betas.
        shared: share of the images that count as seen by all subjects.
        seed: of everything drawn.

    Returns:
        paths: `stimuli`, `design`, `betas` (a folder), `mask` and `rois`.

    Raises:
        TaskError: no images, or no region. DataError: one of the files exists.
    """
    expect_store(store)
    if not store.has_images or not sees:
        raise TaskError(
            "synthetic_nsd: expected a store with images, and regions that see its layers"
        )
    voxels, sessions = whole_number("voxels", voxels, 1), whole_number("sessions", sessions, 1)
    folder = path_of("folder", folder)
    rng = np.random.default_rng(whole_number("seed", seed, 0))
    count, regions = len(store), list(sees)
    signal = np.zeros((count, len(regions) * voxels))
    for number, layer in enumerate(sees.values()):
        if layer is None:
            continue
        X = store.matrix(layer)[0].astype(np.float64)
        mean, deviation = centre_and_scale(X, standardize=True)
        X = (X - mean) / deviation
        own = X @ rng.normal(size=(X.shape[1], voxels))
        signal[:, number * voxels : (number + 1) * voxels] = own / own.std(axis=0)
    order = np.concatenate([rng.permutation(count) for _ in range(REPETITIONS)])
    responses = signal[order] + noise * rng.normal(size=(len(order), signal.shape[1]))
    # A volume (X, Y, Z) with a plane for each region, and a plane around them that is no brain.
    shape = (len(regions) + 1, voxels, 1)
    labels = np.zeros(shape, np.int16)
    labels[: len(regions)] = np.arange(1, len(regions) + 1)[:, None, None]
    paths = {
        "stimuli": folder / "nsd_stimuli.hdf5",
        "design": folder / "nsd_expdesign.mat",
        "betas": folder / "betas_fithrf_GLMdenoise_RR",
        "mask": folder / "nsdgeneral.nii.gz",
        "rois": folder / "regions.nii.gz",
    }
    for path in paths.values():
        if path.exists():
            raise DataError(f"{path}: exists already; choose another folder")
    paths["betas"].mkdir(parents=True)
    with h5py.File(paths["stimuli"], "w") as file:
        file["imgBrick"] = store.images()
    images = rng.permutation(count) + 1
    several = images[: max(1, round(shared * count))]
    # Trials count columns of subjectim, images are what stands there.
    column = np.argsort(images)
    design = {
        "masterordering": (column[order] + 1)[None],
        "subjectim": images[None],
        "sharedix": several[None],
    }
    scipy.io.savemat(paths["design"], design)
    for number, trials in enumerate(np.array_split(np.arange(len(order)), sessions), start=1):
        volumes = np.zeros((len(trials), *shape[::-1]), np.int16)
        inside = np.round(SCALE * responses[trials]).clip(-32768, 32767).astype(np.int16)
        volumes[:, 0, :, : len(regions)] = inside.reshape(
            len(trials), len(regions), voxels
        ).transpose(0, 2, 1)
        with h5py.File(paths["betas"] / f"betas_session{number:02d}.hdf5", "w") as file:
            file["betas"] = volumes
    write_nifti(paths["mask"], (labels > 0).astype(np.int16))
    write_nifti(paths["rois"], labels)
    return paths
