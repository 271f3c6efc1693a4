"""Levelled raws in Siril: the pedestal that a frame is said to need, and Siril itself, where it is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile
from astropy.io import fits

from programs import skylevel_here, write_raw

pytestmark = pytest.mark.once

# Commands that every Siril from 1.0 on has; what a user's own script does with raws.
SCRIPT = """requires 1.0.0
setext fits
set32bits
cd levelled
convert light -debayer -out=../process
cd ../process
seqsubsky light 1
stack bkg_light rej 3 3 -nonorm -out=stacked
load stacked
savetif of_16_bits
"""


@pytest.fixture
def night(tmp_path: Path) -> Path:
    for seed in range(2):
        write_raw(tmp_path / "night" / f"f{seed}.dng", seed)
    return tmp_path / "night"


def level(night: Path, *options: object) -> Path:
    output = night.parent / "levelled"
    assert skylevel_here("run", night, "--output", output, "--workers", 1, "--quiet", *options) == 0
    return output


def said(output: Path) -> list[tuple[float, int]]:
    """Of each frame that was said to need a pedestal: percent of its pixels below 0, and the pedestal."""
    found = re.findall(r"; (\S+) % of its pixels are below 0; .* pedestal=(\d+)", (output / "skylevel.log").read_text())
    return [(float(percent), int(pedestal)) for percent, pedestal in found]


def percent_below(output: Path) -> list[float]:
    images = (fits.getdata(path, 1) for path in sorted(output.glob("*.bkg_subtracted.fits")))
    return [100 * np.mean(image < 0) for image in images]


def test_a_frame_is_said_to_need_a_pedestal(night):
    output = level(night)
    told = said(output)
    assert [percent for percent, _ in sorted(told)] == pytest.approx(sorted(percent_below(output)), abs=3)
    (output / "skylevel.log").unlink()
    level(night, "--set", f"pedestal={max(pedestal for _, pedestal in told)}")
    assert said(output) == []
    assert max(percent_below(output)) < 0.3


@pytest.mark.slow
def test_siril_debayers_flattens_and_stacks_them(night):
    """What Siril keeps with 16 bits it cuts at 0: the pedestal keeps the sky."""
    siril = shutil.which("siril-cli")
    if siril is None:
        pytest.skip("no siril-cli here")
    output = level(night)
    level(night, "--set", f"pedestal={max(pedestal for _, pedestal in said(output))}")
    script = night.parent / "script.ssf"
    script.write_text(SCRIPT)
    command = [siril, "-d", night.parent, "-s", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    text = done.stdout + done.stderr
    assert "Script execution finished successfully" in text, text
    assert "Filter Pattern: RGGB" in text
    stacked = fits.getdata(night.parent / "process" / "stacked.fits")
    cut = tifffile.imread(night.parent / "process" / "of_16_bits.tif")
    assert stacked.shape == (3, 240, 260)
    assert (cut.shape, cut.dtype) == ((240, 260, 3), np.uint16)
    assert np.mean(cut == 0) < 0.001
