"""Opening: which reader a file gets, laziness, and that every bad file is refused in one line."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from programs import write_exposure
from skylevel.errors import SettingsError, SkylevelError, UnreadableFrameError, UnsupportedFrameError
from skylevel.io.frame import open_frame, peek_frame
from skylevel.io.hdus import read_hdus
from skylevel.io.planes import FitsPlane

DATA = Path(__file__).parents[2] / "shared" / "data"
NY, NX = 40, 50


@pytest.fixture(scope="module")
def cal(tmp_path_factory):
    path = tmp_path_factory.mktemp("frames") / "made_cal.fits"
    rng = np.random.default_rng(7)
    primary = fits.PrimaryHDU()
    primary.header["INSTRUME"] = "NIRCAM"
    fits.HDUList([
        primary,
        fits.ImageHDU(rng.normal(size=(NY, NX)).astype("f4"), fits.Header({"PHOTMJSR": 2.0}), name="SCI"),
        fits.ImageHDU(rng.normal(size=(NY, NX)).astype("f4"), name="ERR"),
        fits.ImageHDU(rng.integers(0, 1 << 32, (NY, NX), dtype="u4"), name="DQ"),
    ]).writeto(path)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def pixels(cal):
    with fits.open(cal, memmap=False) as hdus:
        return {name: hdus[name.upper()].data.astype(hdus[name.upper()].data.dtype.newbyteorder("=")) for name in
                ("sci", "err", "dq")}  # fmt: skip


def refusal(path) -> SkylevelError:
    """The error a file is refused with, seen to be one line that names the file."""
    with pytest.raises(SkylevelError) as caught:
        open_frame(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return caught.value


def indices(size: int):
    """Any basic index along an axis but the empty backward slice, on which xarray itself fails."""
    slices = st.slices(size).filter(lambda s: (s.step or 1) > 0 or len(range(size)[s]) > 0)
    return st.one_of(slices, st.integers(-size, size - 1))


class TestSchema:
    def test_kind_path_unit(self, cal):
        frame = open_frame(cal)
        assert (frame.attrs["kind"], frame.attrs["path"], frame.attrs["unit"]) == ("jwst", str(cal), "")
        assert set(frame) == {"sci", "err", "dq"}

    def test_path_becomes_absolute(self, cal, monkeypatch):
        monkeypatch.chdir(cal.parent)
        assert open_frame(cal.name).attrs["path"] == str(cal)

    def test_content_decides_not_the_name(self, cal, tmp_path):
        (tmp_path / "frame.arw").write_bytes(cal.read_bytes())
        assert open_frame(tmp_path / "frame.arw").attrs["kind"] == "jwst"

    def test_zero_point(self, cal):
        assert open_frame(cal, zero_point=3.0).attrs["zero_point_correction"] == 1.5

    def test_zero_point_of_a_camera_frame(self, tmp_path):
        (tmp_path / "a.dng").write_bytes(b"II*\0")
        with pytest.raises(SettingsError, match="zero_point"):
            open_frame(tmp_path / "a.dng", zero_point=3.0)


class TestLazy:
    def test_opening_reads_no_pixels(self, cal, monkeypatch):
        def read(self, key):
            raise AssertionError("pixels were read")

        monkeypatch.setattr("skylevel.io.jwst.FitsPlane._read", read)
        frame = open_frame(cal)
        assert frame["sci"].shape == (NY, NX)
        with pytest.raises(AssertionError):
            frame["sci"].load()

    def test_values_are_read_once(self, cal, monkeypatch):
        frame = open_frame(cal)
        first = frame["sci"].to_numpy()
        monkeypatch.setattr("skylevel.io.jwst.FitsPlane._read", None)
        np.testing.assert_array_equal(frame["sci"].to_numpy(), first)

    def test_a_part_reads_its_own_rows(self, cal, monkeypatch, pixels):
        asked = []
        original = FitsPlane._rows
        monkeypatch.setattr(FitsPlane, "_rows", lambda self, *rows: asked.append(rows[1:]) or original(self, *rows))
        part = open_frame(cal)["sci"][7:9, 3:20].to_numpy()
        np.testing.assert_array_equal(part, pixels["sci"][7:9, 3:20])
        assert asked == [(7, 9)]

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        y=indices(NY),
        x=indices(NX),
        name=st.sampled_from(["sci", "dq"]),
    )
    def test_any_part_is_that_of_the_whole(self, cal, pixels, y, x, name):
        part = open_frame(cal)[name][y, x].to_numpy()
        np.testing.assert_array_equal(part, pixels[name][y, x])
        assert part.dtype == pixels[name].dtype

    @pytest.mark.parametrize("chunks", [{}, 7, {"y": 13, "x": 50}, {"y": 40, "x": 1}])
    def test_engine_with_chunks(self, cal, pixels, chunks):
        frame = xr.open_dataset(cal, engine="skylevel", chunks=chunks)
        assert frame["sci"].chunks is not None
        for name, expected in pixels.items():
            np.testing.assert_array_equal(frame[name].compute(scheduler="threads"), expected)

    def test_engine_drops_variables(self, cal):
        assert set(xr.open_dataset(cal, engine="skylevel", drop_variables=["dq"])) == {"sci", "err"}
        assert set(xr.open_dataset(cal, engine="skylevel", drop_variables="dq")) == {"sci", "err"}
        assert xr.open_dataset(cal, engine="skylevel", zero_point=1.0).attrs["zero_point_correction"] == 0.5

    def test_pickles_without_pixels(self, cal, pixels):
        frame = open_frame(cal)
        packed = pickle.dumps(frame)
        assert len(packed) < pixels["sci"].nbytes
        np.testing.assert_array_equal(pickle.loads(packed)["dq"], pixels["dq"])

    def test_many_threads_at_once(self, cal, pixels):
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda i: open_frame(cal)["sci"][i].to_numpy(), range(NY)))
        np.testing.assert_array_equal(np.stack(read), pixels["sci"])


class TestRefusals:
    def test_missing(self, tmp_path):
        error = refusal(tmp_path / "no.fits")
        assert isinstance(error, UnreadableFrameError)
        assert "no such file" in str(error)

    def test_folder(self, tmp_path):
        assert isinstance(refusal(tmp_path), UnreadableFrameError)

    def test_empty(self, tmp_path):
        (tmp_path / "a.fits").touch()
        assert "empty" in str(refusal(tmp_path / "a.fits"))

    def test_text(self, tmp_path):
        (tmp_path / "a.txt").write_text("hello, world\n" * 100)
        error = refusal(tmp_path / "a.txt")
        assert isinstance(error, UnsupportedFrameError)
        assert "neither FITS nor a raw" in str(error)

    def test_web_page_named_fits(self, tmp_path):
        (tmp_path / "a_cal.fits").write_text("<!DOCTYPE html><html>not found</html>" * 100)
        error = refusal(tmp_path / "a_cal.fits")
        assert isinstance(error, UnreadableFrameError)
        assert "does not begin as FITS" in str(error)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_cut_anywhere(self, cal, tmp_path, data):
        """A file cut short is refused at opening, wherever it is cut but between two HDUs."""
        content = cal.read_bytes()
        ends = [hdu.end for hdu in read_hdus(cal)]
        length = data.draw(st.integers(1, len(content) - 1).filter(lambda n: n not in ends))
        path = tmp_path / "cut.fits"
        path.write_bytes(content[:length])
        assert isinstance(refusal(path), UnreadableFrameError)

    def test_cut_between_hdus(self, cal, tmp_path):
        first, second, *_ = read_hdus(cal)
        path = tmp_path / "cut.fits"
        path.write_bytes(cal.read_bytes()[: first.end])
        assert isinstance(refusal(path), UnsupportedFrameError)
        path.write_bytes(cal.read_bytes()[: second.end])
        assert set(open_frame(path)) == {"sci"}

    @pytest.mark.parametrize("suffix", [".fits", ".FIT", ".fts.gz", ".fits.fz", ".fit.fz"])
    def test_every_suffix_of_fits(self, tmp_path, suffix):
        (tmp_path / f"a{suffix}").write_bytes(b"II*\0 no FITS")
        assert "named as FITS" in str(refusal(tmp_path / f"a{suffix}"))

    def test_errors_survive_pickling(self, tmp_path):
        error = refusal(tmp_path / "no.fits")
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))


def test_a_peek_is_what_opening_finds(tmp_path):
    write_exposure(tmp_path / "a.fits")
    frame = open_frame(tmp_path / "a.fits")
    shape, kind = peek_frame(tmp_path / "a.fits")
    assert shape == frame["sci"].shape
    assert (kind.pop("dtype"), kind["kind"]) == (frame["sci"].dtype.name, "jwst")
    assert kind.items() <= frame.attrs.items()
    assert {"detector", "filter", "fast_axis", "exposure_time"} <= kind.keys()


@pytest.mark.parametrize(
    ("name", "variables", "shape"),
    [
        ("niriss_1093/jw01093014001_03102_00001_nis_cal.fits", {"sci", "err", "dq"}, (80, 80)),
        ("miri/jw01288015001_04101_00001_mirimage_i2d.fits", {"sci", "err", "wht"}, (129, 137)),
        ("nircam_i2d/jw01288-o001_t011_nircam_clear-f480m_cropped.fits", {"sci"}, (635, 930)),
        ("nircam_tso/jw01185002001_01101_00001-seg006_nrca3_rateints_I01226.fits", {"sci"}, (256, 2048)),
        ("badpix/nrc_badpix_260627_NRCBLONG.fits.gz", {"sci"}, (2048, 2048)),
        ("camera/rawpy_RAW_KODAK_DC50.KDC", {"raw"}, (512, 768)),
    ],
)
def test_real_files(name, variables, shape):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the real file shared/data/{name} is not beside this checkout")
    frame = open_frame(path)
    assert set(frame) == variables
    assert frame.sizes == {"y": shape[0], "x": shape[1]}
    if frame.attrs["kind"] == "jwst":
        with fits.open(path) as hdus:
            np.testing.assert_array_equal(frame["sci"], hdus[frame.attrs["sci_extension"]].data.astype("f4"))
