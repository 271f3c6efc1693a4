"""JWST exposures in and out: what is read, what is kept byte for byte, and what is refused."""

import gzip
import io
import os
import warnings
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from astropy.wcs.utils import proj_plane_pixel_scales
from google_crc32c import value as crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skylevel.errors import OutputError, SettingsError, ShapeError, UnreadableFrameError, UnsupportedFrameError
from skylevel.io import fits as fits_files
from skylevel.io import hdus as hdu_reader
from skylevel.io.hdus import open_bytes, read_hdus, read_start
from skylevel.io.jwst import (
    flux_per_pixel,
    frame_wcs,
    open_exposure,
    peek_exposure,
    size_and_field,
    write_full,
    write_image,
    write_masked,
    write_primary,
    write_segmentation,
)
from skylevel.level.frames import no_data_mask

DATA = Path(__file__).parents[2] / "shared" / "data"
NY, NX = 24, 30
CARDS = [("SKYLEVEL", "9.9", "what levelled this"), ("SKYNROWS", 24, "rows measured")]
HISTORY = ["levelled by rows", "a longer line " * 10]


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the real file shared/data/{name} is not beside this checkout")
    return path


def scene(dtype="f4"):
    image = np.random.default_rng(4).normal(1.0, 0.1, (NY, NX)).astype(dtype)
    image[3, 4] = np.nan
    return image


def primary_header() -> fits.Header:
    header = fits.Header()
    cards = {
        "DATE": "2024-05-02T00:00:00", "FILENAME": "made_cal.fits", "INSTRUME": "NIRCAM", "DETECTOR": "NRCB1",
        "CHANNEL": "SHORT", "MODULE": "B", "FILTER": "F200W", "PUPIL": "CLEAR", "EXP_TYPE": "NRC_IMAGE",
        "SUBARRAY": "FULL", "FASTAXIS": 1, "SLOWAXIS": -2, "NOUTPUTS": 4, "R_GAIN": "crds://jwst_nircam_gain_0090.fits",
        "PROGRAM": "04250", "DATE-OBS": "2023-01-02", "TIME-OBS": "03:04:05.678", "EFFEXPTM": 311.366,
        "TITLE": "A title so long that it runs over into cards which continue it, as JWST's own titles do, to the end",
    }  # fmt: skip
    header.update(cards)
    header["COMMENT"] = "kept"
    header["HISTORY"] = "made in a test"
    header["MJDREFI"] = fits.card.Undefined()
    return header


def sci_header() -> fits.Header:
    header = fits.Header()
    header.update({
        "BUNIT": "MJy/sr", "PHOTMJSR": 2.056, "PHOTUJA2": 48.3, "PIXAR_SR": 2.23e-14, "PIXAR_A2": 0.00095,
        "WCSAXES": 2, "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "CRPIX1": 12.5, "CRPIX2": 15.5,
        "CRVAL1": 150.0, "CRVAL2": 2.2, "CUNIT1": "deg", "CUNIT2": "deg", "CDELT1": 8.6e-6, "CDELT2": 8.6e-6,
        "PC1_1": -1.0, "PC1_2": 0.0, "PC2_1": 0.0, "PC2_2": 1.0, "RADESYS": "ICRS",
        "A_ORDER": 2, "A_2_0": 1e-6, "B_ORDER": 2, "B_0_2": 2e-6, "MJD-AVG": 59946.1, "DATE-AVG": "2023-01-02T03:06:00",
    })  # fmt: skip
    header["HISTORY"] = "of the image"
    return header


@pytest.fixture
def make_cal(tmp_path):
    def make(name="made_cal.fits", *, image=None, edit=None) -> Path:
        image = scene() if image is None else image
        dq = np.zeros((NY, NX), "u4")
        dq[3, 4] = 1 | 1 << 31
        asdf = np.array([(b"#ASDF 1.0.0 and so on",)], dtype=[("ASDF_METADATA", "S21")])
        hdus = fits.HDUList([
            fits.PrimaryHDU(header=primary_header()),
            fits.ImageHDU(image, sci_header(), name="SCI"),
            fits.ImageHDU(np.full((NY, NX), 0.1, "f4"), name="ERR"),
            fits.ImageHDU(dq, name="DQ"),
            fits.ImageHDU(np.ones((NY, NX), "f4"), name="AREA"),
            fits.BinTableHDU(asdf, name="ASDF"),
        ])  # fmt: skip
        if edit:
            edit(hdus)
        path = tmp_path / name
        hdus.writeto(path)
        return path

    return make


def hdu_bytes(path) -> list[bytes]:
    with open_bytes(path) as stream:
        content = stream.read()
    return [content[hdu.start : hdu.end] for hdu in read_hdus(path)]


def cards_of(header, *, without=("CHECKSUM", "DATASUM", "FILENAME", "BITPIX")) -> list[str]:
    return [str(card) for card in header.cards if card.keyword not in without]


def assert_sound(path, *, checked):
    """Checksums are right where they must stand, and astropy has nothing to say about the file."""
    with fits.open(path, checksum=True) as hdus:
        hdus.verify("exception")
        assert [hdus[i].verify_checksum() for i in checked] == [1] * len(checked)
        assert [hdus[i].verify_datasum() for i in checked] == [1] * len(checked)


