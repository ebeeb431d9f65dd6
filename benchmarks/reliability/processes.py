"""Commands of vdvae-repr in forked children of a process that has imported everything.

So a try costs its work alone.
A child can be killed at a time, or at its k-th operation on a file of its folder, which finds windows of
microseconds that no time would hit.
"""

import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdvae_repr import cli
from vdvae_repr.errors import VDVAEReprError
from vdvae_repr.latents import extract as extraction

LIMIT = 120  # seconds, after which a command hangs
LOGS = Path(tempfile.gettempdir())  # not where a disk is full
PART = 6  # images of a part, so that a small store has several
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass
class Ended:
    """How a command ended: its exit code, negative for a signal; None where it hung, and was killed."""

    code: int | None
    output: str
    """Standard output and error."""

    @property
    def crashed(self) -> bool:
        """Whether it showed a traceback, hung, met an error that nobody foresaw, or died of itself."""
        died = self.code is not None and self.code < 0
        fatal = died and -self.code not in (signal.SIGKILL, signal.SIGTERM)
        strange = (
            "Traceback (most recent call last)" in self.output
            or "vdvae-repr: unexpected " in self.output
        )
        return self.code is None or fatal or strange

    def __str__(self) -> str:
        """Say it in a line."""
        last = self.output.strip().splitlines()[-1:] or [""]
        return f"exit {self.code}: {last[0][:200]}"


class Command:
    """A command that runs in a child; `setup` is called there first."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        setup: Callable[[], object] = lambda: None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = LOGS / f"reliability-{os.getpid()}-{time.monotonic_ns()}.log"
        self.log.touch()  # a child may be killed before it gets there
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _run(list(arguments), folder, self.log, setup, environment or {})

    def poll(self) -> bool:
        """Return whether it still runs."""
        if not hasattr(self, "status"):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid:
                return True
            self.status = os.waitstatus_to_exitcode(status)
        return False

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; return whether it was still running."""
        if running := self.poll():
            os.kill(self.pid, number)
        return running

    def wait(self, limit: float = LIMIT) -> Ended:
        """Wait until it ends, or kill it."""
        until = time.monotonic() + limit
        while self.poll() and time.monotonic() < until:
            time.sleep(0.002)
        hung = self.send(signal.SIGKILL)
        while self.poll():
            time.sleep(0.002)
        output = self.log.read_text(errors="replace")
        self.log.unlink()
        return Ended(None if hung else self.status, output)


def _run(
    arguments: list[str],
    folder: Path,
    log: Path,
    setup: Callable[[], object],
    environment: dict[str, str],
) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (open(fd, "w", buffering=1) for fd in (1, 2))  # noqa: PTH123, SIM115
        os.environ.update(environment)
        sys.argv = ["vdvae-repr", *arguments]
        extraction.PART = PART
        setup()
        cli.main()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def at_change(folder: Path, number: int) -> Callable[[], None]:
    """Return a setup that kills the process at its `number`-th operation on files of a folder."""

    def setup() -> None:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if _changes(event, arguments, folder):
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return setup


def counting(folder: Path, into: Path) -> Callable[[], None]:
    """Return a setup that writes a byte for each operation into a file."""

    def setup() -> None:
        handle = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if _changes(event, arguments, folder):
                os.write(handle, b".")

        sys.addaudithook(hook)

    return setup


def _changes(event: str, arguments: tuple[Any, ...], folder: Path) -> bool:
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & WRITING:
            return False
    elif event in CHANGES:
        path = arguments[0]
    else:
        return False
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    name = os.fsdecode(path)
    return name.startswith(str(folder)) or not name.startswith("/")


class Failure(Exception):
    """What a child raised that is no error of the library, or how it died."""


def in_child(function: Callable[[], Any], limit: float = LIMIT) -> Any:
    """Return what a function returns in a child, so that nothing that it opens or breaks stays here.

    Raises:
        VDVAEReprError: as the function.
        Failure: another error, death or a hang.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if not (pid := os.fork()):
        os.close(read)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        try:
            answer = ("value", function())
        except VDVAEReprError as error:
            answer = ("refused", f"{type(error).__name__}: {error}")
        except BaseException:
            answer = ("failed", traceback.format_exc())
        with os.fdopen(write, "wb") as file:
            pickle.dump(answer, file)
        os._exit(0)
    os.close(write)
    timer = _Alarm(pid, limit)
    with os.fdopen(read, "rb") as file:
        content = file.read()
    _, status = os.waitpid(pid, 0)
    timer.stop()
    if status:
        raise Failure(f"died, exit {os.waitstatus_to_exitcode(status)}")
    kind, answer = pickle.loads(content)
    if kind == "refused":
        raise VDVAEReprError(answer)
    if kind == "failed":
        raise Failure(answer)
    return answer


class _Alarm:
    """Kills a child after a time."""

    def __init__(self, pid: int, limit: float) -> None:
        self._before = signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, limit)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)


def empty(folder: Path) -> Path:
    """Make a folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
