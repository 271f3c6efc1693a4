"""Programs on disk for the tests of the run path: small exposures and raws, the command line, and what it left."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import pytest
import xarray as xr
from astropy.io import fits

from scenes import make_image, make_mosaic
from skylevel import cli
from skylevel.demo.dng import write_dng
from skylevel.io.nodes import Place
from skylevel.io.store import ProgramStore
from skylevel.program.ledger import Ledger
from skylevel.program.plan import read_plan, store_url

SKYLEVEL = Path(sys.executable).with_name("skylevel")
SHAPE = (160, 200)


def write_exposure(
    path: Path, seed: int = 0, *, shape: tuple[int, int] = SHAPE, cards: Mapping[str, Any] | None = None, **scene: Any
) -> Path:
    """A JWST exposure with SCI, ERR and DQ; `cards` go into the primary header, `scene` to `make_image`."""
    image = make_image(shape, seed=seed, **scene).image
    observation = {
        "INSTRUME": "NIRCAM", "DETECTOR": "NRCA1", "FILTER": "F200W", "FASTAXIS": -1, "FILENAME": path.name,
        "EFFEXPTM": 107.4, "DATE-BEG": f"2024-01-01T00:00:{seed % 60:02d}",
    }  # fmt: skip
    primary = fits.PrimaryHDU(header=fits.Header(list((observation | dict(cards or {})).items())))
    planes = {"SCI": image, "ERR": np.full_like(image, 0.02), "DQ": np.isnan(image).astype(np.uint32)}
    hdus = fits.HDUList([primary, *(fits.ImageHDU(plane, name=name) for name, plane in planes.items())])
    hdus["SCI"].header["BUNIT"] = "MJy/sr"
    path.parent.mkdir(parents=True, exist_ok=True)
    hdus.writeto(path)
    return path


def write_exposures(folder: Path, count: int, **settings: Any) -> list[Path]:
    """Exposures that differ in their seeds: ``e00.fits``, ``e01.fits`` ..."""
    return [write_exposure(folder / f"e{i:02d}.fits", i, **settings) for i in range(count)]


def write_raw(path: Path, seed: int = 0, *, shape: tuple[int, int] = (240, 260)) -> Path:
    """A camera raw: an RGGB night sky as a DNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dng(path, make_mosaic(shape, seed=seed), datetime(2024, 8, 12, 1, 0, seed % 60))
    return path


def write_truncated(path: Path) -> Path:
    """An exposure whose second half is missing."""
    write_exposure(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def skylevel(*arguments: object, env: Mapping[str, str] | None = None, timeout: float = 240) -> Any:
    """Run the command line as a user does; a traceback fails the test, whatever the command was."""
    process = start_skylevel(*arguments, env=env)
    return finish(process, timeout=timeout)


def skylevel_here(*arguments: object) -> int:
    """Run the command line in this process, for tests of what it leaves on disk: Python need not start; its status."""
    with patch.object(sys, "argv", ["skylevel", *map(str, arguments)]), pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code)


def start_skylevel(*arguments: object, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start the command line; its standard output and error are pipes."""
    command = [str(SKYLEVEL), *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **(env or {})}, **pipes, **options)


def finish(process: subprocess.Popen[str], *, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Wait for the command line; a traceback fails the test, whatever the command was."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end within {timeout} s:\n{out}\n{err}") from None
    assert "Traceback" not in out + err, f"{out}\n{err}"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def image_of(path: Path | str) -> np.ndarray:
    """The levelled image of an output: of SCI, or else of the only HDU that has pixels."""
    with fits.open(path) as hdus:
        (image,) = [hdu for hdu in hdus if hdu.name == "SCI" or (len(hdus) < 3 and hdu.data is not None)]
        return np.array(image.data)


def pixels_of(folder: Path | str) -> dict[str, bytes]:
    """The bytes of every levelled image in a folder, by file name."""
    return {path.name: image_of(path).tobytes() for path in sorted(Path(folder).glob("*.fits"))}


def place_of(output: Path | str, name: str) -> Place:
    """Where the store of an output folder keeps an exposure."""
    (exposure,) = [e for e in read_plan(ProgramStore(store_url(output))) if e.name == name]
    assert exposure.place is not None
    return exposure.place


def record_of(output: Path | str, name: str) -> dict[str, Any]:
    """The commit record of an exposure; empty where there is none that is sound."""
    place = place_of(output, name)
    return ProgramStore(store_url(output)).read_records([place]).get(place, {})


def stored(output: Path | str, name: str) -> xr.Dataset:
    """What the store of an output folder holds of an exposure."""
    return ProgramStore(store_url(output)).read_estimate(place_of(output, name), record_of(output, name)).load()


def chunks_of(output: Path | str, name: str) -> dict[str, Path]:
    """The files of an exposure's arrays and of its record, by array."""
    node, index = place_of(output, name)
    folder = Path(store_url(output), node)
    files = [p for array in (*record_of(output, name)["checksums"], "record") for p in (folder / array).iterdir()]
    return {path.parent.name: path for path in files if path.name.partition(".")[0] == str(index)}


def measured_in(output: Path | str) -> list[str]:
    """Names of the exposures that are measured."""
    store = ProgramStore(store_url(output))
    return sorted(exposure.name for exposure in Ledger(store, read_plan(store)).measured())


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Time of change and inode of every file below a folder, by its path there: whether anything was written."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def end_session(session: int) -> None:
    """Kill every process of a session that a test started."""
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session:
                process.kill()


def wait_until(condition: Callable[[], Any], *, seconds: float = 90, what: str = "") -> Any:
    """What the condition gives once that is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came: {what or condition}"
        time.sleep(0.02)
    return value


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes that a command with a cluster of its own has started."""
    servers = [c for c in psutil.Process(process.pid).children() if "forkserver" in " ".join(command_of(c))]
    return [worker for server in servers for worker in server.children()]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