class TestOpen:
    def test_variables(self, make_cal):
        frame = open_exposure(make_cal())
        assert {k: v.dtype for k, v in frame.items()} == {"sci": "f4", "err": "f4", "dq": "u4"}
        assert all(v.dims == ("y", "x") and v.shape == (NY, NX) for v in frame.values())
        np.testing.assert_array_equal(frame["sci"], scene())
        assert frame["sci"].dtype.isnative
        assert int(frame["dq"][3, 4]) == 1 | 1 << 31

    def test_attributes_come_from_the_headers(self, make_cal):
        path = make_cal()
        expected = {
            "kind": "jwst", "path": str(path), "unit": "MJy/sr", "instrument": "NIRCAM", "detector": "NRCB1",
            "channel": "SHORT", "module": "B", "filter": "F200W", "pupil": "CLEAR", "exp_type": "NRC_IMAGE",
            "subarray": "FULL", "fast_axis": 1, "slow_axis": -2, "n_outputs": 4,
            "gain_reference": "crds://jwst_nircam_gain_0090.fits",
            "program": "04250", "date_obs": "2023-01-02T03:04:05.678", "exposure_time": 311.366, "photmjsr": 2.056,
            "pixel_area_sr": 2.23e-14, "pixel_area_arcsec2": 0.00095, "sci_extension": 1,
        }  # fmt: skip
        attrs = open_exposure(path).attrs
        cards = attrs.pop("wcs")
        assert attrs == expected
        assert fits.Header.fromstring(cards, sep="\n") == fits.getheader(path, "SCI")

    def test_absent_or_unusable_cards_give_no_attribute(self, make_cal):
        def edit(hdus):
            del hdus[0].header["FILTER"]
            hdus[0].header["FASTAXIS"] = "N/A"
            hdus["SCI"].header["PHOTMJSR"] = fits.card.Undefined()
            del hdus["SCI"].header["BUNIT"]

        attrs = open_exposure(make_cal(edit=edit)).attrs
        assert not {"filter", "fast_axis", "photmjsr"} & set(attrs)
        assert attrs["unit"] == ""

    def test_float64_stays(self, make_cal):
        frame = open_exposure(make_cal(image=scene("f8")))
        assert frame["sci"].dtype == np.float64
        np.testing.assert_array_equal(frame["sci"], scene("f8"))

    def test_integers_are_scaled_to_float32(self, make_cal):
        def edit(hdus):
            hdus["SCI"].header["BLANK"] = -7
            hdus["SCI"].header["BSCALE"] = 0.5
            hdus["SCI"].header["BZERO"] = 10.0

        stored = np.arange(NY * NX, dtype="i2").reshape(NY, NX)
        stored[0, 1] = -7
        path = make_cal(image=stored)
        # Scaling cards go in afterwards: astropy would apply them to the pixels it is given.
        with fits.open(path, mode="update", do_not_scale_image_data=True) as hdus:
            edit(hdus)
        values = open_exposure(path)["sci"].to_numpy()
        assert values.dtype == np.float32
        assert np.isnan(values[0, 1])
        assert values[1, 0] == 10 + 0.5 * NX

    def test_companions_of_another_shape_or_kind_are_left_out(self, make_cal):
        def edit(hdus):
            hdus["ERR"].data = np.zeros((2, 3), "f4")
            hdus["DQ"].data = np.zeros((NY, NX), "f4")

        assert set(open_exposure(make_cal(edit=edit))) == {"sci"}

    def test_image_in_the_primary(self, tmp_path):
        fits.PrimaryHDU(scene(), primary_header()).writeto(tmp_path / "a.fits")
        frame = open_exposure(tmp_path / "a.fits")
        assert (frame.attrs["sci_extension"], frame.attrs["filter"]) == (0, "F200W")
        np.testing.assert_array_equal(frame["sci"], scene())

    def test_image_in_the_first_extension_when_none_is_called_sci(self, tmp_path):
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(scene())]).writeto(tmp_path / "a.fits")
        assert open_exposure(tmp_path / "a.fits").attrs["sci_extension"] == 1

    def test_gzip(self, make_cal, tmp_path):
        path = make_cal()
        (tmp_path / "b_cal.fits.gz").write_bytes(gzip.compress(path.read_bytes()))
        frame = open_exposure(tmp_path / "b_cal.fits.gz")
        np.testing.assert_array_equal(frame["sci"], scene())
        assert int(frame["dq"][3, 4]) == 1 | 1 << 31

    def test_zeros_after_the_last_hdu_are_nothing(self, make_cal):
        path = make_cal()
        path.write_bytes(path.read_bytes() + bytes(5000))
        np.testing.assert_array_equal(open_exposure(path)["sci"], scene())

    def test_single_plane_with_a_leading_axis(self, make_cal):
        frame = open_exposure(make_cal(image=scene()[np.newaxis]))
        np.testing.assert_array_equal(frame["sci"], scene())
        assert set(frame) == {"sci", "err", "dq"}


class TestRefusals:
    def refused(self, path, kind, *words):
        with pytest.raises(kind) as caught:
            open_exposure(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert all(word in message for word in words), message

    def test_integrations(self, make_cal):
        self.refused(make_cal(image=np.zeros((5, NY, NX), "f4")), UnsupportedFrameError, "5 integrations", "_rate")

    def test_no_image(self, tmp_path):
        fits.PrimaryHDU().writeto(tmp_path / "a.fits")
        self.refused(tmp_path / "a.fits", UnsupportedFrameError, "no image")

    def test_spectrum(self, tmp_path):
        fits.PrimaryHDU(np.zeros(7)).writeto(tmp_path / "a.fits")
        self.refused(tmp_path / "a.fits", UnsupportedFrameError, "(7,)")

    def test_several_sci(self, make_cal):
        path = make_cal(edit=lambda hdus: hdus.append(fits.ImageHDU(scene(), name="SCI", ver=2)))
        self.refused(path, UnsupportedFrameError, "2 SCI images")

    def test_gzip_cut_short(self, make_cal, tmp_path):
        packed = gzip.compress(make_cal().read_bytes())
        (tmp_path / "b.fits.gz").write_bytes(packed[: len(packed) // 2])
        self.refused(tmp_path / "b.fits.gz", UnreadableFrameError, "gzip")

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b"BITPIX  =                  -32", b"BITPIX  =                  -33"),
            (b"BITPIX  =                  -32", b"BITPIX  =                  abc"),
            (b"NAXIS1  =                   30", b"NAXIS1  =                  -30"),
            (b"NAXIS1  =                   30", b"NAXISX  =                   30"),
            (b"NAXIS1  =                   30", b"NAXIS1  =                  'a'"),
            (b"XTENSION= 'IMAGE   '", b"XTENSIOM= 'IMAGE   '"),
            (b"BUNIT   = 'MJy/sr", b"BUNIT   = 'MJy\xff\x00r"),
            (b"END     ", b"EMD     "),
        ],
    )
    def test_damaged_header(self, make_cal, old, new):
        path = make_cal()
        content = path.read_bytes()
        extension = content.index(b"XTENSION")
        assert old in content[extension:]
        path.write_bytes(content[:extension] + content[extension:].replace(old, new, 1))
        self.refused(path, UnreadableFrameError, "HDU 1", "header")

    def test_file_that_changes_after_it_was_opened(self, make_cal):
        path = make_cal()
        frame = open_exposure(path)
        path.unlink()
        with pytest.raises(UnreadableFrameError, match="changed since"):
            frame["sci"].load()

    @pytest.mark.parametrize("change", ["header", "shorter", "pipe"])
    def test_file_that_becomes_another(self, make_cal, change):
        path = make_cal()
        frame = open_exposure(path)
        content = path.read_bytes()
        path.unlink()
        if change == "pipe":
            os.mkfifo(path)
        else:
            at = content.index(b"BUNIT") if change == "header" else 6000
            path.write_bytes(content[:at] + (b"BUNIX" + content[at + 5 :] if change == "header" else b""))
        with pytest.raises(UnreadableFrameError, match="changed since"):
            frame["sci"].load()


class TestZeroPoint:
    def test_correction(self, make_cal):
        assert open_exposure(make_cal(), 2.1).attrs["zero_point_correction"] == 2.1 / 2.056

    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
    def test_impossible_value(self, make_cal, value):
        with pytest.raises(SettingsError, match="zero_point"):
            open_exposure(make_cal(), value)

    def test_without_photmjsr(self, make_cal):
        with pytest.raises(SettingsError, match="PHOTMJSR"):
            open_exposure(make_cal(edit=lambda hdus: hdus["SCI"].header.remove("PHOTMJSR")), 2.0)


