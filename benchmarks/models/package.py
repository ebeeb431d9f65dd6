"""Package a run's moving average in float16, and make the tables and pictures of its model card.

    python benchmarks/models/package.py runs/faces64 --data lfw_training_64.tar --name faces64

Writes `vdvae_repr/weights/NAME.safetensors` and `docs/models/NAME_*.png`, and prints the card's tables in
Markdown. What is scored and drawn is the file as packaged, read back. The score is that of all images held
back from the run: of a VDVAE the likelihood, of a student the KL from its teacher, which is the packaged
model that its run names. Pictures are of samples and of toy faces, so that no one's photograph is published.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors import safe_open

import vdvae_repr as vr
from vdvae_repr.config import load_config
from vdvae_repr.data.open import open_source
from vdvae_repr.data.sheet import save_sheet
from vdvae_repr.data.source import Preprocessing
from vdvae_repr.model.weights import WEIGHTS_FOLDER, save
from vdvae_repr.training.draws import mark_held_back, split_indices
from vdvae_repr.training.objective import Distillation

TEMPERATURES = (1.0, 0.9, 0.8, 0.7, 0.5)
PICTURES = Path(__file__).parents[2] / "docs" / "models"


def main() -> None:
    """Package, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="what the run was trained on")
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    rows = [json.loads(line) for line in (options.run / "log.jsonl").read_text().splitlines()]
    config = load_config(options.run / "config.toml")
    trained = vr.load(options.run)
    trained.name = options.name
    source = open_source(options.data)
    kept, held = split_indices(source, config.train)
    last = rows[-1]
    with safe_open(options.run / "model.safetensors", framework="pt") as file:
        record = json.loads(file.metadata()["record"])  # of the run's last stretch
    record |= {
        "config": config.to_toml(),
        "data": source.name,
        "images": len(kept),
        "images_held_back": len(held),
        "steps": last["step"],
        "images_seen": last["images_seen"],
    }
    path = WEIGHTS_FOLDER / f"{options.name}.safetensors"
    save(trained, path, record=record, dtype=torch.float16)
    model = vr.load(path)
    print(f"{path.stat().st_size / 1e6:.1f} MB; {last['step']} steps, {last['images_seen']} images")
    PICTURES.mkdir(parents=True, exist_ok=True)
    curve = PICTURES / f"{options.name}_curve.png"
    if isinstance(model, vr.Student):
        print_kl(model, vr.load(record["teacher"]), source, held)
        draw_curve(rows, curve, "total_kl_nats", "KL from the teacher, nats an image")
        return
    found = vr.evaluate(model, mark_held_back(source, config.train), split="held-back")
    low, high = found.bits_per_dim_interval
    print(
        f"\n{found.images} images held back: {found.bits_per_dim:.3f} ({low:.3f} .. {high:.3f}) bits/dim,"
    )
    print(f"distortion {found.distortion_nats:.0f}, rate {found.rate_nats:.0f} nats an image\n")
    print("| layer | KL, nats an image | active units |\n| --- | --- | --- |")
    for name, nats in found.kl_nats.items():
        active, units = found.active_units[name]
        print(f"| {name} | {nats:.2f} | {active}/{units} |")
    draw_curve(rows, curve, "bits_per_dim", "bits per dimension")
    samples = [model.sample(8, temperature, seed=1) for temperature in TEMPERATURES]
    labels = [f"temperature {temperature:g}" for temperature in TEMPERATURES]
    save_sheet(np.concatenate(samples), PICTURES / f"{options.name}_samples.png", labels=labels)
    toys = open_source("toy-faces")
    images = np.concatenate(
        [model.sample(4, 0.8, seed=2), np.stack([toys.reader(i) for i in (0, 50, 100, 150)])]
    )
    read = model.posterior(images)
    rebuilt, labels = [images], ["images"]
    for resolution in sorted({spec.resolution for spec in model.layers}):
        first = [spec.name for spec in model.layers if spec.resolution <= resolution]
        rebuilt.append(model.decode({name: read[name].mean for name in first}))
        labels.append(f"layers up to {resolution}x{resolution}")
    save_sheet(np.concatenate(rebuilt), PICTURES / f"{options.name}_layers.png", labels=labels)


def print_kl(
    student: vr.Student, teacher: vr.VDVAE, source: vr.Source, held: NDArray[np.int64]
) -> None:
    """Print how far a student is from its teacher on images held back, by layer."""
    objective = Distillation(teacher, student.layers)
    preprocessing = Preprocessing(size=student.config.image_size)
    kl = objective.score(student, source, preprocessing, held, batch_size=64, seed=0)
    print(f"\n{len(held)} images held back: KL {kl.sum():.0f} nats an image\n")
    print("| layer | KL of the teacher to the student, nats an image |\n| --- | --- |")
    for spec, nats in zip(student.layers, kl.tolist(), strict=True):
        print(f"| {spec.name} | {nats:.2f} |")


def draw_curve(rows: list[dict], path: Path, key: str, label: str) -> None:
    """Draw a score over images seen: of each stretch of training, and held back."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    ax = figure.subplots()
    for name, whose in ((key, "training"), (f"held_back_{key}", "held back")):
        points = [(row["images_seen"], row[name]) for row in rows if name in row]
        ax.plot(*zip(*points, strict=True), label=whose)
    ax.set(xlabel="images seen", ylabel=label, xscale="log")
    ax.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
