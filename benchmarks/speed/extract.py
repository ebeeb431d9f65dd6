"""Speed and memory of reading posteriors on a CPU, beside openai/vdvae's `forward_get_latents`.

    git clone https://github.com/openai/vdvae ../openai-vdvae
    python benchmarks/speed/extract.py --published ../openai-vdvae
    python benchmarks/speed/extract.py --cases store images photos
    python benchmarks/speed/extract.py --cases against --against ../another-checkout --rounds 7

Cases `imagenet64` (layers 0:31), `cifar10-8x8` and `cifar10`: presets with random weights, the same in
both, on normalised noise in float32; the mean pass, results left in memory. `published` runs its whole
pass, `stopped` its encoder and its decoder's blocks up to the last layer wanted, `ours` and `compiled`
(torch.compile) ours. Variants take turns, a pass each, in one process; ratios pair the passes of one
round, medians are over rounds, the first round is left out. Operations are those of the path that is
needed; the rate that they are held against is the best of these convolutions alone, timed in the same
process. Peak memory is measured in a process of its own for each, as the growth of the resident size
while the model and the images stand in memory.

Case `store`: faces64, all layers' means, `vr.extract` into a store (a single file, written twice; and a
virtual one, written once) against `model.posterior` alone; and the rate at which the disk takes new files.
Case `images`: the peak resident size of `vdvae-repr extract` over tars of 1,000 and of 20,000 images.
Case `photos`: from a folder of 2,000 JPEG photographs of 640x480 to a finished store of a model's first
layer, or of what `--layers` names, end to end, by 1, 2 and 4 workers in turns, and by the default number
where that is another. The stores are compared value by value.
Case `against`: this checkout and another one in turns, each in a process of its own, from 1,024 images of
64x64 (an array, and JPEG files) to a store of all layers of faces64; seconds of `vr.extract` alone.
Prints one JSON object a line.
"""

import argparse
import ctypes
import importlib
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import vdvae_repr as vr
from vdvae_repr.data.loader import default_workers

CASES = {
    "imagenet64": ("imagenet64", 31),
    "cifar10-8x8": ("cifar10", 10),
    "cifar10": ("cifar10", 43),
}
CONVOLUTIONS = (
    (96, 96, 3, 32),
    (384, 96, 1, 32),
    (96, 384, 1, 32),
    (128, 128, 3, 32),
    (512, 128, 1, 32),
)


def published_model(checkout: Path, preset: str) -> Any:
    """Build the published model of a preset, with random weights."""
    sys.path.insert(0, str(checkout))
    hps, vae = importlib.import_module("hps"), importlib.import_module("vae")
    sys.path.remove(str(checkout))
    size = vr.ModelConfig.from_preset(preset).image_size
    settings = hps.Hyperparams(image_size=size, image_channels=3)
    parser = hps.add_vae_arguments(argparse.ArgumentParser())
    hps.parse_args_and_update_hparams(settings, parser, ["--hps", preset])
    torch.manual_seed(0)
    return vae.VAE(settings).eval()


def passes(
    case: str, names: Sequence[str], options: argparse.Namespace
) -> dict[str, Callable[[], Any]]:
    """Return a pass of each variant named over one batch of noise; their weights are the same."""
    preset, stop = CASES[case]
    size = vr.ModelConfig.from_preset(preset).image_size
    x = torch.randn(options.batch_size, 3, size, size)
    found: dict[str, Callable[[], Any]] = {}
    state: dict[str, Tensor] | None = None
    if {"published", "stopped"} & set(names):
        theirs = published_model(options.published, preset)
        state, permuted = theirs.state_dict(), x.permute(0, 2, 3, 1).contiguous()

        def stopped() -> list[Any]:
            activations = theirs.encoder(permuted)
            states = {a.shape[2]: a for a in theirs.decoder.bias_xs}
            read = []
            for block in theirs.decoder.dec_blocks[:stop]:
                states, layer = block(states, activations, get_latents=True)
                read.append(layer)
            return read

        found["published"], found["stopped"] = lambda: theirs.forward_get_latents(permuted), stopped
    for name in [name for name in names if name in ("ours", "compiled")]:
        model = vr.load(f"{preset}@random", compile=name == "compiled")
        if state is not None:
            model.load_published(state)
        found[name] = lambda model=model: model.infer(x, None, stop, top_down=False)
    return {name: found[name] for name in names}