class TestFlux:
    def test_notebook(self, make_cal):
        frame = open_exposure(make_cal())
        flux = flux_per_pixel(frame)
        np.testing.assert_allclose(flux["sci"], scene() * 2.23e-14, rtol=1e-6)
        np.testing.assert_allclose(flux["err"], 0.1 * 2.23e-14, rtol=1e-6)
        assert set(flux) == {"sci", "err"}
        assert (flux["sci"].dtype, flux.attrs["unit"], frame.attrs["unit"]) == (np.float32, "MJy", "MJy/sr")

    def test_zero_point_given_or_kept_from_opening(self, make_cal):
        path = make_cal()
        expected = scene() * 2.23e-14 * (2.1 / 2.056)
        np.testing.assert_allclose(flux_per_pixel(open_exposure(path), zero_point=2.1)["sci"], expected, rtol=1e-6)
        np.testing.assert_allclose(flux_per_pixel(open_exposure(path, 2.1))["sci"], expected, rtol=1e-6)

    def test_lazy_stays_lazy(self, make_cal):
        flux = flux_per_pixel(open_exposure(make_cal()).chunk(10))
        assert flux["sci"].chunks is not None

    @pytest.mark.parametrize(
        ("card", "value", "error", "word"),
        [
            ("PIXAR_SR", None, UnsupportedFrameError, "PIXAR_SR"),
            ("BUNIT", "DN/s", UnsupportedFrameError, "DN/s"),
            ("BUNIT", None, UnsupportedFrameError, "not given"),
            ("PHOTMJSR", None, SettingsError, "PHOTMJSR"),
        ],
    )
    def test_what_is_missing_is_named(self, make_cal, card, value, error, word):
        def edit(hdus):
            hdus["SCI"].header[card] = value
            if value is None:
                del hdus["SCI"].header[card]

        with pytest.raises(error, match=word):
            flux_per_pixel(open_exposure(make_cal(edit=edit)), zero_point=2.0)


