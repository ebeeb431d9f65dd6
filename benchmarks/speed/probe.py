"""Speed of the probe: the time to an answer, against another commit, and `linear-lbfgs` beside scikit-learn.

    python benchmarks/speed/probe.py
    python benchmarks/speed/probe.py --ours
    python benchmarks/speed/probe.py --data DATA --work WORK --against WORKTREE

With --data: cold answers of `vr.probe`, each in a process of its own with nothing kept: `face_id` on LFW by
the heads that answer at once, single layers and cumulative sets, all controls; single layers by `linear-
lbfgs`; `few_shot` (one and five shots) and `classification` of pooled layers of Tiny ImageNet. Of this
checkout and of WORKTREE in turn, on the same stores, which are extracted into WORK where they are not there.
DATA holds lfw_people/ and tiny_imagenet/. --images takes about so many of each, --case some of the cases;
--no-controls leaves controls out: of checkouts that draw random weights another number of times.

Else: random features of 2,000 samples, 16,384 dimensions and 40 classes that they tell in part, 500 more to
choose C on. Ours: standardising, Gram matrices, the path over the protocol's 45 values of C to 1e-6 of the
optimum, and the fit on all samples. Theirs: standardising in float64, then L-BFGS at each C from the last
one's solution, 1,000 iterations at most, at two tolerances: scikit-learn's own 1e-4, and 1e-8. Then the
objectives at each C are compared: ours must be no more than 1 + 1e-6 times theirs at 1e-8. With --ours, ours
alone, the Gram matrices and the head apart. Prints one JSON object a line.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import vdvae_repr as vr
from vdvae_repr.heads.gram import gram_matrices
from vdvae_repr.heads.linear import C_GRID, LogisticProbe


def samples(n: int, d: int, k: int) -> tuple[Any, Any]:
    """Return features (n, d) float32 and classes (n,)."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(n) % k)
    centres = rng.normal(size=(k, d)).astype(np.float32)
    X = rng.normal(size=(n, d)).astype(np.float32)
    X += 0.06 * centres[y]
    return X, y


def ours(X: Any, y: Any, held: Any) -> tuple[float, float, Any, Any]:
    """Return seconds of all and of the Gram matrix alone, the head, and the matrix.

    Accuracies at each C are on samples held back.
    """
    started = time.perf_counter()
    train = np.arange(len(y))
    blocks = (X[:, first : first + 2048] for first in range(0, X.shape[1], 2048))
    subsets = [(train, "standardised"), (np.arange(len(X)), "standardised")]
    gram, both = gram_matrices(blocks, subsets)
    summed = time.perf_counter() - started
    head = LogisticProbe(precomputed=True)
    head.fit(gram.inner[train], y, (gram.inner[len(y) :], held), both=both.inner)
    return time.perf_counter() - started, summed, head, gram


def theirs(X: Any, y: Any, held: Any, tol: float) -> tuple[float, list[float], list[Any]]:
    """Return seconds for 45 values of C, accuracies at each, and the weights and intercept found there."""
    started = time.perf_counter()
    scaler = StandardScaler().fit(X[: len(y)])
    A, B = (scaler.transform(part.astype(np.float64)) for part in (X[: len(y)], X[len(y) :]))
    head = LogisticRegression(warm_start=True, max_iter=1_000, tol=tol)
    accuracies, solutions = [], []
    for C in C_GRID:
        head.set_params(C=C).fit(A, y)
        accuracies.append(float(np.mean(head.predict(B) == held)))
        solutions.append((head.coef_.copy(), head.intercept_.copy()))
    return time.perf_counter() - started, accuracies, solutions