def operations(case: str) -> float:
    """Return the floating-point operations of the path needed, an image: those of `infer` without a plan."""
    preset, stop = CASES[case]
    with torch.device("meta"):
        model = vr.VDVAE(vr.ModelConfig.from_preset(preset))
        x = torch.zeros(1, 3, model.config.image_size, model.config.image_size)
    with FlopCounterMode(display=False) as counter:
        model.infer(x, None, stop, top_down=False)
    return float(counter.get_total_flops())


def best_rate(batch_size: int) -> float:
    """Return the most operations a second that one of the convolutions alone reaches."""
    rates = []
    for inputs, outputs, size, resolution in CONVOLUTIONS:
        x = torch.randn(batch_size, inputs, resolution, resolution)
        x = x.contiguous(memory_format=torch.channels_last)
        layer = torch.nn.Conv2d(inputs, outputs, size, padding=size // 2)
        layer = layer.to(memory_format=torch.channels_last)
        seconds = []
        for _ in range(12):
            started = time.perf_counter()
            layer(x)
            seconds.append(time.perf_counter() - started)
        rates.append(2 * layer.weight.numel() * resolution**2 * batch_size / min(seconds))
    return max(rates)


def compare(case: str, options: argparse.Namespace) -> None:
    """Time the variants of a case in turns."""
    names = ["published", "stopped"] if options.published is not None else []
    variants = passes(case, names + ["ours"] + ["compiled"] * options.compile, options)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    best = best_rate(options.batch_size)
    for number in range(options.rounds + 1):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    for name, own in seconds.items():
        rate = options.batch_size / statistics.median(own)
        row = {"case": case, "variant": name, "images_per_second": round(rate, 2)}
        for peer in ("published", "stopped"):
            if peer in seconds:
                ratios = [a / b for a, b in zip(seconds[peer], own, strict=True)]
                row[f"times_{peer}"] = round(statistics.median(ratios), 2)
        if name != "published":
            done = rate * operations(case)
            row |= {"gflops_per_image": round(operations(case) / 1e9, 2)}
            row |= {"of_best_convolution": round(done / best, 2), "best_gflops": round(best / 1e9)}
        command = [
            sys.executable,
            __file__,
            "--peak",
            case,
            name,
            "--batch-size",
            str(options.batch_size),
        ]
        if options.published is not None:
            command += ["--published", str(options.published)]
        report(row | {"peak_mb": json.loads(subprocess.check_output(command))}, options)


def peak(case: str, variant: str, options: argparse.Namespace) -> None:
    """Print the growth of the resident size over two passes, MB."""
    run = passes(case, [variant], options)[variant]
    ctypes.CDLL(None).malloc_trim(0)  # what building the model has left over
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * os.sysconf("SC_PAGE_SIZE")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for _ in range(2):
        run()
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")
    )
    print(round((int(line.split()[1]) * 1024 - before) / 2**20))


def faces(count: int) -> np.ndarray:
    """Return toy faces (count, 64, 64, 3): what faces64 has never seen the like of costs it more time.

    Of noise at every pixel it has an infinite KL; of blurred noise, numbers too small for a CPU to be fast.
    """
    source = vr.open_source(f"toy-faces:{-(-count // 8)}x8")
    images = [Image.fromarray(source.reader(index)).resize((64, 64)) for index in range(count)]
    return np.stack([np.asarray(image) for image in images])