class TestCoordinates:
    def test_wcs_is_that_of_the_file(self, make_cal):
        path = make_cal()
        wcs = frame_wcs(open_exposure(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = fits.getheader(path, "SCI")
        assert wcs.sip.a_order == expected["A_ORDER"]
        np.testing.assert_allclose(wcs.all_pix2world([[11.5, 14.5]], 0), [[150.0, 2.2]], rtol=1e-12)

    def test_line(self, make_cal):
        line = size_and_field(open_exposure(make_cal()))
        assert line == 'made_cal.fits: 24 x 30 pixels = 0.74304" x 0.9288" (0.03" / pixel)'

    @pytest.mark.parametrize(
        "cards",
        [
            {}, {"CD1_1": None, "CD1_2": None, "CD2_1": None, "CD2_2": None, "CDELT1": -1e-5, "CDELT2": 2e-5},
            {"CD1_1": None, "CD1_2": None, "CD2_1": None, "CD2_2": None, "CDELT1": 1e-5, "CDELT2": 2e-5,
             "PC1_1": 0.6, "PC1_2": 0.8, "PC2_1": -0.8, "PC2_2": 0.6},
            {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}, {"CD1_1": 3e-5, "CD2_1": 1e-5}, {"CUNIT1": "arcsec"},
        ],
    )  # fmt: skip
    def test_line_has_the_scale_of_wcslib(self, make_cal, cards):
        """Whether it is asked, which takes long, or not."""

        def edit(hdus):
            for name, value in cards.items():
                if value is None:
                    hdus["SCI"].header.remove(name, ignore_missing=True)
                else:
                    hdus["SCI"].header[name] = value

        frame = open_exposure(make_cal(edit=edit))
        wcs = frame_wcs(frame).celestial
        scale = proj_plane_pixel_scales(wcs)[0] * wcs.wcs.cunit[0].to("arcsec")
        assert size_and_field(frame).endswith(f' = {NY * scale:g}" x {NX * scale:g}" ({scale:.2f}" / pixel)')

    def test_line_without_coordinates(self, tmp_path):
        fits.PrimaryHDU(scene()).writeto(tmp_path / "a.fits")
        assert size_and_field(open_exposure(tmp_path / "a.fits")) == "a.fits: 24 x 30 pixels"

    def test_contradicting_cards(self, make_cal):
        def edit(hdus):
            hdus["SCI"].header["CTYPE2"] = "DEC--SIN"

        with pytest.raises(UnsupportedFrameError, match="world coordinates"):
            frame_wcs(open_exposure(make_cal(edit=edit)))

    def test_camera_frame_has_none(self):
        with pytest.raises(UnsupportedFrameError, match=r"x\.nef"):
            frame_wcs(xr.Dataset(attrs={"path": "x.nef"}))


class TestWriteFull:
    def write(self, source, tmp_path, name="made_cal_rowbgsub.fits", **changes):
        frame = open_exposure(source)
        levelled = frame["sci"].to_numpy() - 1
        output = tmp_path / name
        write_full(output, frame, levelled, **({"cards": CARDS, "history": HISTORY} | changes))
        return output, levelled

    def test_untouched_hdus_byte_for_byte(self, make_cal, tmp_path):
        source = make_cal()
        output, _ = self.write(source, tmp_path)
        before, after = hdu_bytes(source), hdu_bytes(output)
        assert after[2:] == before[2:]
        assert output.stat().st_size % 2880 == 0

    def test_image_and_checksums(self, make_cal, tmp_path):
        output, levelled = self.write(make_cal(), tmp_path)
        assert_sound(output, checked=())
        with fits.open(output) as hdus:
            assert hdus["SCI"].header["BITPIX"] == -32
            np.testing.assert_array_equal(hdus["SCI"].data, levelled)

    def test_headers_keep_every_card(self, make_cal, tmp_path):
        source = make_cal()
        output, _ = self.write(source, tmp_path)
        added = ("CHECKSUM", "DATASUM", "FILENAME", "SKYLEVEL", "SKYNROWS", "HISTORY")
        with fits.open(source) as before, fits.open(output) as after:
            assert cards_of(after[1].header) == cards_of(before[1].header)
            assert cards_of(after[0].header, without=added) == cards_of(before[0].header, without=added)
            assert after[0].header["SKYNROWS"] == 24
            history = [str(line) for line in after[0].header["HISTORY"]]
        assert history[:2] == ["made in a test", "levelled by rows"]
        # A long line runs over into more, and loses the blank at each fold.
        assert "".join(history[2:]).replace(" ", "") == HISTORY[1].replace(" ", "")

    def test_filename_says_the_output(self, make_cal, tmp_path):
        output, _ = self.write(make_cal(), tmp_path)
        assert fits.getheader(output)["FILENAME"] == output.name
        assert fits.getheader(output)["DATE"] == "2024-05-02T00:00:00"

    def test_odd_names_and_text_fit_a_header(self, make_cal, tmp_path):
        name = "é" * 60 + "_rowbgsub.fits"
        output, _ = self.write(make_cal(), tmp_path, name, history=["sky… ±\n1"], cards=[("SKYX", "'" * 50, "c" * 70)])
        header = fits.getheader(output)
        assert header["FILENAME"] == "?" * 60 + "_rowbgsub.fits"
        assert header["HISTORY"][-1] == "sky? ??1"
        assert_sound(output, checked=())

    def test_old_checksums_are_replaced(self, make_cal, tmp_path):
        source = make_cal()
        with fits.open(source) as hdus:
            hdus.writeto(tmp_path / "summed_cal.fits", checksum=True)
        output, _ = self.write(tmp_path / "summed_cal.fits", tmp_path)
        assert_sound(output, checked=range(6))

    def test_same_bytes_again(self, make_cal, tmp_path):
        source = make_cal()
        first, _ = self.write(source, tmp_path)
        content = first.read_bytes()
        second, _ = self.write(source, tmp_path)
        assert second.read_bytes() == content

    def test_float64(self, make_cal, tmp_path):
        output, levelled = self.write(make_cal(image=scene("f8")), tmp_path)
        assert fits.getheader(output, 1)["BITPIX"] == -64
        np.testing.assert_array_equal(fits.getdata(output, 1), levelled)

    def test_scaled_integers_become_float32(self, make_cal, tmp_path):
        image = np.full((NY, NX), 7, "u2")
        output, levelled = self.write(make_cal(image=image), tmp_path)
        header = fits.getheader(output, 1)
        assert (header["BITPIX"], "BZERO" in header, "BSCALE" in header) == (-32, False, False)
        np.testing.assert_array_equal(fits.getdata(output, 1), levelled)
        assert_sound(output, checked=())

    def test_leading_axis_is_kept(self, make_cal, tmp_path):
        output, levelled = self.write(make_cal(image=scene()[np.newaxis]), tmp_path)
        np.testing.assert_array_equal(fits.getdata(output, 1), levelled[np.newaxis])

    def test_image_in_the_primary(self, tmp_path):
        hdus = fits.HDUList([fits.PrimaryHDU(scene(), primary_header()), fits.ImageHDU(np.ones((3, 3)), name="MAP")])
        hdus.writeto(tmp_path / "a.fits")
        output, levelled = self.write(tmp_path / "a.fits", tmp_path)
        assert_sound(output, checked=())
        with fits.open(output) as after:
            np.testing.assert_array_equal(after[0].data, levelled)
            assert (after[0].header["SKYLEVEL"], after[0].header["FILTER"]) == ("9.9", "F200W")
        assert hdu_bytes(output)[1] == hdu_bytes(tmp_path / "a.fits")[1]

    def test_gzip_input(self, make_cal, tmp_path):
        source = make_cal()
        packed = tmp_path / "b_cal.fits.gz"
        packed.write_bytes(gzip.compress(source.read_bytes()))
        output, _ = self.write(packed, tmp_path)
        assert hdu_bytes(output)[2:] == hdu_bytes(source)[2:]
        assert_sound(output, checked=())

    def test_what_is_copied_is_summed_on_the_way(self, make_cal, tmp_path):
        source = make_cal()
        output, _ = self.write(source, tmp_path)
        written = hdu_bytes(source)[2:]
        # What befalls the file from then on changes nothing of what is noted.
        output.write_bytes(output.read_bytes()[:-1] + b"x")
        crcs = fits_files.unsigned_crcs(output)
        assert [crcs[str(i)] for i in range(2, 2 + len(written))] == [crc32c(data) for data in written]

    def test_failure_leaves_what_stood_there(self, make_cal, tmp_path, monkeypatch):
        source, output = make_cal(), tmp_path / "out.fits"
        output.write_bytes(b"before")

        def full_disk(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("skylevel.io.jwst.copy_hdu", full_disk)
        with pytest.raises(OSError, match="No space left"):
            self.write(source, tmp_path, "out.fits")
        assert output.read_bytes() == b"before"
        assert sorted(tmp_path.iterdir()) == [source, output]

    def test_permissions_are_those_of_any_new_file(self, make_cal, tmp_path):
        output, _ = self.write(make_cal(), tmp_path)
        (tmp_path / "plain").touch()
        assert output.stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_input_is_not_overwritten(self, make_cal, tmp_path):
        source = make_cal()
        with pytest.raises(SettingsError, match="exposure itself"):
            self.write(source, tmp_path, source.name)

    @pytest.mark.parametrize("write", [write_full, write_primary])
    def test_dask_and_other_shapes_are_refused(self, make_cal, tmp_path, write):
        frame = open_exposure(make_cal())
        with pytest.raises(ShapeError, match="compute it first"):
            write(tmp_path / "a.fits", frame, da.zeros((NY, NX), dtype="f4"))
        with pytest.raises(ShapeError, match="shape"):
            write(tmp_path / "a.fits", frame, np.zeros((NX, NY), "f4"))
        assert not (tmp_path / "a.fits").exists()

    def test_input_that_changed_shape(self, make_cal, tmp_path):
        source = make_cal()
        frame = open_exposure(source).load()
        fits.PrimaryHDU(np.zeros((3, 3))).writeto(source, overwrite=True)
        with pytest.raises(ShapeError, match="changed since"):
            write_full(tmp_path / "a.fits", frame, frame["sci"].to_numpy())

    def test_pixels_handed_over_are_not_changed(self, make_cal, tmp_path):
        frame = open_exposure(make_cal())
        levelled = frame["sci"].to_numpy().copy()
        levelled.flags.writeable = False
        write_full(tmp_path / "a.fits", frame, levelled)
        np.testing.assert_array_equal(levelled, scene())


@settings(max_examples=100)
@given(
    pixels=arrays(st.sampled_from(["f4", "f8", "i4"]), st.tuples(st.integers(1, 40), st.integers(1, 40))),
    note=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
)
def test_checksums_are_those_astropy_finds(pixels, note):
    header = fits.PrimaryHDU(pixels).header
    header["NOTE"] = note
    stream = io.BytesIO()
    fits_files.write_hdu(stream, header, pixels)
    with fits.open(io.BytesIO(stream.getvalue())) as hdus:
        assert (hdus[0].verify_checksum(), hdus[0].verify_datasum()) == (1, 1)
        np.testing.assert_array_equal(hdus[0].data, pixels)


def test_images_longer_than_one_piece(monkeypatch):
    monkeypatch.setattr(fits_files, "PIECE", 64)
    pixels = np.random.default_rng(0).normal(size=(37, 41))
    stream = io.BytesIO()
    fits_files.write_hdu(stream, fits.PrimaryHDU(pixels).header, pixels)
    with fits.open(io.BytesIO(stream.getvalue())) as hdus:
        assert (hdus[0].verify_checksum(), hdus[0].verify_datasum()) == (1, 1)
        np.testing.assert_array_equal(hdus[0].data, pixels)


class TestOtherProducts:
    def test_primary_layout_is_the_notebooks(self, make_cal, tmp_path):
        source = make_cal()
        levelled = scene() - 1
        with fits.open(source) as hdus:
            header = hdus[0].header + hdus[1].header
            fits.writeto(tmp_path / "notebook.fits", levelled, header, checksum=True)
        write_primary(tmp_path / "ours.fits", open_exposure(source), levelled, cards=CARDS, history=HISTORY)
        assert_sound(tmp_path / "ours.fits", checked=(0,))
        with fits.open(tmp_path / "notebook.fits") as notebook, fits.open(tmp_path / "ours.fits") as ours:
            assert len(ours) == 1
            np.testing.assert_array_equal(ours[0].data, notebook[0].data)
            added = ("CHECKSUM", "DATASUM", "FILENAME", "SKYLEVEL", "SKYNROWS", "HISTORY")
            assert cards_of(ours[0].header, without=added) == cards_of(notebook[0].header, without=added)
            assert ours[0].header["FILENAME"] == "ours.fits"

    def test_primary_layout_of_a_primary_image(self, tmp_path):
        fits.PrimaryHDU(scene(), primary_header()).writeto(tmp_path / "a.fits")
        write_primary(tmp_path / "b.fits", open_exposure(tmp_path / "a.fits"), scene() - 1)
        np.testing.assert_array_equal(fits.getdata(tmp_path / "b.fits"), scene() - 1)
        assert_sound(tmp_path / "b.fits", checked=(0,))

    def test_masked(self, make_cal, tmp_path):
        mask = np.zeros((NY, NX), bool)
        mask[5:9, 6:7] = True
        write_masked(tmp_path / "a_masked.fits", open_exposure(make_cal()), mask)
        with fits.open(tmp_path / "a_masked.fits") as hdus:
            np.testing.assert_array_equal(hdus[0].data, np.where(mask, 0, scene()))
            assert (hdus[0].header["FILTER"], hdus[0].header["FILENAME"]) == ("F200W", "a_masked.fits")
        assert_sound(tmp_path / "a_masked.fits", checked=(0,))

    def test_segmentation(self, make_cal, tmp_path):
        labels = np.arange(NY * NX, dtype="i4").reshape(NY, NX)
        write_segmentation(tmp_path / "s.fits", open_exposure(make_cal()), labels)
        with fits.open(tmp_path / "s.fits") as hdus:
            assert hdus[0].data.dtype == np.uint32
            np.testing.assert_array_equal(hdus[0].data, labels)
            assert hdus[0].header["CRVAL1"] == 150.0
        assert_sound(tmp_path / "s.fits", checked=(0,))

    def test_image_has_unit_and_distortion(self, make_cal, tmp_path):
        background = np.full((NY, NX), 0.25)
        write_image(tmp_path / "b.fits", open_exposure(make_cal()), background, cards=CARDS)
        with fits.open(tmp_path / "b.fits") as hdus:
            assert hdus[0].data.dtype == ">f4"
            np.testing.assert_array_equal(hdus[0].data, background)
            assert (hdus[0].header["BUNIT"], hdus[0].header["A_2_0"]) == ("MJy/sr", 1e-6)
            assert hdus[0].header["SKYLEVEL"] == "9.9"
        assert_sound(tmp_path / "b.fits", checked=(0,))

    @pytest.mark.parametrize("write", [write_masked, write_segmentation, write_image])
    def test_dask_is_refused(self, make_cal, tmp_path, write):
        with pytest.raises(ShapeError, match="compute it first"):
            write(tmp_path / "a.fits", open_exposure(make_cal()), da.zeros((NY, NX), dtype="i4"))


class TestRealFiles:
    @pytest.mark.parametrize("number", ["00001", "00005"])
    def test_niriss_round_trip(self, tmp_path, number):
        source = real(f"niriss_1093/jw01093014001_03102_{number}_nis_cal.fits")
        frame = open_exposure(source)
        attrs = frame.attrs
        assert (attrs["instrument"], attrs["fast_axis"], attrs["subarray"], attrs["unit"]) == (
            "NIRISS", -2, "SUB80", "DN/s",
        )  # fmt: skip
        output = tmp_path / "n_rowbgsub.fits"
        write_full(output, frame, frame["sci"].to_numpy() - 1, cards=CARDS, history=HISTORY)
        assert hdu_bytes(output)[2:] == hdu_bytes(source)[2:]
        assert_sound(output, checked=())
        with fits.open(source) as before, fits.open(output) as after:
            assert cards_of(after[1].header) == cards_of(before[1].header)
            np.testing.assert_array_equal(after["SCI"].data, before["SCI"].data - 1)

    def test_miri_i2d(self, tmp_path):
        source = real("miri/jw01288015001_04101_00001_mirimage_i2d.fits")
        frame = open_exposure(source)
        assert set(frame) == {"sci", "err", "wht"}
        assert frame.attrs["resampled"] is True
        assert frame.attrs["date_obs"] == "2022-09-18T16:49:56.156"
        assert size_and_field(frame).endswith('129 x 137 pixels = 14.1746" x 15.0536" (0.11" / pixel)')
        write_full(tmp_path / "m.fits", frame, frame["sci"].to_numpy())
        assert hdu_bytes(tmp_path / "m.fits")[2:] == hdu_bytes(source)[2:]

    def test_nircam_primary_only(self, tmp_path):
        source = real("nircam_tso/jw01366002001_01101_00001-seg004_nrca3_rateints_I00372.fits")
        frame = open_exposure(source)
        assert (frame.attrs["sci_extension"], frame.attrs["fast_axis"], frame.attrs["n_outputs"]) == (0, -1, 4)
        write_full(tmp_path / "t.fits", frame, frame["sci"].to_numpy() - 1)
        assert_sound(tmp_path / "t.fits", checked=())

    def test_real_wcs_with_distortion(self, tmp_path):
        frame = open_exposure(real("badpix/jw01837004002_08201_00002_nrcb1_cal_claws_seed_image_masked.fits.gz"))
        assert frame_wcs(frame).sip is not None
        write_segmentation(tmp_path / "s.fits", frame, np.zeros(frame["sci"].shape, "i4"))
        assert_sound(tmp_path / "s.fits", checked=(0,))


def damaged(path, old: bytes, new: bytes, *, after: bytes = b"") -> Path:
    """Change the first card that begins so, behind another text; cards keep their length."""
    content = path.read_bytes()
    place = content.index(old, content.index(after))
    path.write_bytes(content[:place] + new.ljust(80)[:80] + content[place + 80 :])
    return path


def refusal(path, kind) -> str:
    """The message that both opening and peeking refuse a file with."""
    messages = []
    for read in (lambda: open_exposure(path).load(), lambda: peek_exposure(path)):
        with pytest.raises(kind) as caught:
            read()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"{path}: ")
    assert "\n" not in messages[0]
    return messages[0]


class TestDamagedCards:
    @pytest.mark.parametrize("card", [b"DETECTOR= NRCB1", b"FILTER  = 'F200W", b"DETECTOR= ", b"FILTER  = 1 2 3 ("])
    def test_what_decides_where_results_go_is_named(self, make_cal, card):
        path = damaged(make_cal(), card[:9], card)
        if card == b"DETECTOR= ":
            assert "detector" not in open_exposure(path).attrs
            return
        assert card[:8].decode().strip() in refusal(path, UnreadableFrameError)

    @pytest.mark.parametrize(
        ("card", "name"),
        [
            (b"DATE-OBS= 2023-01-02", "date_obs"),
            (b"EFFEXPTM= 3.1.1", "exposure_time"),
            (b"FASTAXIS= 'one", "fast_axis"),
            (b"FASTAXIS= 1E999", "fast_axis"),
            (b"NOUTPUTS= (1, 2)", "n_outputs"),
            (b"PIXAR_SR= 2,23E-14", "pixel_area_sr"),
            (b"PHOTMJSR= two", "photmjsr"),
            (b"R_GAIN  = crds://x", "gain_reference"),
        ],
    )
    def test_a_sound_file_is_not_refused_for_another_card(self, make_cal, tmp_path, card, name):
        path = damaged(make_cal(), card[:9], card)
        frame = open_exposure(path)
        assert frame.attrs.get(name) in (None, "T03:04:05.678", "03:04:05.678")
        np.testing.assert_array_equal(frame["sci"], scene())
        for write in (write_full, write_primary):
            write(tmp_path / "o.fits", frame, scene() - 1, cards=CARDS)
            assert_sound(tmp_path / "o.fits", checked=())

    @pytest.mark.parametrize(
        "card", [b"BUN.T   = 'a'", b"BUNIT  == 'a'", b"bunit   = 'a'", b"BUNIT   =  a b'", b"BUNIT='a'"]
    )
    def test_outputs_are_legal_whatever_the_input_was(self, make_cal, tmp_path, card):
        path = damaged(make_cal(), b"BUNIT   =", card)
        frame = open_exposure(path)
        for write in (write_full, write_primary):
            write(tmp_path / "o.fits", frame, scene() - 1, cards=CARDS, history=HISTORY)
            assert_sound(tmp_path / "o.fits", checked=())
            np.testing.assert_array_equal(fits.getdata(tmp_path / "o.fits"), scene() - 1)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b"NAXIS   =", b"NAXIS   =           2147483648"),
            (b"NAXIS   =", b"NAXIS   =                   -1"),
            (b"NAXIS1  =", b"NAXIS1  =  9223372036854775807"),
            (b"NAXIS2  =", b"NAXIS2  =          10000000000"),
            (b"NAXIS1  =", b"NAXIS1  = 99999999999999999999999999999999"),
            (b"PCOUNT  =", b"PCOUNT  =  9223372036854775807"),
            (b"PCOUNT  =", b"PCOUNT  =                   -1"),
            (b"GCOUNT  =", b"GCOUNT  =           2147483648"),
            (b"GCOUNT  =", b"GCOUNT  =                    0"),
            (b"BITPIX  =", b"BITPIX  =                   31"),
        ],
    )
    def test_sizes_that_cannot_be(self, make_cal, old, new):
        message = refusal(damaged(make_cal(), old, new, after=b"XTENSION"), UnreadableFrameError)
        assert "HDU 1" in message

    @pytest.mark.parametrize("card", [b"BSCALE  = one", b"BZERO   = 'x'", b"BZERO   = 3 4"])
    def test_values_that_nobody_knows(self, make_cal, card):
        path = damaged(make_cal(), b"BUNIT   =", card)
        with pytest.raises(UnreadableFrameError, match=card[:5].decode()):
            open_exposure(path)


