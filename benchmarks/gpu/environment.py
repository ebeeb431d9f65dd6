"""Say what a machine is: card, driver, PyTorch, commit; and how fast it multiplies and copies.

    python benchmarks/gpu/environment.py --device cuda

Prints one JSON object. The commit is that of $COMMIT, where a checkout travels without its history.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess

import torch
from rates import copy_rate, matrix_rate


def output(*command: str) -> str | None:
    """Return what a command prints; None where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def main() -> None:
    """Print the environment."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    card = output(
        "nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"
    )
    found = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": os.environ.get("COMMIT") or output("git", "rev-parse", "HEAD"),
        "card": torch.cuda.get_device_name() if cuda else None,
        "nvidia_smi": card,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "matrix_tflops": {
            name: round(matrix_rate(name, options.device) / 1e12, 2)
            for name in ("fp32", *(["tf32"] if cuda else []), "bf16")
        },
        "copy_gb_per_second": round(copy_rate(options.device) / 1e9, 1),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
