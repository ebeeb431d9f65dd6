"""Reads stores that are damaged by chance, in a process of its own: damaged HDF5 may end or stop one.

    python damage.py FILE... FIRST LAST

Of each number from FIRST to LAST - 1 a few bits of one of the files are flipped, drawn by that number; the
first file, a store, is then read and verified, and a line says what came of it: `said`, in one line of the
library's own errors; `equal`, where nothing that can be read has changed; `unseen`; or a `traceback`.
"""

import random
import sys
import warnings
from pathlib import Path

import numpy as np

import vdvae_repr as vr


def values_of(path):
    """Return everything that can be read of a store."""
    with vr.open(path) as store:
        arrays = {
            f"{spec.name} {f}": store.matrix(spec.name, f)[0]
            for spec in store.layers
            for f in store.features
        }
        arrays |= {
            "labels": store.labels,
            "kl": store.kl,
            "images": store.images(),
            "sums": store.checksums[1],
        }
        arrays |= store.factors
        words = (
            store.ids,
            store.splits,
            store.label_names,
            repr(store.info),
            repr(sorted(store.attrs.items())),
        )
        return words, arrays


def equal(one, other):
    """Whether two stores read the same."""
    return (
        one[0] == other[0]
        and one[1].keys() == other[1].keys()
        and all(
            a.dtype == b.dtype and np.array_equal(a, b)
            for a, b in zip(one[1].values(), other[1].values(), strict=True)
        )
    )


def outcome(path, before):
    """Say what comes of reading a store."""
    try:
        found = values_of(path)
        if equal(found, before):
            return "equal"
        with vr.open(path) as store:
            store.verify()
    except vr.VDVAEReprError as error:
        return "traceback: two lines" if "\n" in str(error) else "said"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}".partition("\n")[0]
    return "unseen"


def flip(content, number):
    """Return content with a bit flipped, sometimes several in a row."""
    rng = random.Random(number)
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def main(*arguments):
    """Damage, read, and print."""
    warnings.simplefilter("ignore")
    *files, first, last = arguments
    before = values_of(files[0])
    contents = [Path(file).read_bytes() for file in files]
    for number in range(int(first), int(last)):
        which = random.Random(-1 - number).choices(range(len(files)), [len(c) for c in contents])[0]
        Path(files[which]).write_bytes(flip(contents[which], number))
        print(number, outcome(files[0], before), flush=True)
        Path(files[which]).write_bytes(contents[which])


if __name__ == "__main__":
    main(*sys.argv[1:])
