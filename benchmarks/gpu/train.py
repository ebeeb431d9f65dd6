"""Go on training a packaged model for the time there is, and say what that brought on images held back.

    python benchmarks/gpu/train.py --device cuda --tars scratch/gpu --seconds 480 --results RESULTS

Of the training tars in the folder, also gzipped, lfw_training*.tar train faces64 and
tiny_imagenet_training*.tar natural64; the time is divided among the models. Images are decoded once and
stand in memory. A run starts from the packaged weights, in bf16, channels-last, its blocks compiled;
SIGTERM ends it in time, as it would end any run, which then writes its weights. Held-back images are a tenth
as the packaged recipe holds it back, scored before and after with the same draws, in float32.
Writes a JSON object a model into RESULTS/train.jsonl, and RESULTS/NAME/ (model.safetensors, config.toml,
log.jsonl), which benchmarks/models/package.py takes.
"""

import argparse
import gzip
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

import vdvae_repr as vr
from vdvae_repr.config import Config, load_config
from vdvae_repr.data.loader import default_workers, map_ahead
from vdvae_repr.data.open import open_source
from vdvae_repr.data.source import Preprocessing, Source, read_images
from vdvae_repr.model.weights import WEIGHTS_FOLDER
from vdvae_repr.training.draws import mark_held_back, split_indices

MODELS = {"lfw_training": "faces64", "tiny_imagenet_training": "natural64"}
SCORED = 60  # seconds, about, that both scores take together, and writing the weights


def recipe_of(name: str) -> Config:
    """Return the configuration that a packaged model was trained with."""
    with safe_open(WEIGHTS_FOLDER / f"{name}.safetensors", framework="pt") as file:
        record = json.loads(file.metadata()["record"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(record["config"])
        return load_config(path)


def unzipped(tars: Path, start: str, folder: Path) -> list[Path]:
    """Return a model's tars as they can be read in place, put into a folder."""
    for tar in tars.glob(f"{start}*.tar"):
        (folder / tar.name).symlink_to(tar.resolve())
    for tar in tars.glob(f"{start}*.tar.gz"):
        with gzip.open(tar) as packed, (folder / tar.stem).open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    return sorted(folder.glob(f"{start}*.tar"))


def in_memory(source: Source, size: int) -> Source:
    """Return a source whose images are decoded and resized already."""
    workers = default_workers()
    cut = range(0, len(source), 64)
    parts = map_ahead(
        lambda start: read_images(
            source, Preprocessing(size=size), range(start, min(start + 64, len(source)))
        ),
        cut,
        workers=workers,
        ahead=2 * workers,
    )
    images = np.concatenate(list(parts))
    return replace(source, reader=lambda index: images[index])


def held_back(model: str | Path, source: Source, config: Config, device: str) -> dict[str, object]:
    """Score the images held back."""
    assert config.train is not None
    found = vr.evaluate(
        vr.load(model, device=device), mark_held_back(source, config.train), split="held-back",
        batch_size=64,
    )  # fmt: skip
    return {"bits_per_dim": found.bits_per_dim, "interval": found.bits_per_dim_interval}


def go_on(
    name: str, source: Source, options: argparse.Namespace, seconds: float
) -> dict[str, object]:
    """Train one model for some seconds."""
    config = recipe_of(name)
    assert config.train is not None
    batch_size = 8 if options.smoke else options.batch_size
    recipe = replace(
        config.train, steps=2 if options.smoke else 10**7, batch_size=batch_size, kl_warmup_steps=0,
        ema_rate=0.999, log_every=100, checkpoint_every=1 if options.smoke else 2000,
    )  # fmt: skip
    config = replace(config, train=recipe)
    started = time.monotonic()
    source = in_memory(source, config.model.image_size)
    row: dict[str, object] = {"model": name, "data": source.name, "device": options.device}
    row["before"] = held_back(name, source, config, options.device)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / name
        left = max(1.0, seconds - SCORED / 2 - (time.monotonic() - started))
        timer = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))
        if not options.smoke:
            timer.start()
        try:
            vr.train(
                config, source, run, init_from=name, name=name, device=options.device,
                precision="bf16", channels_last=True, compile=not options.smoke,
                progress=lambda line: print(line, flush=True),
            )  # fmt: skip
        except vr.Terminated as stopped:
            print(stopped, flush=True)
        finally:
            timer.cancel()
        last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
        row["after"] = held_back(run, source, config, options.device)
        out = options.results / name
        out.mkdir(parents=True, exist_ok=True)
        for file in ("model.safetensors", "config.toml", "log.jsonl"):
            shutil.copyfile(run / file, out / file)
    trained, held = split_indices(source, recipe)
    row |= {
        key: last[key]
        for key in ("step", "images_seen", "skipped", "images_per_second", "data_wait")
    }
    row |= {"batch_size": batch_size, "images": len(trained), "images_held_back": len(held)}
    card = torch.cuda.get_device_name() if options.device == "cuda" else None
    return row | {"seconds": round(time.monotonic() - started), "card": card}


def main() -> None:
    """Train each model that there is data for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tars", type=Path, default=Path("scratch/gpu"))
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true", help="two steps on toy faces")
    options = parser.parse_args()
    unpacked = tempfile.TemporaryDirectory()
    jobs = []
    for start, model in MODELS.items():
        tars = unzipped(options.tars, start, Path(unpacked.name))
        if tars:
            name = tars[0].name if len(tars) == 1 else f"{start}*.tar"
            jobs.append((model, open_source(Path(unpacked.name) / name)))
    if options.smoke:
        jobs = [("faces64", open_source("toy-faces:20x2"))]
    if not jobs:
        expected = ", ".join(f"{start}*.tar or .tar.gz" for start in MODELS)
        raise SystemExit(f"{options.tars}: expected {expected}, found none: nothing to train on")
    results = options.results / "train.jsonl"
    results.write_text("")
    for model, source in jobs:
        row = go_on(model, source, options, options.seconds / len(jobs))
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
