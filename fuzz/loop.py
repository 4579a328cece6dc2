"""Fuzz without atheris: seeds, changed at random, in one loop: ``python fuzz/loop.py TARGET... [--seconds N] [--seed N]``.

Nothing guides it but the seeds, so it takes much less for each input: it finds what many inputs find. A finding is
made as short as it gets, printed and kept in ``--found``, and the loop goes on. A target, a seed and the number of a
finding name it for good.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

import seeds
import targets

NUMBERS = [number.to_bytes(size, "little") for size in (1, 2, 4, 8) for number in (0, 1, 127, 128, 255)]
NUMBERS += [((1 << 8 * size) - less).to_bytes(size, "little") for size in (2, 4, 8) for less in (1, 2, 16)]
LONGEST = (64, 400, 4096)
"""Most bytes of an input, each as often: many short ones find what few long ones do, and what these never reach."""
_MOST_TRIES = 2_000
"""Parts of a finding that are left out to see whether they matter."""


def change(dice: random.Random, data: bytearray, other: bytes) -> None:
    """Change one thing: a byte, a number, a length, or a part that is left out, doubled or another input's."""
    what, at = dice.randrange(8), dice.randrange(len(data) + 1)
    size = dice.choice((1, 2, 4, 8, 16, 40))
    if what <= 2 and at < len(data):
        data[at] = data[at] ^ (1 << dice.randrange(8)) if what else dice.randrange(256)
    elif what == 3:
        number = dice.choice(NUMBERS)
        data[at : at + len(number)] = number
    elif what == 4:
        del data[at : at + size]
    elif what == 5:
        data[at:at] = data[at : at + size]
    elif what == 6:
        begin = dice.randrange(len(other) + 1)
        data[at:at] = other[begin : begin + size * 4]
    else:
        del data[at:]


def inputs(name: str, dice: random.Random) -> itertools.chain[bytes]:
    """Without end: random bytes, and seeds with a few changes."""
    known = [data[: LONGEST[-1]] for target, _, data in seeds.seeds() if target == name]
    known += [path.read_bytes() for path in sorted((HERE / "corpus" / name).glob("*"))]

    def one() -> bytes:
        longest = dice.choice(LONGEST)
        if name in targets.STRUCTURED and dice.randrange(8):
            return dice.randbytes(dice.randrange(longest))
        if not known or not dice.randrange(8):
            return dice.randbytes(dice.randrange(min(longest, 400)))
        data, other = bytearray(dice.choice(known)), dice.choice(known)
        for _ in range(1 + dice.randrange(6)):
            change(dice, data, other)
        return bytes(data[:longest])

    return itertools.chain(known, iter(one, None))


def failure(name: str, data: bytes) -> str | None:
    """Where in which file a target fails with an input; `None`: it does not."""
    try:
        targets.TARGETS[name](data)
    except Exception as error:  # noqa: BLE001  # whatever a target raises is a finding
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} {last.filename}:{last.lineno}"
    return None


def shrink(name: str, data: bytes) -> bytes:
    """The same failure with less: without its end, then without each part that does not matter."""
    wanted, tries = failure(name, data), 0
    shortest, longest = 0, len(data)
    while shortest < longest:
        middle = (shortest + longest) // 2
        shortest, longest = (shortest, middle) if failure(name, data[:middle]) == wanted else (middle + 1, longest)
    data = data[:longest] if failure(name, data[:longest]) == wanted else data
    size = len(data) // 2
    while size:
        at = 0
        while at < len(data) and tries < _MOST_TRIES:
            tries += 1
            less = data[:at] + data[at + size :]
            if failure(name, less) == wanted:
                data = less
            else:
                at += size
        size //= 2
    return data


def fuzz(name: str, seconds: float, seed: int, found: Path | None = None) -> tuple[int, int]:
    """Play to a target for so many seconds of processor time: how many inputs there were, and how many broke a promise."""
    target, many, broken = targets.TARGETS[name], 0, 0
    source = inputs(name, random.Random(f"{name}/{seed}"))  # noqa: S311  # to be repeated
    gc.freeze()  # what is there need not be looked through again and again
    end = time.process_time() + seconds
    for number, data in enumerate(source, 1):
        try:
            many += target(data) or 1
        except Exception:  # noqa: BLE001  # whatever a target raises is a finding
            broken += 1
            short = shrink(name, data)
            print(f"{name}, seed {seed}, {number}: {short.hex()}\n{traceback.format_exc(limit=-4)}", flush=True)
            if found is not None:
                found.mkdir(parents=True, exist_ok=True)
                (found / f"{name}-{seed}-{number}").write_bytes(short)
        if not number % 16 and time.process_time() > end:
            break
    return many, broken


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "targets", nargs="+", choices=targets.TARGETS, metavar="TARGET", help=", ".join(targets.TARGETS)
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of processor time, for each (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--found", type=Path, help="a directory for inputs that break a promise")
    arguments = parser.parse_args()
    findings = 0
    for name in arguments.targets:
        many, broken = fuzz(name, arguments.seconds, arguments.seed, arguments.found)
        findings += broken
        print(f"{name}: {many:,} inputs, {many / arguments.seconds:,.0f} a second, {broken} findings", flush=True)
    return findings > 0


if __name__ == "__main__":
    sys.exit(main())