class TestBounds:
    def test_a_file_that_is_mostly_a_hole(self, tmp_path):
        header = fits.PrimaryHDU(np.zeros((1, 1), "f4")).header
        header["NAXIS1"] = header["NAXIS2"] = 1_000_000
        path = tmp_path / "lie.fits"
        path.write_bytes(header.tostring().encode())
        os.truncate(path, 4_000_000_003_200)
        assert "claims 4000000" in refusal(path, UnreadableFrameError)

    def test_gzip_that_claims_far_more_than_it_holds(self, tmp_path):
        header = fits.PrimaryHDU(np.zeros((1, 1), "f4")).header
        header["NAXIS1"] = header["NAXIS2"] = 1_000_000
        path = tmp_path / "lie.fits.gz"
        path.write_bytes(gzip.compress(header.tostring().encode() + bytes(1 << 20)))
        assert "claims 4000000" in refusal(path, UnreadableFrameError)

    @pytest.mark.parametrize("end", [b"", b"END".ljust(2880)])
    def test_endless_header(self, tmp_path, end):
        path = tmp_path / "blank.fits.gz"
        path.write_bytes(gzip.compress(fits.PrimaryHDU().header.tostring().encode()[:160].ljust(18 << 20) + end))
        assert "no END" in refusal(path, UnreadableFrameError)

    def test_endless_headers(self, tmp_path, monkeypatch):
        monkeypatch.setattr(hdu_reader, "MOST_HEADERS_BYTES", 30 * 2880)
        path = tmp_path / "many.fits"
        fits.HDUList([fits.PrimaryHDU(), *(fits.ImageHDU() for _ in range(40))]).writeto(path)
        assert "too many" in refusal(path, UnreadableFrameError)

    def test_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.fits")
        assert "pipe" in refusal(tmp_path / "pipe.fits", UnreadableFrameError)

    def test_device(self):
        assert "device" in refusal(Path("/dev/zero"), UnreadableFrameError)

    def test_link_that_leads_nowhere(self, tmp_path):
        (tmp_path / "a.fits").symlink_to("gone.fits")
        assert "link to gone.fits" in refusal(tmp_path / "a.fits", UnreadableFrameError)

    def test_name_that_no_file_has(self):
        with pytest.raises(UnreadableFrameError, match="no name"):
            read_start("a\0.fits")

    @pytest.mark.parametrize("card", ["A_ORDER", "B_ORDER", "AP_ORDER", "BP_ORDER", "WCSAXES"])
    @pytest.mark.parametrize("value", [15000, 10**6, 10**9, -1])
    def test_coordinates_that_would_take_all_memory(self, make_cal, card, value):
        frame = open_exposure(make_cal(edit=lambda hdus: hdus["SCI"].header.update({card: value})))
        with pytest.raises(UnsupportedFrameError, match=f"{card} is {value}"):
            frame_wcs(frame)
        assert size_and_field(frame) == "made_cal.fits: 24 x 30 pixels"

    def test_wrong_coordinates_are_no_reason_to_refuse_an_exposure(self, make_cal):
        frame = open_exposure(make_cal(edit=lambda hdus: hdus["SCI"].header.update(CTYPE2="DEC--SIN")))
        assert size_and_field(frame) == "made_cal.fits: 24 x 30 pixels"


