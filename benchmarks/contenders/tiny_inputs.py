"""Many exposures cheaply: hard links to one file under distinct names."""

import os
from collections.abc import Callable
from pathlib import Path

from programs import write_exposure


def links(sources: str, folder: str, count: str) -> Callable[[], None]:
    """`count` links to the exposures of a folder in turn."""

    def run() -> None:
        files = sorted(Path(sources).glob("*_cal.fits"))
        for i in range(int(count)):
            _link(files[i % len(files)], Path(folder), i)

    return run


def tiny(folder: str, count: str) -> Callable[[], None]:
    """`count` links to one exposure of 64 x 64 pixels."""

    def run() -> None:
        first = write_exposure(Path(f"{folder}-source", "tiny.fits"), shape=(64, 64), sources=0)
        for i in range(int(count)):
            _link(first, Path(folder), i)

    return run


def _link(file: Path, folder: Path, i: int) -> None:
    folder.mkdir(exist_ok=True)
    os.link(file, folder / f"jw{i:011d}_03101_00001_nrcb1_cal.fits")
