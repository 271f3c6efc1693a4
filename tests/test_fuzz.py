"""Readers under any bytes: a file opens, or is refused with an error of skylevel's own; never anything else.

For a few seconds by default, and for SKYLEVEL_FUZZ_SECONDS where that is set. FITS is read here,
in this process; LibRaw,
which is C, in one of its own, so that a crash is an error of that file and not the end of the tests.
"""

import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from corpus import cal, colour, compressed, dng, put_through
from skylevel.errors import SkylevelError
from skylevel.io.frame import open_frame, peek_frame

pytestmark = pytest.mark.once

SECONDS = float(os.environ.get("SKYLEVEL_FUZZ_SECONDS", "4"))
IS_LONG = "SKYLEVEL_FUZZ_SECONDS" in os.environ
SEEDS = {"cal": cal(), "colour": colour(), "compressed": compressed(), "rice": compressed("RICE_1", "i2")}

# Words that mean something to a reader of FITS.
WORDS = [b"NAXIS   = ", b"NAXIS1  = ", b"BITPIX  = ", b"PCOUNT  = ", b"GCOUNT  = ", b"EXTNAME = ", b"BSCALE  = ",
         b"BZERO   = ",
         b"BLANK   = ", b"END" + b" " * 77, b"XTENSION= 'BINTABLE'", b"XTENSION= 'IMAGE   '", b"SIMPLE  = ",
         b"ZIMAGE  = T",
         b"CONTINUE  '", b"HIERARCH ", b"HISTORY ", b"A_ORDER = ", b"CTYPE1  = ", b"BAYERPAT= ", b"ROWORDER= ",
         b"DETECTOR= ",
         b"99999999999999999999", b"2147483648", b"-1", b"0", b"'", b"''", b"/", b"=", b"1E400", b"NaN", b"T", b"F",
         b"\0", b"\xff",
         b" " * 80, b"&'"]  # fmt: skip

long_or_short = settings(
    deadline=None,
    derandomize=not IS_LONG,
    max_examples=200,
    phases=[Phase.explicit, Phase.generate] if not IS_LONG else list(Phase),
    suppress_health_check=list(HealthCheck),
)


def for_seconds(seconds: float, search: Callable[[], None]) -> None:
    """Search once, and where more is asked for, until the time is over."""
    end = time.monotonic() + seconds
    search()
    while IS_LONG and time.monotonic() < end:
        search()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    (path / "outputs").mkdir()
    return path


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Places and what is written there: whole words mostly at the begin of a card."""
    places = st.one_of(
        st.integers(0, 300).map(lambda card: 80 * card),
        st.integers(0, 300).map(lambda card: 80 * card + 10),
        st.integers(0, 30_000),
    )
    text = st.one_of(st.sampled_from(WORDS), st.binary(min_size=1, max_size=12))
    return draw(st.lists(st.tuples(places, text), min_size=1, max_size=6))


def edited(data: bytes, changes: list[tuple[int, bytes]], cut: int | None) -> bytes:
    """Change the first two HDUs, which outputs have of their own; the others are copied, whatever they look like."""
    changed = bytearray(data)
    last = data.find(b"XTENSION", data.find(b"XTENSION") + 1)
    for place, text in changes:
        start = place % (last if last > 0 else len(data))
        changed[start : start + len(text)] = text
    return bytes(changed[:cut] if cut is not None else changed)


@pytest.mark.parametrize("seed", sorted(SEEDS))
def test_fits(seed, folder):
    @long_or_short
    @given(changes=edits(), cut=st.none() | st.integers(0, 30_000))
    def search(changes, cut):
        path = folder / "a.fits"
        path.write_bytes(edited(SEEDS[seed], changes, cut))
        start = time.monotonic()
        put_through(path, folder / "outputs")
        assert time.monotonic() - start < 20

    for_seconds(SECONDS / len(SEEDS), search)


@pytest.mark.parametrize("reader", ["fits", "gzip"])
def test_any_bytes(reader, folder):
    magic = {"fits": b"SIMPLE  =", "gzip": b"\x1f\x8b\x08"}[reader]

    @long_or_short
    @given(st.binary(max_size=6000))
    def search(data):
        path = folder / "b.fits"
        path.write_bytes(magic + data)
        for read in (open_frame, peek_frame):
            with pytest.raises(SkylevelError):
                read(path)

    for_seconds(SECONDS / 4, search)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A raw with some bytes of its directories, mostly, changed: single ones, or numbers that tend to be too large."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(min(len(data) - 4, chance.choice([900, 900, 900, len(data)])))
        if chance.random() < 0.5:
            changed[at] = chance.randrange(256)
        else:
            struct.pack_into(
                "<I", changed, at, chance.choice([0, 1, 2**16 - 1, 2**31, 2**32 - 1, len(data), 40_000, 7])
            )
    return bytes(changed[: chance.randrange(len(data))] if chance.random() < 0.1 else changed)


def fuzz_raws(folder: Path, first: int, seconds: float) -> None:
    """What the process of its own does: files by number, each kept under its name while it is read."""
    (folder / "outputs").mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 16384, (60, 80)).astype("u2")
    seeds, number = [dng(), dng(noise)], first
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        chance = random.Random(number)
        path = folder / "now.dng"
        path.write_bytes(mutated(chance.choice(seeds), chance))
        (folder / "number").write_text(str(number))
        start = time.monotonic()
        put_through(path, folder / "outputs")
        assert time.monotonic() - start < 20, "too slow"
        number += 1


def test_raws(folder):
    """A number that fails is told, and makes the same file again: ``python tests/test_fuzz.py FOLDER NUMBER 0.001``."""
    first = time.time_ns() % 10**9 if IS_LONG else 0
    command = [sys.executable, "-X", "faulthandler", __file__, str(folder), str(first), str(SECONDS / 2)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60 + SECONDS, errors="replace")
    number = (folder / "number").read_text()
    assert ended.returncode == 0, f"number {number}:\n{ended.stderr[-3000:]}"
    assert int(number) > first


if __name__ == "__main__":
    fuzz_raws(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