class TestChoiceOfTheImage:
    @pytest.mark.parametrize(
        "name",
        ["DQ", "ERR", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "WHT", "CON", "AREA", "WEIGHT", "MASK", "GROUPDQ"],
    )
    def test_an_image_of_another_meaning_is_never_taken(self, tmp_path, name):
        path = tmp_path / "a.fits"
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(scene(), name=name)]).writeto(path)
        assert name in refusal(path, UnsupportedFrameError)

    def test_an_image_with_another_name_behind_it_is(self, tmp_path):
        path = tmp_path / "a.fits"
        planes = [fits.ImageHDU(np.ones((NY, NX), "f4"), name="ERR"), fits.ImageHDU(scene(), name="MOSAIC")]
        fits.HDUList([fits.PrimaryHDU(), *planes]).writeto(path)
        np.testing.assert_array_equal(open_exposure(path)["sci"], scene())


def compressed(make_cal, tmp_path, method="RICE_1", *, image=None, others=True, **options) -> Path:
    """An exposure whose images are tile-compressed, as fpack makes it; lossless where `options` do not say else."""
    source = make_cal(image=image)
    path = tmp_path / "made_cal.fits.fz"
    with fits.open(source) as hdus:
        packed = [
            fits.CompImageHDU(hdu.data, hdu.header, name=hdu.name, compression_type=method, **options)
            if hdu.name == "SCI" or (others and hdu.name in ("ERR", "DQ", "AREA"))
            else hdu.copy()
            for hdu in hdus
        ]
        fits.HDUList(packed).writeto(path)
    return path


