"""Commands as processes of their own that have imported PyTorch already, so that each starts at once.

They are forks of one process that imports and does nothing else; what a process would do by itself (signals,
exit codes, files, what it prints) it does here too. What is about importing is tested by `subprocess`.
"""

import atexit
import functools
import importlib.util
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HEAVY = [
    "accelerate", "h5py", "pandas", "scipy.stats", "sklearn.base", "torch", "torch.distributed.run",
    "torchvision", "vdvae_repr.cli", "vdvae_repr.data.open", "vdvae_repr.encoders.load",
    "vdvae_repr.heads.neighbors", "vdvae_repr.latents.extract", "vdvae_repr.probing",
    "vdvae_repr.report.pictures", "vdvae_repr.tasks", "vdvae_repr.training.trainer",
]  # fmt: skip
COMMAND = Path(importlib.util.find_spec("vdvae_repr").origin).with_name("__main__.py")  # a script
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(HEAVY)


@functools.cache
def _printed():
    """Make the folder of what commands print, once, in the process that starts them."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class Command:
    """A running `vdvae-repr ARGUMENTS`, or code with these arguments, as `subprocess.Popen` would have it."""

    def __init__(self, *arguments, cwd=None, code=None, environment=None):
        folder = tempfile.mkdtemp(dir=_printed())
        self._files = [Path(folder, name) for name in ("stdout", "stderr")]
        job = ([*map(str, arguments)], os.fspath(cwd or "."), code, environment or {}, self._files)
        self._process = _forks.Process(target=_run, args=job)
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        """Return the exit code, as `returncode`; None while it runs."""
        return self.returncode

    @property
    def returncode(self):
        """The exit code, or less a signal's number; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number):
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self):
        """End it as nothing can prevent."""
        self._process.kill()

    def wait(self, timeout=300):
        """Wait for its end, and return the exit code."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"expected an end within {timeout} s")
        return self.returncode

    def communicate(self, timeout=300):
        """Wait for its end, and return what it printed: standard output and standard error."""
        self.wait(timeout)
        return tuple(file.read_text() for file in self._files)


def run(*arguments, **options):
    """Run a command to its end, as `subprocess.run` does."""
    process = Command(*arguments, **options)
    printed = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, *printed)


def torchrun(script, *arguments, **options):
    """Start `torchrun --standalone --nproc-per-node=2 SCRIPT ARGUMENTS`, whose processes are forks, too."""
    options["environment"] = {"OMP_NUM_THREADS": "1"} | options.get("environment", {})
    launcher = ["--standalone", "--nproc-per-node=2", "--start-method=fork", "--run-path", script]
    code = "from torch.distributed.run import main; main()"
    return Command(*launcher, *arguments, code=code, **options)


def _run(arguments, cwd, code, environment, files):
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["vdvae-repr", *arguments]
    exec(code or "from vdvae_repr.cli import main; main()", {"__name__": "__main__"})
