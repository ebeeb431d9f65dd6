"""Do encoding and decoding of brains on a device give what the CPU gives, and in what time?

    python benchmarks/gpu/brain.py --device cuda

Random latents of ImageNet-64's first layers, and voxels that see the coarsest of them through noise. Prints a
JSON object a check: the largest error, relative to the largest value, the bound it is held to, `right`, and
the seconds on the device and on the CPU. All is in float64 on both, but products of features on the CPU. A
check that breaks prints its error, and the others go on. Exit 1 where one is not right. Banded ridge is left
out, with a line, without himalaya.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from correct import checked

import vdvae_repr as vr
from vdvae_repr.brain.voxelwise import Predicted
from vdvae_repr.heads.algebra import Algebra
from vdvae_repr.probing.features import Columns, Features
from vdvae_repr.tasks.encoding import EncodingProblem

sys.path.insert(0, str(Path(__file__).parents[1] / "brains"))
from full_size import random_store

# Of float64; and of products of float32 features, which the CPU takes in float32, through a decomposition.
DECODING, ENCODING = 1e-6, 1e-4
Row = dict[str, Any]


def sizes(smoke: bool) -> dict[str, int]:
    """Return the images that are fitted on and tested on, of encoding and of decoding, and the voxels."""
    if smoke:
        return {"train": 60, "test": 20, "voxels": 30, "fitted": 60, "layers": 4}
    return {"train": 2000, "test": 200, "voxels": 4000, "fitted": 900, "layers": 31}


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, as arrays on the CPU, and its seconds."""
    started = time.perf_counter()
    found = function()
    return found, round(time.perf_counter() - started, 2)


def error(found: Any, expected: Any) -> float:
    """Return the largest difference, of the largest value."""
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-300))


def compared(
    check: str,
    device: str,
    run: Callable[[str], Any],
    errors: Callable[[Any, Any], float],
    bound: float,
) -> Row:
    """Run on the device, and on the CPU."""
    there, seconds = timed(lambda: run(device))
    here, cpu_seconds = timed(lambda: run("cpu"))
    row = checked(check, errors(there, here), bound, error_of="of the largest value")
    return row | {"seconds": seconds, "cpu_seconds": cpu_seconds}


def decoding(
    device: str, store: vr.LatentStore, bold: Any, folder: Path, size: Row
) -> Iterator[Row]:
    """Penalties by leave-one-out, and predictions."""
    layers = f"0:{size['layers']}"
    decoder = {}

    def fitted(on: str) -> Any:
        decoder[on] = vr.brain.fit(bold, store, layers=layers, device=on)
        return decoder[on].alphas

    yield compared("penalties of brain fit", device, fitted, error, DECODING)

    def predicted(on: str) -> Any:
        found = decoder["cpu"].predict(
            bold, store, folder / "predicted.h5", device=on, overwrite=True
        )
        with found.store as latents:
            return latents.matrix()[0], found.layers["r2"].to_numpy()

    def errors(there: Any, here: Any) -> float:
        return max(error(a, b) for a, b in zip(there, here, strict=True))

    yield compared("brain predict", device, predicted, errors, DECODING)


def encoding(device: str, store: vr.LatentStore, bold: Any, size: Row) -> Iterator[Row]:
    """Ridge and banded ridge of the layers together, from what is stored to predicted responses."""
    some = np.r_[: size["fitted"], size["train"] : size["train"] + size["test"]]
    values = np.full_like(bold, np.nan)  # images without a response are left out
    values[some] = bold[some]

    def run(head: str) -> Callable[[str], Predicted]:
        def on(where: str) -> Predicted:
            task = vr.Encoding(responses=values, device=where)
            problem = task.bind(store)
            assert isinstance(problem, EncodingProblem)
            columns = [
                Columns(
                    spec.name, spec.resolution, spec.num_dims,
                    lambda spec=spec: iter(store.columns(spec.name, "mean")),
                    lambda spec=spec: spec.name,
                )
                for spec in store.layers[: size["layers"]]
            ]  # fmt: skip
            features = Features("random", "joint", tuple(columns), selection="joint")
            return problem._predicted(problem.heads[head], features, problem.fitting, 0)

        return on

    def errors(there: Predicted, here: Predicted) -> float:
        pairs = [(there.values, here.values), (there.left_out_r2, here.left_out_r2)]
        return max(error(a, b) for a, b in pairs)

    yield compared("encoding ridge", device, run("ridge"), errors, ENCODING)
    if importlib.util.find_spec("himalaya") is None:
        print("banded ridge is left out: himalaya is not installed", file=sys.stderr)
        return
    yield compared("encoding banded", device, run("banded"), errors, ENCODING)


def main() -> int:
    """Run every check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="a few images")
    options = parser.parse_args()
    size, right = sizes(options.smoke), True
    if options.device != "cpu":
        Algebra.on(options.device).eigh(
            np.eye(8)
        )  # what a first call loads is no part of the times
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_store(folder / "latents.h5", size["train"], size["test"])
        with vr.open(folder / "latents.h5") as store:
            rng = np.random.default_rng(1)
            seen = store.matrix(layers="1x1")[0]
            bold = seen @ rng.normal(size=(seen.shape[1], size["voxels"])) / seen.shape[1] ** 0.5
            bold = (bold + rng.normal(size=bold.shape)).astype(np.float32)
            for check, rows in (
                ("decoding", decoding(options.device, store, bold, folder, size)),
                ("encoding", encoding(options.device, store, bold[:, :1000], size)),
            ):
                try:
                    for row in rows:
                        right &= bool(row["right"])
                        print(json.dumps(row | {"device": options.device}), flush=True)
                except Exception as problem:  # whatever breaks is reported, and the others go on
                    reason = (str(problem).strip().splitlines() or [""])[0][:300]
                    row = {"check": check, "error": f"{type(problem).__name__}: {reason}"}
                    right = False
                    print(json.dumps(row | {"right": False, "device": options.device}), flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