class TestCompressed:
    @pytest.mark.parametrize("method", ["RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1"])
    @pytest.mark.parametrize("others", [True, False])
    def test_opens_as_what_was_compressed(self, make_cal, tmp_path, method, others):
        # Two methods are lossless for floating-point pixels; the others quantize them.
        lossless = {"quantize_level": 0.0} if method.startswith("GZIP") else {"quantize_level": 64.0}
        path = compressed(make_cal, tmp_path, method, others=others and method != "HCOMPRESS_1", **lossless)
        frame = open_exposure(path)
        assert set(frame) == {"sci", "err", "dq"}
        assert (frame.attrs["compression"], frame.attrs["sci_extension"]) == (method, 1)
        assert (frame.attrs["unit"], frame.attrs["filter"]) == ("MJy/sr", "F200W")
        np.testing.assert_allclose(frame["sci"], scene(), atol=0 if method.startswith("GZIP") else 0.02)
        assert int(frame["dq"][3, 4]) == 1 | 1 << 31
        assert size_and_field(frame).endswith("pixel)")
        assert peek_exposure(path)[0] == (NY, NX)

    @pytest.mark.parametrize("others", [True, False])
    def test_written_plain_and_all_else_byte_for_byte(self, make_cal, tmp_path, others):
        path = compressed(make_cal, tmp_path, "GZIP_2", others=others, quantize_level=0.0)
        frame = open_exposure(path)
        write_full(tmp_path / "o.fits", frame, scene() - 1, cards=CARDS, history=HISTORY)
        assert_sound(tmp_path / "o.fits", checked=())
        assert hdu_bytes(tmp_path / "o.fits")[2:] == hdu_bytes(path)[2:]
        with fits.open(tmp_path / "o.fits") as hdus:
            assert type(hdus[1]) is fits.ImageHDU
            np.testing.assert_array_equal(hdus["SCI"].data, scene() - 1)
            assert hdus["SCI"].header["PHOTMJSR"] == 2.056
            assert not [keyword for keyword in hdus["SCI"].header if keyword.startswith(("Z", "TTYPE", "TFORM"))]
            assert "GZIP_2" in hdus[0].header["HISTORY"][-1]
            assert hdus["DQ"].data[3, 4] == 1 | 1 << 31

    def test_primary_layout_and_products(self, make_cal, tmp_path):
        frame = open_exposure(compressed(make_cal, tmp_path, "GZIP_1", quantize_level=0.0))
        write_primary(tmp_path / "p.fits", frame, scene() - 1)
        write_masked(tmp_path / "m.fits", frame, np.zeros((NY, NX), bool))
        write_segmentation(tmp_path / "s.fits", frame, np.ones((NY, NX), "i4"))
        for name in "pms":
            assert_sound(tmp_path / f"{name}.fits", checked=(0,))
        np.testing.assert_array_equal(fits.getdata(tmp_path / "p.fits"), scene() - 1)

    def test_an_image_that_was_a_primary(self, tmp_path):
        packed = fits.CompImageHDU(scene(), primary_header(), compression_type="GZIP_1", quantize_level=0.0)
        fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / "a.fits.fz")
        frame = open_exposure(tmp_path / "a.fits.fz")
        np.testing.assert_array_equal(frame["sci"], scene())
        assert frame.attrs["filter"] == "F200W"
        write_full(tmp_path / "o.fits", frame, scene() - 1)
        assert_sound(tmp_path / "o.fits", checked=())

    def test_rows_alone(self, make_cal, tmp_path):
        frame = open_exposure(compressed(make_cal, tmp_path, "GZIP_1", quantize_level=0.0))
        np.testing.assert_array_equal(frame["sci"][5:9, 3:20], scene()[5:9, 3:20])
        np.testing.assert_array_equal(frame["sci"].chunk(7).compute(scheduler="threads"), scene())

    def test_integers(self, make_cal, tmp_path):
        image = np.arange(NY * NX, dtype="i2").reshape(NY, NX)
        frame = open_exposure(compressed(make_cal, tmp_path, image=image))
        np.testing.assert_array_equal(frame["sci"], image)
        write_full(tmp_path / "o.fits", frame, image - 0.5)
        assert fits.getheader(tmp_path / "o.fits", 1)["BITPIX"] == -32

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b"ZNAXIS1 =", b"ZNAXIS1 =              1000000"),
            (b"ZNAXIS2 =", b"ZNAXIS2 =           4000000000"),
            (b"ZTILE1  =", b"ZTILE1  =                    0"),
            (b"ZNAXIS  =", b"ZNAXIS  =           2147483648"),
            (b"ZBITPIX =", b"ZBITPIX =                   12"),
            (b"NAXIS2  =", b"NAXIS2  =                    3"),
        ],
    )
    def test_lies(self, make_cal, tmp_path, old, new):
        path = damaged(compressed(make_cal, tmp_path), old, new, after=b"XTENSION")
        refusal(path, UnreadableFrameError)

    def test_damaged_tiles(self, make_cal, tmp_path):
        path = compressed(make_cal, tmp_path, "GZIP_1", quantize_level=0.0)
        hdu = read_hdus(path)[1]
        content = bytearray(path.read_bytes())
        content[hdu.data_start : hdu.data_end] = np.random.default_rng(1).bytes(hdu.data_end - hdu.data_start)
        path.write_bytes(content)
        with pytest.raises(UnreadableFrameError, match="tiles"):
            open_exposure(path)["sci"].load()


class TestPrimaryImageBesideSci:
    @pytest.fixture
    def both(self, tmp_path):
        preview = fits.PrimaryHDU(np.arange(35, dtype="u2").reshape(5, 7), primary_header())
        path = tmp_path / "both.fits"
        hdus = fits.HDUList([preview, fits.ImageHDU(scene(), sci_header(), name="SCI"), fits.ImageHDU(np.ones(3))])
        hdus.writeto(path, checksum=True)
        return path

    def test_full_layout_keeps_the_primarys_image(self, both, tmp_path):
        frame = open_exposure(both)
        np.testing.assert_array_equal(frame["sci"], scene())
        write_full(tmp_path / "o.fits", frame, scene() - 1, cards=CARDS, history=HISTORY)
        assert_sound(tmp_path / "o.fits", checked=(0, 1, 2))
        with fits.open(tmp_path / "o.fits") as hdus:
            np.testing.assert_array_equal(hdus[0].data, np.arange(35).reshape(5, 7))
            np.testing.assert_array_equal(hdus["SCI"].data, scene() - 1)

    def test_other_outputs_do_not_take_its_scaling(self, both, tmp_path):
        frame = open_exposure(both)
        write_primary(tmp_path / "p.fits", frame, scene() - 1)
        write_masked(tmp_path / "m.fits", frame, np.zeros((NY, NX), bool))
        for name, expected in (("p", scene() - 1), ("m", scene())):
            assert_sound(tmp_path / f"{name}.fits", checked=(0,))
            np.testing.assert_array_equal(fits.getdata(tmp_path / f"{name}.fits"), expected)


