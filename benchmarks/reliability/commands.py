"""The commands that are tried, what stood in their place before, and how their results are read."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from processes import Command, Ended, empty, in_child
from safetensors.numpy import load_file

import vdvae_repr as vr

MODEL = """
[model]
image_size = 16
width = 8
zdim = 4
bottom_up = "16x1,16d2,8x1,8d2,4x1,4d4,1x1"
top_down = "1x1,4m1,8m4,8x1,16m8"
num_mixtures = 2
shift = -127.5
scale = 0.015625

[train]
steps = 6
batch_size = 8
lr = 1e-3
warmup_steps = 2
ema_rate = 0.9
log_every = 2
checkpoint_every = 2
seed = 0
"""
IMAGES = 24
PRINTED = "printed.json"

Result = dict[str, str]
"""A digest of each piece of a result; a piece whose name ends in `?` may be missing after a kill."""


@dataclass(frozen=True)
class Case:
    """A command as it is tried in a folder of its own."""

    command: str
    layout: str
    arguments: tuple[str, ...]
    result: Callable[[Path], Result]
    before: tuple[tuple[str, ...], ...] = ()
    """Commands that make what stands in the folder before."""
    between: Callable[[Path], list[str]] = field(default=lambda folder: [])
    """What is added to the arguments where the command is run again after a kill."""
    intermediate: bool = False
    """Whether what a kill leaves may be neither old nor new, as the weights of a run that goes on."""
    writes: bool = True
    """Whether the result is files; else it is what is printed, and no file may be left."""

    def __str__(self) -> str:
        """Name it."""
        return f"{self.command} ({self.layout})" if self.layout else self.command

    def prepare(self, folder: Path) -> None:
        """Make what stands in the folder before."""
        empty(folder)
        for arguments in self.before:
            ended = Command(arguments, folder).wait()
            if ended.code != 0:
                raise SystemExit(f"{self}: cannot be prepared: {ended.output}")
            self.keep(folder, ended)

    def keep(self, folder: Path, ended: Ended) -> None:
        """Keep what a command printed that writes no files, for `read`."""
        if not self.writes:
            (folder / PRINTED).write_text(ended.output.strip().splitlines()[-1])

    def read(self, folder: Path) -> Result:
        """Read the result in a child; a VDVAEReprError or a Failure where it cannot be read."""
        return dict(in_child(partial(self.result, folder)))


def digest(*arrays: Any) -> str:
    """Return a hash of arrays."""
    sha = hashlib.sha256()
    for array in arrays:
        values = np.asarray(array)
        sha.update(f"{values.shape} {values.dtype.kind}".encode())
        sha.update(
            "\0".join(values.ravel()).encode() if values.dtype.kind == "U" else values.tobytes()
        )
    return sha.hexdigest()


def write_images(folder: Path, replaced: slice = slice(0), kind: str = "folder") -> Path:
    """Write small pictures of one size, in four class folders, a tar of them, or an array; return where.

    Those `replaced` are others than without it, and what they stand in is as large as it was.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 16, 16, 3), dtype=np.uint8)
    others = np.random.default_rng(1).integers(0, 256, pixels.shape, dtype=np.uint8)
    pixels[replaced] = others[replaced]
    names = [f"p{index % 4}/{index:02d}.ppm" for index in range(IMAGES)]
    contents = [b"P6\n16 16\n255\n" + image.tobytes() for image in pixels]
    if kind == "array":
        np.save(folder / "images.npy", pixels)
        return folder / "images.npy"
    if kind == "tar":
        with tarfile.open(folder / "images.tar", "w") as archive:
            for name, content in zip(names, contents, strict=True):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return folder / "images.tar"
    for name, content in zip(names, contents, strict=True):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
    return folder / "images"


def store_values(path: Path) -> Result:
    """Read all that a store says, each array alone."""
    with vr.open(path) as store:
        names = [*store.features]
        values: Result = {
            "ids": digest(store.ids),
            "labels": digest(store.labels, store.label_names),
            "splits": digest(store.splits),
            "layers": repr([(spec.name, spec.shape) for spec in store.layers]),
            "weights": str(store.info.weights_sha256),
        }
        for name in names:
            for spec in store.distinct("all", name):
                values[f"{spec.name} {name}"] = digest(store.matrix([spec.name], feature=name)[0])
        values |= {f"factor {key}": digest(array) for key, array in store.factors.items()}
        if store.has_images:
            values["images"] = digest(store.images())
        if store.has_kl:
            values["kl"] = digest(store.kl)
    return values


def checked_store(name: str, folder: Path) -> Result:
    """Return the digest of a whole store, every checksum tested; nothing where there is none."""
    path = folder / name
    if not path.exists():
        return {}
    with vr.open(path) as store:
        store.verify()
    return {name: repr(sorted(store_values(path).items()))}


def weights(folder: Path) -> Result:
    """Return the digest of a run's weights."""
    path = folder / "run" / "model.safetensors"
    if not path.exists():
        return {}
    vr.load(str(folder / "run"))
    tensors = load_file(path)
    return {"weights": digest(*(tensors[name] for name in sorted(tensors)))}


def results(folder: Path) -> Result:
    """Return the digests of a results folder's rows, and whether its pictures are whole."""
    found: Result = {}
    for path in sorted((folder / "out").glob("[!.]*")):
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[path.name] = repr([[v for k, v in row.items() if k != "seconds"] for row in rows])
        elif path.suffix == ".csv":
            table = pd.read_csv(path)
            found[f"{path.name}?"] = table.drop(columns="seconds", errors="ignore").to_csv()
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
            found[f"{path.name}?"] = "whole"
    return found