def store_cost(options: argparse.Namespace) -> None:
    """Time extraction into a store, of each layout, against reading alone; and writing to the disk alone."""
    model, count = vr.load("faces64"), 32 * options.batch_size
    images = faces(count)

    def read(path: Path) -> None:
        for first in range(0, count, options.batch_size):
            model.posterior(images[first : first + options.batch_size])

    def single(path: Path) -> None:
        vr.extract(model, images, path, batch_size=options.batch_size).close()

    def virtual(path: Path) -> None:
        vr.extract(model, images, path, batch_size=options.batch_size, layout="virtual").close()

    def write(path: Path) -> None:
        block = np.ones(2**20, np.uint8)
        with path.open("wb") as file:
            for _ in range(512):
                file.write(block)

    seconds: dict[str, list[float]] = {f.__name__: [] for f in (read, single, virtual, write)}
    for number in range(options.rounds + 1):
        for run in (read, single, virtual, write):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                run(Path(folder) / "store.h5")
                if number:
                    seconds[run.__name__].append(time.perf_counter() - started)
    row: dict[str, Any] = {"case": "store", "model": "faces64", "images": count}
    for name in ("read", "single", "virtual"):
        row[f"{name}_images_per_second"] = round(count / statistics.median(seconds[name]), 1)
    for name in ("single", "virtual"):
        pairs = zip(seconds["read"], seconds[name], strict=True)
        row[f"{name}_cost"] = round(statistics.median(b / a for a, b in pairs) - 1, 3)
    row["disk_takes_mb_per_second"] = round(512 / statistics.median(seconds["write"]))
    row["stored_mb_per_image"] = round(4 * sum(s.num_dims for s in model.layers) / 2**20, 3)
    report(row, options)


def constant_memory(options: argparse.Namespace) -> None:
    """Measure the peak resident size of whole extractions of many images."""
    encoded = []
    for image in faces(64):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        for count in (1000, 20_000):
            tar = Path(folder) / f"{count}.tar"
            with tarfile.open(tar, "w") as archive:
                for index in range(count):
                    member = tarfile.TarInfo(f"{index:05d}.png")
                    member.size = len(encoded[index % 64])
                    archive.addfile(member, io.BytesIO(encoded[index % 64]))
            command = [sys.executable, "-m", "vdvae_repr.cli", "extract", "--data", str(tar)]
            command += ["--layer", "<=8x8", "--out", str(tar.with_suffix(".h5")), "--batch-size"]
            subprocess.run(
                [*command, str(options.batch_size)], check=True, stdout=subprocess.DEVNULL
            )
            used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the largest so far
            report({"case": "images", "images": count, "peak_mb": round(used / 1024)}, options)