def objective(logits: Any, squares: float, y: Any, C: float) -> float:
    """Return C * (sum of log-losses) + ||W||^2 / 2."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-C * log_p[np.arange(len(y)), y].sum() + squares / 2)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "face_id": ("lfw", {"heads": ["nearest-neighbor", "ridge"]}),
    "linear-lbfgs": ("lfw", {"heads": ["linear-lbfgs"], "selections": ["single"]}),
    "few_shot": ("tiny", {"layers": "<=8x8", "pools": "avg:4"}),
    "classification": ("tiny", {"layers": "<=16x16", "pools": "avg:4", "heads": ["knn", "ridge"]}),
}
"""The store, and what `vr.probe` is asked, by the name of the case."""

RUN = """
import json, resource, sys, time
import vdvae_repr as vr
path, case, how = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
task = vr.FewShot(shots=(1, 5)) if case == "few_shot" else {"linear-lbfgs": "face_id"}.get(case, case)
started = time.perf_counter()
rows = vr.probe(vr.open(path), task, cache=None, progress=False, **how).rows
chosen = {
    f"{row.head} {row.metric} {row.layer}": round(row.value, 4)
    for row in rows if row.chosen and row.layer and row.model not in ("random-init", "shuffled-labels")
}
print(json.dumps({
    "seconds": round(time.perf_counter() - started, 1),
    "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    "rows": len(rows), "chosen": chosen,
}))
"""


def stores(data: Path, work: Path, images: int | None) -> dict[str, Path]:
    """Extract LFW's people and Tiny ImageNet by faces64, or some images of each, where they are not."""
    work.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, source, frame in (
        ("lfw", data / "lfw_people" / "labels.csv", {"crop": 128}),
        ("tiny", data / "tiny_imagenet", {}),
    ):
        found[name] = work / (f"{name}-{images}.h5" if images else f"{name}.h5")
        opened = vr.open_source(source)
        if images:
            sides = list(zip(opened.labels.tolist(), opened.splits, strict=True))
            each = max(4, images // len(set(sides)))  # of a class in a split
            rank = np.array([sides[:i].count(side) for i, side in enumerate(sides)])
            opened = opened.select(np.flatnonzero(rank < each))
        vr.extract(vr.load("faces64"), opened, found[name], **frame)
    return found


def answers(options: argparse.Namespace) -> None:
    """Time each case in turn by this checkout and by the other."""
    paths = stores(options.data, options.work, options.images)
    trees = {"this": Path(__file__).parents[2]}
    if options.against:
        trees["against"] = options.against.resolve()
    for case in options.case or CASES:
        store, how = CASES[case]
        how = {"selections": ["single", "cumulative"]} | how
        if options.no_controls:
            how["controls"] = []
        for name, tree in trees.items():
            environment = os.environ | {"PYTHONPATH": str(tree)}
            command = [sys.executable, "-c", RUN, str(paths[store]), case, json.dumps(how)]
            run = subprocess.run(
                command, env=environment, cwd=tree, capture_output=True, text=True, check=False
            )
            last = run.stdout.strip().splitlines()[-1:] or [
                json.dumps({"error": run.stderr[-300:]})
            ]
            row = {"case": case, "checkout": name, "cores": len(os.sched_getaffinity(0))}
            row["controls"] = "none" if options.no_controls else "all"
            row |= {"images": options.images} | json.loads(last[0])
            print(json.dumps(row), flush=True)


def main() -> None:
    """Time answers, or the head beside scikit-learn's, and compare what they find."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, value in (("samples", 2000), ("dims", 16_384), ("classes", 40), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ours", action="store_true", help="leave scikit-learn out")
    parser.add_argument("--data", type=Path, help="time answers on the images in this folder")
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), help="where stores lie")
    parser.add_argument("--against", type=Path, help="another checkout, timed in turn")
    parser.add_argument("--images", type=int, help="about so many of each store alone")
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--no-controls", action="store_true", help="the layers alone")
    options = parser.parse_args()
    if options.data:
        answers(options)
        return
    warnings.simplefilter("ignore")
    n = options.samples
    X, y = samples(n + 500, options.dims, options.classes)
    own: list[float] = []
    sums: list[float] = []
    other: dict[float, list[float]] = {1e-4: [], 1e-8: []}
    found: dict[float, tuple[list[float], list[Any]]] = {}
    for number in range(options.rounds):
        seconds, summed, head, gram = ours(X, y[:n], y[n:])
        own.append(seconds)
        sums.append(summed)
        if not number:  # theirs has not run yet
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for tol, taken in () if options.ours else other.items():
            seconds, *found[tol] = theirs(X, y[:n], y[n:], tol)
            taken.append(seconds)
    if options.ours:
        row = {
            "case": "linear-lbfgs", "samples": n, "dims": options.dims, "classes": options.classes,
            "grid": len(C_GRID), "gram_seconds": round(statistics.median(sums), 2),
            "head_seconds": round(statistics.median(own) - statistics.median(sums), 2),
            "best_accuracy": round(float(head.cv_scores_.max()), 3), "peak_mb": round(peak),
            "cores": os.cpu_count(), "machine": platform.machine(),
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        return
    A = StandardScaler().fit_transform(X[:n].astype(np.float64))
    excess = []
    for C, (W, b) in zip(C_GRID, found[1e-8][1], strict=True):
        alone = LogisticProbe(Cs=[C], precomputed=True).fit(gram.inner[:n], y[:n])
        logits = alone.class_scores(gram.inner[:n])
        mine = objective(logits, float((alone._weights**2).sum()), y[:n], C)
        excess.append(mine / objective(A @ W.T + b, float((W**2).sum()), y[:n], C) - 1)
    for tol, taken in other.items():
        row = {
            "samples": n, "dims": options.dims, "classes": options.classes, "grid": len(C_GRID),
            "seconds": round(statistics.median(own), 1), "scikit_learn_tol": tol,
            "scikit_learn_seconds": round(statistics.median(taken), 1),
            "times": round(statistics.median(b / a for a, b in zip(own, taken, strict=True)), 1),
            "best_accuracy": round(float(head.cv_scores_.max()), 3),
            "scikit_learn_best_accuracy": round(max(found[tol][0]), 3),
            "largest_excess_of_the_objective": float(f"{max(excess):.1e}"),
            "peak_mb": round(peak), "features_mb": round(X.nbytes / 2**20),
            "machine": platform.machine(), "scikit_learn": sklearn.__version__,
        }  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
