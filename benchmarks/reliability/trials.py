"""The tries: each breaks something at random, looks at what is left, and runs the command again."""

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from commands import (
    Case,
    Result,
    all_of,
    checked_store,
    results,
    store_files,
    store_values,
    weights,
    write_images,
)
from processes import Command, Ended, Failure, at_change, counting, empty, in_child

import vdvae_repr as vr
from vdvae_repr.latents import extract as extraction

COUNTS = ("lost", "stale", "wrong", "tracebacks")


@dataclass
class Row:
    """What was tried of one kind and command, and how often it went wrong."""

    kind: str
    what: str
    tried: int = 0
    hit: int = 0
    """Tries in which something was met: a process that still ran, a disk that was full, a flip noticed."""
    lost: int = 0
    """What was there is gone or unreadable, or the command cannot be run again."""
    stale: int = 0
    """Values of images that had been replaced."""
    wrong: int = 0
    """Values that are neither the old ones nor the new, without a word."""
    tracebacks: int = 0
    """Tracebacks, crashes and hangs."""
    failures: list[str] = field(default_factory=list)

    def fail(self, how: str, message: object) -> None:
        """Count a failure, and keep what can be told of it."""
        setattr(self, how, getattr(self, how) + 1)
        self.failures.append(f"{self.kind}, {self.what}, try {self.tried}: {how}: {message}")

    @property
    def failed(self) -> bool:
        """Whether anything went wrong."""
        return any(getattr(self, name) for name in COUNTS)


class Bench:
    """A folder for tries, with what undisturbed runs find."""

    def __init__(self, folder: Path, base: Path, seed: int) -> None:
        self.folder, self.base, self.rng = folder, base, random.Random(seed)
        self._known: dict[str, tuple[Path, Result, Result, float, int]] = {}

    def undisturbed(self, case: Case) -> tuple[Path, Result, Result, float, int]:
        """Return a folder as it is before, its result, that of a run, its seconds and changes of files."""
        if str(case) not in self._known:
            name = "".join(c if c.isalnum() else "-" for c in str(case))
            before, after = self.folder / f"before-{name}", self.folder / f"after-{name}"
            case.prepare(before)
            old = case.read(before)
            shutil.rmtree(after, ignore_errors=True)
            shutil.copytree(before, after)
            count = self.folder / "count"
            started = time.monotonic()
            ended = Command(case.arguments, after, counting(after, count)).wait()
            seconds = time.monotonic() - started
            if ended.code != 0:
                raise SystemExit(f"{case}: {ended}")
            case.keep(after, ended)
            new = case.read(after)
            self._known[str(case)] = before, old, new, seconds, count.stat().st_size
        return self._known[str(case)]

    def fresh(self, before: Path | None = None) -> Path:
        """Return a folder for a try, as another one is."""
        place = self.folder / "try"
        shutil.rmtree(place, ignore_errors=True)
        if before is None:
            return empty(place)
        return Path(shutil.copytree(before, place))


def look(row: Row, case: Case, folder: Path, old: Result, new: Result) -> None:
    """Look at what a broken run left: of each piece the old one or the new one, whole."""
    try:
        found = case.read(folder)
    except (vr.VDVAEReprError, Failure) as error:
        row.fail("lost", f"left unreadable: {error}")
        return
    if case.intermediate:
        return
    for piece in {*old, *found}:
        if piece not in found and piece in old and not piece.endswith("?"):
            row.fail("lost", f"{piece} is gone")
            return
        if piece in found and found[piece] not in (old.get(piece), new.get(piece)):
            row.fail("wrong", f"{piece} is neither the old one nor the new")
            return


def run_again(row: Row, case: Case, folder: Path, new: Result) -> None:
    """Run the command again: it completes, with the values of an undisturbed run."""
    ended = Command([*case.arguments, *case.between(folder)], folder).wait()
    if ended.crashed:
        row.fail("tracebacks", f"run again, {ended}")
    elif ended.code != 0:
        row.fail("lost", f"run again, {ended}")
    else:
        case.keep(folder, ended)
        try:
            found = case.read(folder)
        except (vr.VDVAEReprError, Failure) as error:
            row.fail("lost", f"after it was run again: {error}")
            return
        if strange := [key for key in {*new, *found} if found.get(key) != new.get(key)]:
            row.fail("wrong", f"{min(strange)} is another after it was run again")