def write_photographs(folder: Path, count: int) -> None:
    """Write JPEG photographs of 640x480: 16 random pictures with detail at every scale, over and over."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(16):
        picture = np.zeros((480, 640, 3))
        for scale in (1, 4, 16, 64):
            noise = rng.normal(0, 4 * scale**0.5, (-(-480 // scale), -(-640 // scale), 3))
            picture += np.kron(noise, np.ones((scale, scale, 1)))[:480, :640]
        buffer = io.BytesIO()
        pixels = (128 + picture).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    for index in range(count):
        (folder / f"{index:05d}.jpg").write_bytes(encoded[index % len(encoded)])


def values_of(path: Path) -> dict[str, bytes | list[str]]:
    """Return every array of a store."""
    found: dict[str, bytes | list[str]] = {}

    def note(key: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            values = item[:]
            found[key] = values.tolist() if values.dtype.kind == "O" else values.tobytes()

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def photographs(options: argparse.Namespace) -> None:
    """Time extraction from a folder of photographs by numbers of workers."""
    model = vr.load(options.model, device=options.device)
    numbers = sorted({1, 2, 4, default_workers()})
    seconds: dict[int, list[float]] = {number: [] for number in numbers}
    stored: dict[int, dict[str, bytes | list[str]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "photographs", Path(name) / "store.h5"
        folder.mkdir()
        write_photographs(folder, options.images)
        size = sum(path.stat().st_size for path in folder.iterdir())
        for _ in range(options.rounds):
            for number in numbers:
                started = time.perf_counter()
                vr.extract(
                    model, folder, out, layers=options.layers, batch_size=options.batch_size,
                    num_workers=number, precision=options.precision, overwrite=True,
                ).close()  # fmt: skip
                seconds[number].append(time.perf_counter() - started)
                stored[number] = values_of(out)
    for number, own in seconds.items():
        row: dict[str, Any] = {"case": "photos", "model": options.model, "layers": options.layers}
        row |= {"images": options.images, "workers": number, "device": options.device}
        row["images_per_second"] = round(options.images / statistics.median(own), 1)
        ratios = [a / b for a, b in zip(seconds[1], own, strict=True)]
        row["times_one_worker"] = round(statistics.median(ratios), 2)
        row["same_values_as_one_worker"] = stored[number] == stored[1]
        row |= {"jpeg_kb": round(size / options.images / 1024), "cores": os.cpu_count()}
        report(row | {"default": number == default_workers(), "rounds": options.rounds}, options)


TIMED = """
import sys, time, vdvae_repr as vr
model, out = vr.load("faces64"), sys.argv[2]
vr.extract(model, "toy-faces:4x8", out + ".warm").close()
started, worked = time.perf_counter(), time.process_time()
vr.extract(model, sys.argv[1], out).close()
print(time.perf_counter() - started, time.process_time() - worked)
"""


def against(options: argparse.Namespace) -> None:
    """Time extraction by this checkout and by another one, in turns."""
    here = Path(__file__).resolve().parents[2]
    images = faces(1024)
    with tempfile.TemporaryDirectory() as name:
        array, folder = Path(name) / "images.npy", Path(name) / "images"
        np.save(array, images)
        folder.mkdir()
        for index, pixels in enumerate(images):
            Image.fromarray(pixels).save(folder / f"{index}.jpg")
        for data in (array, folder):
            seconds: dict[str, list[float]] = {"this": [], "other": []}
            cpu: dict[str, list[float]] = {"this": [], "other": []}
            turns = [("this", here), ("other", options.against.resolve())]
            for number in range(options.rounds):
                for which, checkout in turns if number % 2 else turns[::-1]:
                    out = Path(name) / f"{data.stem}-{which}-{number}.h5"
                    command = [sys.executable, "-c", TIMED, str(data), str(out)]
                    environment = os.environ | {"PYTHONPATH": str(checkout)}
                    printed = subprocess.check_output(command, env=environment, cwd=name)
                    passed, worked = map(float, printed.split())
                    seconds[which].append(passed)
                    cpu[which].append(worked)
                    out.unlink()
            row: dict[str, Any] = {"case": "against", "data": data.suffix or "folder of JPEG files"}
            for which, own in seconds.items():
                row[f"{which}_images_per_second"] = round(len(images) / statistics.median(own), 1)
            for column, measured in (("times_other", seconds), ("times_other_cpu", cpu)):
                paired = zip(measured["other"], measured["this"], strict=True)
                row[column] = round(statistics.median(a / b for a, b in paired), 3)
            row["rounds"] = options.rounds
            report(row, options)


def report(row: dict[str, Any], options: argparse.Namespace) -> None:
    """Print a row, with what it was measured on."""
    machine = {"batch_size": options.batch_size, "threads": torch.get_num_threads()}
    machine |= {"machine": platform.machine(), "torch": torch.__version__}
    print(json.dumps(row | machine), flush=True)


def main() -> None:
    """Run the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--published", type=Path, help="a checkout of openai/vdvae")
    parser.add_argument(
        "--cases",
        nargs="+",
        default=[*CASES],
        choices=[*CASES, "store", "images", "photos", "against"],
    )
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--images", type=int, default=2000, help="photos: how many")
    parser.add_argument("--model", default="faces64", help="photos: whatever vr.load takes")
    parser.add_argument("--layers", default="1x1", help="photos: selector")
    parser.add_argument("--device", default="cpu", help="photos: cpu or cuda")
    parser.add_argument("--precision", default="fp32", help="photos: fp32, tf32 or bf16")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with torch.no_grad():
        if options.peak:
            peak(*options.peak, options)
            return
        for case in options.cases:
            match case:
                case "store":
                    store_cost(options)
                case "images":
                    constant_memory(options)
                case "against":
                    against(options)
                case "photos":
                    photographs(options)
                case _:
                    compare(case, options)


if __name__ == "__main__":
    main()
