"""Outputs of both jobs are legal FITS, by astropy's account and, where it is installed, by NASA's fitsverify."""

import shutil
import subprocess
import warnings
from datetime import datetime

import numpy as np
import pytest
from astropy.io import fits

from corpus import cal, colour, compressed, dng, image
from skylevel.io.camera import write_mosaic
from skylevel.io.frame import open_frame
from skylevel.io.jwst import write_full, write_image, write_masked, write_primary, write_segmentation

CARDS = [("SKYLEVEL", "0.1.0", "version"), ("SKYRECIP", "rows", "recipe")]
HISTORY = ["skylevel 0.1.0 rows: box_size=50, " + "a_setting=1, " * 20]
INPUTS = {
    "cal.fits": cal(),
    "integers.fits": cal(image("u2")),
    "primary-and-sci.fits": cal(primary={"TITLE": "a title " * 20}),
    "rice.fits.fz": compressed("RICE_1", others=True),
    "gzip.fits.fz": compressed("GZIP_2"),
    "colour.fits": colour(ROWORDER="BOTTOM-UP"),
    "float.fits": colour("f4"),
    "raw.dng": dng(),
}


@pytest.fixture(scope="module", params=sorted(INPUTS))
def outputs(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("legal")
    source = folder / request.param
    source.write_bytes(INPUTS[request.param])
    frame = open_frame(source).load()
    image = frame["raw" if frame.attrs["kind"] == "camera" else "sci"].to_numpy().astype("f4") - 100
    given = {"cards": CARDS, "history": HISTORY}
    write_image(folder / "o-image.fits", frame, image, cards=CARDS)
    if frame.attrs["kind"] == "camera":
        for layout in ("full", "primary"):
            write_mosaic(folder / f"o-{layout}.fits", frame, image, layout=layout, **given)
    else:
        write_full(folder / "o-full.fits", frame, image, **given)
        write_primary(folder / "o-primary.fits", frame, image, **given)
        write_masked(folder / "o-masked.fits", frame, image > 0)
        write_segmentation(folder / "o-segm.fits", frame, np.ones(image.shape, "i4"))
    return sorted(folder.glob("o-*.fits"))


def test_astropy_has_nothing_to_say(outputs):
    for path in outputs:
        with fits.open(path, checksum=True) as hdus, warnings.catch_warnings():
            warnings.simplefilter("error")
            hdus.verify("exception")
            for hdu in hdus:
                assert hdu.verify_checksum() != 0
                assert all(datetime.fromisoformat(str(hdu.header[key])) for key in hdu.header if key.startswith("DATE"))


def test_fitsverify_finds_no_error(outputs):
    program = shutil.which("fitsverify")
    if program is None:
        pytest.skip("fitsverify is not installed")
    for path in outputs:
        said = subprocess.run([program, "-e", str(path)], capture_output=True, text=True, errors="replace")
        assert said.returncode == 0, said.stdout
