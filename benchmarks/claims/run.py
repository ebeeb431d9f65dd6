"""The paper's claims, checked at three sizes.

    python benchmarks/claims/run.py --size smoke          all, two minutes; writes what git ignores
    python benchmarks/claims/run.py --size local          all, 6 hours at most on two cores (`make claims`)
    python benchmarks/claims/run.py --size local depth    one of them
    python benchmarks/claims/run.py --size full           one GPU, the paper's data sets

`local` needs the images that README.md names, in the folder `--data` or VDVAE_REPR_DATA. Of local and full,
what is done is not done again: the same command goes on where it was stopped. Exit 1 where a piece failed.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a piece a core, rather than a few cores a piece

import argparse
import datetime
import hashlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pandas as pd
import torch
from claim import HERE, SIZES, Context, Piece, Row, Settings, module, name_of, read_settings
from page import write_index, write_page

import vdvae_repr as vr

CLAIMS = (
    "depth", "autoregressive", "construction", "unpooling", "skipping", "where", "student", "transfer",
)  # fmt: skip
ROOT = HERE.parents[1]
RESULTS = HERE.parent / "results" / "claims"
PLACES = {"smoke": RESULTS / "smoke", "local": RESULTS, "full": RESULTS / "full"}


def folder_of(work: Path, claim: str, piece: Piece, settings: Settings, data: Path) -> Path:
    """Return the folder of a piece, another one for other settings or another folder of data."""
    text = json.dumps([piece, settings, str(data.resolve())], sort_keys=True)
    return work / claim / f"{name_of(piece)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def finished(folder: Path) -> list[Row] | None:
    """Return the rows of a piece that is done; None of another."""
    path = folder / "rows.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def machine(device: str) -> str:
    """Say what a piece is computed on."""
    if device == "cpu":
        what = f"a thread of {os.cpu_count()} CPU cores"
        if (threads := torch.get_num_threads()) > 1:
            what = f"{threads} threads of {os.cpu_count()} CPU cores"
    else:
        what = torch.cuda.get_device_name(device)
    return f"{what}, PyTorch {torch.__version__}"


def work_on(claim: str, piece: Piece, context: Context) -> list[Row]:
    """Do a piece and keep its rows; returns them."""
    context.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    found = module(claim).measure(piece, context)
    seconds = round(time.monotonic() - started, 1)
    about = {"date": f"{datetime.date.today()}", "machine": machine(context.device)}
    rows = [
        piece | row | {"seconds": seconds if i == 0 else 0.0} | about for i, row in enumerate(found)
    ]
    part = context.folder / "rows.part"
    part.write_text(json.dumps(rows, default=float), encoding="utf-8")
    part.rename(context.folder / "rows.json")
    return rows


def work_off(
    claim: str, pieces: list[Piece], contexts: list[Context], jobs: int
) -> Iterator[tuple[Piece, Exception | None]]:
    """Do pieces, some at once; yields each when it is done, with what it raised."""
    if jobs == 1 or len(pieces) == 1:
        for piece, context in zip(pieces, contexts, strict=True):
            try:
                work_on(claim, piece, context)
                yield piece, None
            except vr.Terminated:  # all is to stop, not this piece alone
                raise
            except Exception as error:
                traceback.print_exc()
                yield piece, error
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        started = {
            pool.submit(work_on, claim, piece, context): piece
            for piece, context in zip(pieces, contexts, strict=True)
        }
        try:
            for future in as_completed(started):
                if isinstance(error := future.exception(), vr.Terminated):
                    raise error
                if error is not None:
                    traceback.print_exception(error)
                yield started[future], error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run(
    claim: str, size: str, data: Path, work: Path, out: Path, jobs: int, device: str | None = None
) -> bool:
    """Do what is not done of a claim, and write its CSV, figure and page; False where a piece failed."""
    settings, script = read_settings(claim, size), module(claim)
    pieces = script.pieces(settings)
    folders = [folder_of(work, claim, piece, settings, data) for piece in pieces]
    todo = [i for i, folder in enumerate(folders) if finished(folder) is None]
    say(f"{claim}: {len(pieces)} pieces, {len(pieces) - len(todo)} of them done before")
    device = device or settings.get("device", "cpu")
    contexts = [Context(settings, data, folders[i], device) for i in todo]
    failed = False
    started = time.monotonic()
    alone = getattr(script, "TIMED", False)
    own = [pieces[i] for i in todo]
    for piece, error in work_off(claim, own, contexts, 1 if alone else jobs):
        failed |= error is not None
        minutes = (time.monotonic() - started) / 60
        how = "done" if error is None else f"FAILED ({error})"
        say(f"  {name_of(piece)}: {how}, {minutes:.1f} min since the start")
    if failed:
        say(f"{claim}: no page, as pieces failed; the same command does them again")
        return False
    rows = [row for folder in folders for row in finished(folder) or ()]
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(out / f"{claim}.csv", index=False, lineterminator="\n")
    for folder in folders:
        for picture in folder.glob(f"{claim}_*.png"):
            (out / picture.name).write_bytes(picture.read_bytes())
    write_page(claim, size, out)
    say(f"{claim}: {out / claim}.md")
    return True


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def main() -> None:
    """Run the claims that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "claims", nargs="*", metavar="claim", help=f"of {', '.join(CLAIMS)}; all by default"
    )
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--data", type=Path, default=os.environ.get("VDVAE_REPR_DATA", "data"))
    parser.add_argument(
        "--work", type=Path, help="folder of runs; runs/claims/SIZE, of smoke a new one"
    )
    parser.add_argument("--out", type=Path, help="folder of results")
    parser.add_argument("--device", help="cpu or cuda, in place of the size's own")
    parser.add_argument(
        "--jobs", type=int, help="pieces at once; a core each by default, of full 1"
    )
    options = parser.parse_args()
    if wrong := set(options.claims) - set(CLAIMS):
        parser.error(f"no claim {', '.join(sorted(wrong))}; there are {', '.join(CLAIMS)}")
    size, out = options.size, options.out or PLACES[options.size]
    jobs = options.jobs or (1 if size == "full" else os.cpu_count() or 1)
    for claim in options.claims or CLAIMS:
        wanted = read_settings(claim, size)["data"]
        path = Path(wanted.format(data=options.data))
        if "{data}" in wanted and not path.exists():
            parser.error(f"{claim}: expected {path}, found none; give --data or VDVAE_REPR_DATA")
    with tempfile.TemporaryDirectory() as fresh:  # of smoke, which is to run each time
        kept = Path(fresh) if size == "smoke" else ROOT / "runs" / "claims" / size
        good = []
        for claim in options.claims or CLAIMS:
            try:
                good.append(
                    run(
                        claim,
                        size,
                        options.data.resolve(),
                        options.work or kept,
                        out,
                        jobs,
                        options.device,
                    )
                )
            except vr.Terminated as error:
                sys.exit(f"{error}; the same command goes on")
            except Exception:  # of a page or a figure: the other claims are run all the same
                traceback.print_exc()
                good.append(False)
    if options.out is None and size != "smoke":
        write_index(RESULTS, CLAIMS)
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