def pictures(folder: Path) -> Result:
    """Return the digest of each decoded picture."""
    return {
        str(path.relative_to(folder)): digest(np.asarray(Image.open(path)))
        for path in sorted((folder / "d").rglob("[!.]*.png"))
    }


def picture(name: str, folder: Path) -> Result:
    """Return the digest of a decoded picture."""
    path = folder / name
    return {name: digest(np.asarray(Image.open(path)))} if path.exists() else {}


def similarity(folder: Path) -> Result:
    """Return a table of similarity, and whether its picture is whole, which may be missing after a kill."""
    table = folder / "out" / "similarity.csv"
    drawn = picture("out/similarity.png", folder)
    return ({"table": table.read_text()} if table.exists() else {}) | dict.fromkeys(
        (f"{name}?" for name in drawn), "whole"
    )


def printed(folder: Path) -> Result:
    """Return what was printed, and the names of all files of the folder, of which there is none more."""
    path = folder / PRINTED
    values = json.loads(path.read_text()) if path.exists() else {}
    return {
        "values": repr({key: value for key, value in values.items() if "second" not in key}),
        "files": repr(sorted(file.name for file in folder.iterdir())),
    }


def matrix(name: str, folder: Path) -> Result:
    """Return the digest of an export; of a .npy with what describes it, which may still have another name.

    A process that is killed while the two files of an export take their places leaves the description of
    either matrix in the folder: the next export knows both by their digest.
    """
    path = folder / name
    if not path.exists():
        return {}
    if path.suffix == ".npz":
        with np.load(path) as found:
            return {name: digest(*(found[key] for key in sorted(found)))}
    found = {name: digest(np.load(path))}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for beside in folder.iterdir():
        if beside != path and sha256 in (text := beside.read_text(errors="replace")):
            found["description"] = text
    return found


def cases(base: Path) -> list[Case]:
    """Return every command and layout; `base` holds images, a model, a store and a matrix."""
    model = ("--model", str(base / "model"))
    extract = ("extract", *model, "--data", str(base / "images"), "--batch-size", "3")
    extract += ("--out", "s.h5")
    older, newer = ("--layer", "1x1"), ("--layer", "<=4x4", "--feature", "mean", "--feature", "kl")
    store = str(base / "s.h5")
    probe = (
        "probe",
        "--latents",
        store,
        "--head",
        "nearest-neighbor",
        "--cache",
        "k",
        "--out",
        "out",
    )
    decode = ("decode", store, *model, "--out", "d")
    take = ("store", "import", str(base / "m.npy"), "--like", store, "--out", "p.h5", "--overwrite")
    compare = ("compare", store, store, "--out", "out")
    sample = ("sample", *model, "--count", "4", "--out", "p.png", "--seed")
    evaluate = ("evaluate", *model, "--data", str(base / "images"), "--json")
    train = ("train", str(base / "tiny.toml"), "--data", str(base / "images"), "--out", "run")

    def resume(folder: Path) -> list[str]:
        return ["--resume"] if (folder / "run" / "config.toml").exists() else []

    found = [
        Case("train", "", train, weights, between=resume, intermediate=True),
        Case("probe", "", (*probe, *newer[:2]), results, ((*probe, *older),)),
        Case("decode", "", decode, pictures, ((*decode, "--first", "1"),)),
        Case("import", "", take, partial(checked_store, "p.h5"), (take,)),
        Case("compare", "", compare, similarity, ((*compare, "--feature", "kl"),)),
        Case("sample", "", (*sample, "1"), partial(picture, "p.png"), ((*sample, "0"),)),
        Case("evaluate", "", evaluate, printed, ((*evaluate, "--seed", "1"),), writes=False),
    ]
    for layout in ("single", "virtual"):
        made = (*extract, *newer, "--layout", layout)
        before = (*extract, *older, "--layout", layout)
        read = partial(checked_store, "s.h5")
        found.append(Case("extract", layout, made, read))
        name = f"{layout}, --overwrite"
        found.append(Case("extract", name, (*made, "--overwrite"), read, (before,)))
    for suffix in (".npz", ".npy"):
        export = ("store", "export", store, "--out", f"x{suffix}")
        before = (*export, "--layer", "1x1")
        found.append(Case("export", suffix, export, partial(matrix, f"x{suffix}"), (before,)))
    return found


def make_base(base: Path) -> None:
    """Make the images, model, store and matrices that the commands read."""
    empty(base)
    write_images(base)
    (base / "tiny.toml").write_text(MODEL)
    train = ["train", "tiny.toml", "--data", "images", "--out", "model", "--set", "train.seed=1"]
    extract = [
        "extract",
        "--model",
        "model",
        "--data",
        "images",
        "--layer",
        "<=4x4",
        "--batch-size",
        "3",
    ]
    for arguments in (
        train,
        [*extract, "--feature", "mean", "--feature", "kl", "--out", "s.h5"],
        ["store", "export", "s.h5", "--out", "m.npy"],
    ):
        ended = Command(arguments, base).wait()
        if ended.code != 0:
            raise SystemExit(f"{' '.join(arguments)}: {ended.output}")
    np.save(base / "m2.npy", 2 * np.load(base / "m.npy"))


def store_files(path: Path) -> list[Path]:
    """Return the files of a store: one, or a virtual store's parts too."""
    parts = path.with_name(path.name + ".parts")
    return [path, *sorted(parts.glob("*.h5"))]


def all_of(store: Path) -> tuple[Result, bool]:
    """Return what is read of a store without `verify`, and whether `verify` then finds fault."""
    values = store_values(store)
    try:
        with vr.open(store) as opened:
            opened.verify()
    except vr.VDVAEReprError:
        return values, True
    return values, False