class TestReadBack:
    @pytest.mark.parametrize("damage", ["a pixel", "the length", "the header"])
    @pytest.mark.parametrize("write", [write_full, write_primary])
    def test_what_the_disk_spoilt_is_never_put_in_place(self, make_cal, tmp_path, monkeypatch, write, damage):
        original = fits_files.read_back

        def spoilt(path, written, *, name):
            content = bytearray(path.read_bytes())
            if damage == "a pixel":
                hdu = read_hdus(path)[len(written) > 1]
                content[hdu.data_start + 100] ^= 1
            elif damage == "the length":
                del content[-2880:]
            else:
                content[content.index(b"NAXIS1") + 29] = ord("9")
            path.write_bytes(content)
            original(path, written, name=name)

        monkeypatch.setattr(fits_files, "read_back", spoilt)
        frame = open_exposure(make_cal())
        with pytest.raises(OutputError, match=r"o\.fits: reads back"):
            write(tmp_path / "o.fits", frame, scene())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["made_cal.fits"]


class TestChecksums:
    @pytest.mark.parametrize("cards", [(), ("CHECKSUM",), ("DATASUM",), ("CHECKSUM", "DATASUM")])
    def test_refreshed_where_the_input_has_them_and_nowhere_else(self, make_cal, tmp_path, cards):
        """The pipeline copies them along without refreshing them: these are wrong already in the input."""

        def edit(hdus):
            for card in cards:
                hdus[0].header[card] = hdus["SCI"].header[card] = "0" * 16

        path = make_cal(edit=edit)
        write_full(tmp_path / "o.fits", open_exposure(path), scene() - 1)
        with fits.open(tmp_path / "o.fits", checksum=False) as hdus:
            for hdu in hdus[:2]:
                found = {card for card in ("CHECKSUM", "DATASUM") if card in hdu.header}
                # astropy takes a CHECKSUM without a DATASUM for the header's alone.
                assert found == ({"CHECKSUM", "DATASUM"} if "CHECKSUM" in cards else set(cards))
        with fits.open(tmp_path / "o.fits", checksum=True) as hdus:
            expected = (1 if "CHECKSUM" in cards else 2, 1 if cards else 2)
            assert [(hdu.verify_checksum(), hdu.verify_datasum()) for hdu in hdus[:2]] == [expected] * 2

    def test_primary_layout_always_has_them(self, make_cal, tmp_path):
        write_primary(tmp_path / "o.fits", open_exposure(make_cal()), scene())
        assert_sound(tmp_path / "o.fits", checked=(0,))


class TestFinite:
    @pytest.mark.parametrize("write", [write_full, write_primary])
    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    def test_pixels_that_overflow_are_an_error(self, make_cal, tmp_path, write, dtype):
        frame = open_exposure(make_cal(image=scene().astype(dtype)))
        lost = scene().astype(dtype)
        lost[5, 6] = np.inf
        with pytest.raises(OutputError, match="1 finite pixels"):
            write(tmp_path / "o.fits", frame, lost)
        assert not (tmp_path / "o.fits").exists()

    def test_a_value_beyond_float32(self, make_cal, tmp_path):
        with pytest.raises(OutputError, match="too large"):
            write_full(tmp_path / "o.fits", open_exposure(make_cal()), np.full((NY, NX), 1e39))

    def test_in_blocks(self, make_cal, tmp_path):
        frame = open_exposure(make_cal())
        lost = scene()
        lost[20, 6] = np.nan
        for image, error in ((scene(), None), (lost, OutputError)):
            rows = fits_files.RowBlocks(image.shape, image.dtype, iter([image[:10], image[10:]]))
            if error is None:
                write_full(tmp_path / "o.fits", frame, rows)
            else:
                with pytest.raises(error):
                    write_full(tmp_path / "o2.fits", frame, rows)
        assert not (tmp_path / "o2.fits").exists()


class TestPast:
    @pytest.mark.parametrize(
        ("cards", "tool"),
        [
            ({"SKYLEVEL": "0.1.0"}, "skylevel 0.1.0"),
            ({"S_CLNFNS": "COMPLETE"}, "clean_flicker_noise of the JWST pipeline"),
            ({"S_CLNFNS": "SKIPPED"}, None),
            ({"S_NSCLEN": "COMPLETE"}, "nsclean of the JWST pipeline"),
            ({"ONEFEXP": True}, "grizli's 1/f correction"),
            ({"ONEFEXP": False}, None),
            ({"HISTORY": "Removed striping with remstriping.py"}, "remstriping"),
            ({}, None),
        ],
    )
    def test_levelled_by(self, make_cal, cards, tool):
        path = make_cal(edit=lambda hdus: hdus[0].header.update(cards))
        assert open_exposure(path).attrs.get("levelled_by") == tool
        assert peek_exposure(path)[1].get("levelled_by") == tool

    def test_our_own_outputs_say_so(self, make_cal, tmp_path):
        frame = open_exposure(make_cal())
        for write in (write_full, write_primary):
            write(tmp_path / "o.fits", frame, scene(), cards=CARDS)
            assert open_exposure(tmp_path / "o.fits").attrs["levelled_by"] == "skylevel 9.9"

    @pytest.mark.parametrize(
        ("edit", "name", "resampled"),
        [
            (None, "made_cal.fits", False),
            (None, "made_i2d.fits", True),
            (None, "jw01288-o001_t011_nircam_clear-f480m_cropped.fits", True),
            (None, "jw01288001001_02101_00001_nrca1_crf.fits", False),
            (lambda hdus: hdus[0].header.update(S_RESAMP="COMPLETE"), "a.fits", True),
            (lambda hdus: hdus[0].header.update(S_RESAMP="SKIPPED"), "a.fits", False),
            (lambda hdus: hdus.append(fits.ImageHDU(scene(), name="WHT")), "a.fits", True),
        ],
    )
    def test_resampled(self, make_cal, edit, name, resampled):
        path = make_cal(name, edit=edit)
        assert open_exposure(path).attrs.get("resampled", False) is resampled
        assert peek_exposure(path)[1].get("resampled", False) is resampled

    def test_no_data(self, make_cal):
        image = scene()
        image[2:5] = 0
        weight = np.ones((NY, NX), "f4")
        weight[2:4] = 0
        weight[10] = 0
        path = make_cal(image=image, edit=lambda hdus: hdus.append(fits.ImageHDU(weight, name="WHT")))
        expected = np.zeros((NY, NX), bool)
        expected[2:4] = True
        for frame in (open_exposure(path), open_exposure(path).chunk(7)):
            mask = no_data_mask(frame)
            assert (mask.dtype, mask.dims) == (bool, ("y", "x"))
            assert (mask.chunks is None) == (frame["sci"].chunks is None)
            np.testing.assert_array_equal(mask, expected)

    def test_no_data_without_weights(self, make_cal):
        image = scene()
        image[2:5] = 0
        assert no_data_mask(open_exposure(make_cal(image=image))) is None
        assert no_data_mask(open_exposure(make_cal("m_i2d.fits", image=image))).sum() == 3 * NX


def test_a_link_at_the_outputs_name_is_replaced_and_not_followed(make_cal, tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    output = tmp_path / "o.fits"
    output.symlink_to(precious)
    write_full(output, open_exposure(make_cal()), scene())
    assert precious.read_bytes() == b"mine"
    assert not output.is_symlink()
    assert_sound(output, checked=())