def kills(bench: Bench, case: Case, tries: int, number: signal.Signals) -> Row:
    """Kill a command at a random time, and with SIGKILL by turns at a random change of a file."""
    row = Row(number.name, str(case))
    before, old, new, seconds, changes = bench.undisturbed(case)
    for index in range(tries):
        row.tried += 1
        folder = bench.fresh(before)
        if index % 2 and number == signal.SIGKILL and changes:
            setup = at_change(folder, bench.rng.randint(1, changes))
            ended = Command(case.arguments, folder, setup).wait()
        else:
            command = Command(case.arguments, folder)
            time.sleep(bench.rng.uniform(0, seconds))
            command.send(number)
            ended = command.wait()
        row.hit += ended.code != 0
        if ended.crashed:
            row.fail("tracebacks", ended)
        look(row, case, folder, old, new)
        run_again(row, case, folder, new)
    return row


# Disks that are full


@contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """Make a folder a file system of its own; False where none may be mounted."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    mounted = shutil.which("mount") is not None and mount("-t", "tmpfs", "tmpfs", str(folder))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def mount(*arguments: str) -> bool:
    """Mount, or mount again; it fails now and then where another process mounts at the same time."""
    for _ in range(20):
        if not subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode:
            return True
        if os.geteuid():
            return False
        time.sleep(0.1)
    return False


def resize(folder: Path, size: int) -> None:
    """Give a file system another size, in bytes."""
    if not mount("-o", f"remount,size={max(size, 4096)}", str(folder)):  # 0 is no limit
        raise SystemExit(f"{folder}: cannot be given a size of {size}")


def no_larger_file(size: int) -> Callable[[], None]:
    """Return a setup under which no file may be larger: a disk that is full, where none can be mounted."""

    def setup() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return setup


def used(folder: Path) -> int:
    """Return the bytes of a folder, in whole pages."""
    return sum(
        -(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file()
    )


def full_disks(bench: Bench, case: Case, tries: int) -> list[Row]:
    """Run a command where there is room for a part of what it writes, then with room.

    Where no small disk can be mounted no file may be larger than a part of it all, which is another kind of
    try and has a row of its own.
    """
    disks, limits = Row("full disk", str(case)), Row("file limit", str(case))
    before, old, new, _, _ = bench.undisturbed(case)
    after = bench.folder / before.name.replace("before-", "after-", 1)
    for _ in range(tries):
        place = bench.folder / "disk"
        with disk(place) as mounted:
            row = disks if mounted else limits
            row.tried += 1
            folder = Path(shutil.copytree(before, place / "try"))
            if mounted:
                more = bench.rng.choice((0, bench.rng.randrange(4096, max(used(after), 8192))))
                room = used(folder) + more
                resize(place, room)
                ended = Command(case.arguments, folder, environment={"TMPDIR": "/tmp"}).wait()
                resize(place, 2**30)
            else:
                limit = no_larger_file(bench.rng.randrange(0, used(after) // 2))
                ended = Command(case.arguments, folder, limit).wait()
            row.hit += ended.code == 2
            if ended.crashed or ended.code not in (0, 2):
                row.fail("tracebacks", ended)
            look(row, case, folder, old, new)
            run_again(row, case, folder, new)
    return [row for row in (disks, limits) if row.tried]


# Bits that flip


def flip(path: Path, rng: random.Random) -> str:
    """Flip a random bit of a file; return where."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    return f"{path.name}, byte {place // 8} of {len(content)}, bit {place % 8}"


def store_flips(bench: Bench, layout: str, tries: int) -> list[Row]:
    """Flip bits of stores: what is read is equal or refused; or at least `verify` refuses it."""
    rows = [Row("flip", f"store ({layout})"), Row("flip", f"store ({layout}), by verify alone")]
    made = bench.fresh()
    arguments = (
        "extract",
        "--model",
        str(bench.base / "model"),
        "--data",
        str(bench.base / "images"),
    )
    arguments += ("--layer", "<=4x4", "--feature", "mean", "--feature", "kl", "--batch-size", "3")
    ended = Command((*arguments, "--layout", layout, "--out", "s.h5"), made).wait()
    if ended.code != 0:
        raise SystemExit(str(ended))
    template = bench.folder / "store"
    shutil.rmtree(template, ignore_errors=True)
    shutil.copytree(made, template)
    truth = in_child(partial(store_values, template / "s.h5"))
    for _ in range(tries):
        folder = bench.fresh(template)
        files = store_files(folder / "s.h5")
        weights_of = [path.stat().st_size for path in files]
        where = flip(bench.rng.choices(files, weights_of)[0], bench.rng)
        for row in rows:
            row.tried += 1
        try:
            found, noticed = in_child(partial(all_of, folder / "s.h5"))
        except vr.VDVAEReprError:
            rows[0].hit += 1
            rows[1].tried -= 1
            continue
        except Failure as error:
            rows[0].fail("tracebacks", f"{where}: {error}")
            rows[1].tried -= 1
            continue
        different = sorted(key for key in {*truth, *found} if truth.get(key) != found.get(key))
        rows[1].hit += noticed
        if different and not noticed:
            rows[0].fail("wrong", f"{where}: {', '.join(different)}")
    return rows


def score_flips(bench: Bench, tries: int) -> Row:
    """Flip bits of scores on the disk: a probe finds what it found."""
    row = Row("flip", "scores of probe")
    case = Case(
        "probe", "scores",
        ("probe", "--latents", str(bench.base / "s.h5"), "--layer", "1x1", "--head", "nearest-neighbor",
         "--cache", "k", "--out", "out"),
        rows_alone,
    )  # fmt: skip
    before, _, new, _, _ = bench.undisturbed(case)
    after = bench.folder / before.name.replace("before-", "after-", 1)
    for _ in range(tries):
        row.tried += 1
        folder = bench.fresh(after)
        kept = sorted((folder / "k").iterdir())
        flip(bench.rng.choice(kept), bench.rng)
        contents = [path.read_bytes() for path in kept]
        run_again(row, case, folder, new)
        row.hit += contents != [path.read_bytes() for path in kept]
    return row


def rows_alone(folder: Path) -> Result:
    """Return the digest of a results folder's rows."""
    return {key: value for key, value in results(folder).items() if key == "results.jsonl"}


def checkpoint_flips(bench: Bench, tries: int) -> Row:
    """Flip bits of a run's checkpoints: it goes on from another one to the same weights, or says so."""
    row = Row("flip", "checkpoints of train")
    train = ("train", str(bench.base / "tiny.toml"), "--data", str(bench.base / "images"))
    case = Case("train", "checkpoints", (*train, "--out", "run"), weights)
    _, _, new, _, _ = bench.undisturbed(case)
    short = bench.folder / "short"
    empty(short)
    ended = Command((*case.arguments, "--set", "train.steps=4"), short).wait()
    if ended.code != 0:
        raise SystemExit(str(ended))
    for _ in range(tries):
        row.tried += 1
        folder = bench.fresh(short)
        files = sorted((folder / "run" / "checkpoints").rglob("step-*/*"))
        where = flip(bench.rng.choice(files), bench.rng)
        ended = Command((*case.arguments, "--set", "train.steps=6", "--resume"), folder).wait()
        row.hit += ended.code == 2 or "damaged" in ended.output
        if ended.crashed:
            row.fail("tracebacks", f"{where}: {ended}")
        elif ended.code == 0 and case.read(folder) != new:
            row.fail("wrong", f"{where}: other weights")
    return row


def model_flips(bench: Bench, tries: int) -> Row:
    """Flip bits of a model's file: it is refused, or its weights and architecture are equal."""
    row = Row("flip", "model.safetensors")
    path = bench.base / "model" / "model.safetensors"

    def read(file: Path) -> dict[str, object]:
        model = vr.load(str(file))
        tensors = {key: value.numpy().tobytes() for key, value in model.state_dict().items()}
        return {"config": repr(model.config), **tensors}

    truth = in_child(partial(read, path))
    for _ in range(tries):
        row.tried += 1
        file = bench.fresh() / path.name
        shutil.copy(path, file)
        where = flip(file, bench.rng)
        try:
            found = in_child(partial(read, file))
        except vr.VDVAEReprError:
            row.hit += 1
            continue
        except Failure as error:
            row.fail("tracebacks", f"{where}: {error}")
            continue
        if found != truth:
            row.fail("wrong", where)
    return row


# Images that are replaced by others of equal size


def replaced(bench: Bench, layout: str, tries: int) -> list[Row]:
    """Replace images after a run, after a killed one and under one: no row of an old image is left."""
    rows = []
    for when in ("after a run", "after a kill", "during a run"):
        row = Row("replaced images", f"extract ({layout}), {when}")
        for _ in range(tries):
            row.tried += 1
            _replace_once(bench, row, layout, when)
        rows.append(row)
    return rows


def _replace_once(bench: Bench, row: Row, layout: str, when: str) -> None:
    folder = bench.fresh()
    kind = bench.rng.choice(("folder", "folder", "tar", "array"))
    data = write_images(folder, kind=kind)
    arguments = [
        "extract",
        "--model",
        str(bench.base / "model"),
        "--data",
        data.name,
        "--layer",
        "1x1",
    ]
    arguments += ["--layout", layout, "--batch-size", "3", "--out"]
    start = bench.rng.randrange(20)
    others = slice(start, start + bench.rng.randint(1, 4))
    good = []  # what a store may hold
    if when == "during a run":  # which may end before they are replaced
        Command([*arguments, "before.h5"], folder).wait()
        good += in_child(partial(checked_store, "before.h5", folder)).values()
    command = Command([*arguments, "s.h5"], folder, slowly)
    if when != "after a run":
        time.sleep(bench.rng.uniform(0, 1))
    if when == "after a kill":
        command.send(signal.SIGKILL)
    ended = command.wait() if when != "during a run" else None
    replace_images(folder, kind, others, keep_times=bench.rng.random() < 0.5)
    ended = ended or command.wait()
    if ended.crashed:
        row.fail("tracebacks", ended)
    truth_of = Command([*arguments, "truth.h5"], folder).wait()
    if truth_of.code != 0:
        row.fail("lost", f"a new store, {truth_of}")
        return
    (truth,) = in_child(partial(checked_store, "truth.h5", folder)).values()

    def judge(how: str, ended: Ended, *allowed: str) -> None:
        if ended.crashed:
            row.fail("tracebacks", f"{how}, {ended}")
        elif ended.code == 0:
            found = in_child(partial(checked_store, "s.h5", folder)).values()
            if not found or any(values not in (truth, *allowed) for values in found):
                row.fail(
                    "stale", f"{how}, {kind}, images {others.start} to {others.stop - 1}: exit 0"
                )

    if when == "during a run":
        row.hit += ended.code == 2
        judge("the run under which they were replaced", ended, *good)
    again = Command([*arguments, "s.h5"], folder).wait()
    row.hit += when != "during a run" and again.code == 2
    judge("run again", again)
    anew = Command([*arguments, "s.h5", "--overwrite"], folder).wait()
    if anew.code != 0:
        row.fail("lost", f"--overwrite, {anew}")
    judge("--overwrite", anew)


def replace_images(folder: Path, kind: str, replaced: slice, keep_times: bool) -> None:
    """Replace images; with the times that their files had, as tools that copy with times may leave them."""
    files = [path for path in folder.rglob("*") if path.suffix in (".ppm", ".tar", ".npy")]
    before = {path: path.stat() for path in files}
    write_images(folder, replaced, kind)
    if keep_times:
        for path, status in before.items():
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def slowly() -> None:
    """Setup: images take a little time to read, so that what happens can happen between two."""
    read = extraction.read_images

    def wait(*arguments: object) -> object:
        time.sleep(0.02)
        return read(*arguments)

    extraction.read_images = wait


def replaced_under_training(bench: Bench, tries: int) -> Row:
    """Replace images between a run that was stopped and its resumption: it does not go on in silence."""
    row = Row("replaced images", "train, before --resume")
    for _ in range(tries):
        row.tried += 1
        folder = bench.fresh()
        write_images(folder)
        train = ["train", str(bench.base / "tiny.toml"), "--data", "images", "--out", "run"]
        Command([*train, "--set", "train.steps=2"], folder).wait()
        start = bench.rng.randrange(20)
        replace_images(folder, "folder", slice(start, start + 2), keep_times=False)
        ended = Command([*train, "--set", "train.steps=6", "--resume"], folder).wait()
        row.hit += ended.code == 2
        if ended.crashed:
            row.fail("tracebacks", ended)
        elif ended.code == 0:
            row.fail("stale", f"went on, {ended}")
    return row


# Two at once


def races(bench: Bench, case: Case, other: tuple[str, ...], tries: int) -> Row:
    """Start two commands to one place: the result is one's, whole, and neither's message is a traceback."""
    row = Row("race", str(case))
    before, _, new, seconds, _ = bench.undisturbed(case)
    rival = Case(case.command, f"{case.layout}, rival", other, case.result, case.before)
    _, _, theirs, _, _ = bench.undisturbed(rival)
    for _ in range(tries):
        row.tried += 1
        folder = bench.fresh(before)
        first = Command(case.arguments, folder)
        time.sleep(bench.rng.uniform(0, seconds) if bench.rng.random() < 0.5 else 0)
        second = Command(other, folder)
        ended = [first.wait(), second.wait()]
        row.hit += any(end.code == 2 for end in ended)
        for end in ended:
            if end.crashed or end.code not in (0, 2):
                row.fail("tracebacks", end)
        if all(end.code == 2 for end in ended):
            row.fail("lost", f"both were refused: {ended[0]}; {ended[1]}")
            continue
        try:
            found = case.read(folder)
        except (vr.VDVAEReprError, Failure) as error:
            row.fail("lost", error)
            continue
        whole = [{k: v for k, v in one.items() if not k.endswith("?")} for one in (new, theirs)]
        kept = {key: value for key, value in found.items() if not key.endswith("?")}
        separate = case.command == "decode"  # a picture each
        if separate:
            mixed = any(value not in (new.get(key), theirs.get(key)) for key, value in kept.items())
        else:
            mixed = kept not in whole
        if mixed:
            row.fail("wrong", f"neither one's result: {ended[0]}; {ended[1]}")
    return row


def ranks(bench: Bench, case: Case, tries: int) -> Row:
    """Kill one of two processes that divide a command, then what is left of both, and run it again by two."""
    row = Row("rank killed", str(case))
    before, old, new, _, _ = bench.undisturbed(case)
    alone = bench.fresh(before)
    started = time.monotonic()
    ends = [command.wait() for command in _two(case, alone, [])]
    seconds = time.monotonic() - started
    if any(end.code for end in ends):
        row.fail("lost", f"undisturbed, {ends[0]}; {ends[1]}")
        return row
    new = case.read(alone) if case.intermediate else new  # sums in another order
    for _ in range(tries):
        row.tried += 1
        folder = bench.fresh(before)
        pair = _two(case, folder, [])
        time.sleep(bench.rng.uniform(0, seconds))
        row.hit += bench.rng.choice(pair).send(signal.SIGKILL)
        time.sleep(0.1)
        for command in pair:
            command.send(signal.SIGTERM)  # as torchrun does
        for command in pair:
            ended = command.wait(limit=30)  # after which torchrun kills
            if "Traceback" in ended.output:  # a line on the lost connection is what there is to say
                row.fail("tracebacks", ended)
        look(row, case, folder, old, new)
        ends = [command.wait() for command in _two(case, folder, case.between(folder))]
        if any(end.code for end in ends):
            row.fail("lost", f"run again, {ends[0]}; {ends[1]}")
        elif (found := case.read(folder)) != new:
            row.fail("wrong", f"another after it was run again: {sorted(found)}")
    return row


def _two(case: Case, folder: Path, more: list[str]) -> list[Command]:
    """Start a command as torchrun starts two processes of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(port)
    return [
        Command(
            [*case.arguments, *more],
            folder,
            environment=shared | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
