"""The public Python, as users of xarray and astropy expect it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from astropy import units as u
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    InverseVariance,
    NDData,
    StdDevUncertainty,
    UnknownUncertainty,
    VarianceUncertainty,
)
from distributed import Client

import skylevel as sl
from programs import image_of, write_exposure, write_raw
from scenes import GRBG, RGGB, make_frame, make_image, make_mosaic, make_raw_frame
from skylevel.errors import ClusterError, SettingsError, ShapeError, UnsupportedFrameError


def test_every_public_name_is_there() -> None:
    assert {name for name in sl.__all__ if getattr(sl, name, None) is None} == set()
    assert set(sl.__all__) <= set(dir(sl))


def test_importing_changes_nothing_in_the_process() -> None:
    """Not how the C library hands out memory, no signal, no environment, no warning filter."""
    code = """
import ctypes, os, signal, sys, warnings
called = []
ctypes.CDLL = lambda *a, **k: called.append(a)
before = (dict(os.environ), signal.getsignal(signal.SIGINT))
import skylevel, skylevel.level, skylevel.kernels.mesh, skylevel.jobs
skylevel.level_rows, skylevel.open_frame, skylevel.write_frame
assert (dict(os.environ), signal.getsignal(signal.SIGINT)) == before
print(len(called))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_looking_at_a_program_imports_no_cluster() -> None:
    code = "import sys, skylevel.program.view as v; print('distributed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class TestVariables:
    def test_have_units_and_names(self, tmp_path: Path) -> None:
        out = sl.level_rows(sl.open_frame(write_exposure(tmp_path / "a.fits")))
        for name in ("sci", "row_level", "background", "background_rms"):
            assert out[name].attrs["units"] == "MJy/sr"
        assert all(out[name].attrs["long_name"] for name in out.data_vars)
        raw = sl.level_channels(sl.open_frame(write_raw(tmp_path / "n.dng")))
        assert {raw[name].attrs["units"] for name in ("sci", "background", "background_rms")} == {"ADU"}

    def test_meshes_stand_at_their_boxes_centres(self) -> None:
        out = sl.level_rows(make_frame(make_image((120, 140)).image))
        assert out["mesh_y"].values.tolist() == [24.5, 74.5, 124.5]
        assert out["background"].attrs["box_size"] == [50, 50]
        assert out["background"].sel(mesh_y=70, mesh_x=30, method="nearest") == out["background"][1, 0]


@pytest.mark.packages
class TestBackgroundImage:
    def test_of_rows_is_lazy_and_smooth(self) -> None:
        frame = make_frame(make_image((230, 240), gradient=0.2, sources=0).image)
        out = sl.level_rows(frame)
        image = sl.background_image(out)
        assert isinstance(image.data, da.Array)
        assert (image.shape, image.dtype) == ((230, 240), np.float32)
        centre = image.values[74:76, 74:76].mean()
        assert abs(centre - float(out["background"][1, 1])) < 0.01

    def test_of_channels_is_what_was_subtracted(self) -> None:
        frame = make_raw_frame(make_mosaic((240, 260)))
        out = sl.level_channels(frame, sl.Channels(norms={"R": 1, "G": 1, "B": 1}))
        np.testing.assert_allclose(sl.background_image(out), frame["raw"] - out["sci"], atol=1e-3)

    def test_of_what_a_program_stored(self, tmp_path: Path) -> None:
        write_exposure(tmp_path / "in" / "a.fits")
        sl.run(tmp_path / "in", tmp_path / "out", workers=1)
        node = sl.open_program(tmp_path / "out")["NRCA1/F200W"].to_dataset()
        expected = sl.background_image(sl.level_rows(sl.open_frame(tmp_path / "in" / "a.fits").load()))
        np.testing.assert_array_equal(sl.background_image(node.isel(exposure=0)), expected)

    def test_of_nothing(self) -> None:
        with pytest.raises(UnsupportedFrameError, match="holds no measured background"):
            sl.background_image(make_frame())


@pytest.mark.packages
class TestWriteFrame:
    def test_rows_as_a_run_writes_them(self, tmp_path: Path) -> None:
        path = write_exposure(tmp_path / "in" / "a.fits")
        sl.run(path, tmp_path / "out", workers=1)
        for chunks in (None, {"y": 40}):
            frame = sl.open_frame(path)
            sl.write_frame(sl.level_rows(frame if chunks is None else frame.chunk(chunks)), tmp_path / "by_hand.fits")
            by_hand, by_run = (image_of(p) for p in (tmp_path / "by_hand.fits", tmp_path / "out" / "a_rowbgsub.fits"))
            assert by_hand.tobytes() == by_run.tobytes()
            header = fits.getheader(tmp_path / "by_hand.fits")
            assert (header["SKYRECIP"], header["SKYHASH"]) == ("rows", sl.Rows().hash[:16])
            names = [hdu[1] for hdu in fits.info(tmp_path / "by_hand.fits", output=False)]
            assert names == ["PRIMARY", "SCI", "ERR", "DQ"]

    def test_channels_in_one_hdu(self, tmp_path: Path) -> None:
        path = write_raw(tmp_path / "n.dng")
        out = sl.level_channels(sl.open_frame(path))
        sl.write_frame(out, tmp_path / "n.fits", layout="primary")
        np.testing.assert_array_equal(fits.getdata(tmp_path / "n.fits"), out["sci"])

    def test_what_is_not_levelled_or_not_from_a_file(self, tmp_path: Path) -> None:
        frame = sl.open_frame(write_exposure(tmp_path / "a.fits"))
        for other in (frame, xr.Dataset()):
            with pytest.raises(UnsupportedFrameError, match="only a levelled frame"):
                sl.write_frame(other, tmp_path / "b.fits")
        with pytest.raises(SettingsError, match="is the exposure itself"):
            sl.write_frame(sl.level_rows(frame), tmp_path / "a.fits")


class TestArraysAndNDData:
    IMAGE = make_image((120, 140), seed=5).image

    def test_an_array_comes_back_as_an_array(self) -> None:
        out = sl.level_rows(self.IMAGE)
        assert isinstance(out, np.ndarray)
        np.testing.assert_array_equal(out, sl.level_rows(make_frame(self.IMAGE))["sci"])

    def test_ccddata_comes_back_as_ccddata(self) -> None:
        error = StdDevUncertainty(np.full(self.IMAGE.shape, 0.02))
        out = sl.level_rows(CCDData(self.IMAGE, unit=u.MJy / u.sr, uncertainty=error, meta={"DETECTOR": "NRCA1"}))
        assert isinstance(out, CCDData)
        assert (out.unit, out.meta["DETECTOR"]) == (u.MJy / u.sr, "NRCA1")
        assert out.uncertainty is not None
        np.testing.assert_array_equal(out.data, sl.level_rows(self.IMAGE))

    def test_masked_pixels_do_not_count(self) -> None:
        mask = np.zeros(self.IMAGE.shape, bool)
        mask[:, 30:60] = True
        spoilt = np.where(mask, 50.0, self.IMAGE).astype(np.float32)
        out = sl.level_rows(NDData(spoilt, mask=mask))
        expected = sl.level_rows(np.where(mask, np.nan, self.IMAGE))
        np.testing.assert_array_equal(out.data[~mask], expected[~mask])
        assert np.isfinite(out.data[mask]).all()

    def test_a_mosaic_with_its_pattern(self) -> None:
        raw = make_mosaic((240, 260))
        out = sl.level_channels(raw, color_filter_array=RGGB)
        np.testing.assert_array_equal(out, sl.level_channels(make_raw_frame(raw))["sci"])
        with pytest.raises(UnsupportedFrameError, match="no color_filter_array"):
            sl.level_channels(raw)

    def test_masked_pixels_of_a_mosaic_do_not_count_and_stay(self) -> None:
        raw, mask = make_mosaic((240, 260)), np.zeros((240, 260), bool)
        mask[60:90, 100:140] = True
        spoilt = np.where(mask, 16000, raw).astype(raw.dtype)
        out = sl.level_channels(NDData(spoilt, mask=mask), color_filter_array=RGGB)
        gaps = make_raw_frame(np.where(mask, 0, raw))
        np.testing.assert_array_equal(out.data[~mask], sl.level_channels(gaps)["sci"].values[~mask])
        assert out.data[mask].min() > 10000

    @pytest.mark.parametrize("masked", [NDData, np.ma.MaskedArray])
    def test_a_mask_counts_whoever_has_it(self, masked: type) -> None:
        mask = np.zeros(self.IMAGE.shape, bool)
        mask[:, 30:60] = True
        spoilt = np.where(mask, 50.0, self.IMAGE).astype(np.float32)
        out = sl.level_rows(masked(spoilt, mask=mask))
        assert isinstance(out, masked)
        np.testing.assert_array_equal(out.mask, mask)
        np.testing.assert_array_equal(out.data, sl.level_rows(NDData(spoilt, mask=mask)).data)
        assert out.data[mask].min() > 40
        whole = masked(self.IMAGE)
        np.testing.assert_array_equal(sl.level_rows(whole).data, sl.level_rows(self.IMAGE))
        with pytest.raises(ShapeError, match=r"the image is \(120, 140\), its mask \(3, 3\)"):
            sl.level_rows(NDData(self.IMAGE, mask=np.zeros((3, 3), bool)))

    @pytest.mark.parametrize("dtype", [np.uint16, np.int32, ">f8"])
    def test_of_any_numbers_masked_too(self, dtype: str | type) -> None:
        image = np.nan_to_num(1000 * self.IMAGE).astype(dtype)
        expected = sl.level_rows(image.astype(np.float64 if dtype == ">f8" else np.float32))
        for given in (image, NDData(image, mask=np.zeros(image.shape, bool)), make_frame(image)):
            out = sl.level_rows(given)
            levelled = out["sci"].values if isinstance(out, xr.Dataset) else np.asarray(getattr(out, "data", out))
            np.testing.assert_array_equal(levelled.astype(expected.dtype), expected)

    def test_a_data_array_comes_back_as_one(self) -> None:
        image = xr.DataArray(self.IMAGE, dims=("row", "column"), coords={"row": np.arange(120)}, attrs={"units": "DN"})
        out = sl.level_rows(image)
        xr.testing.assert_identical(out, image.copy(data=sl.level_rows(self.IMAGE)))
        lazy = sl.level_rows(image.chunk(row=50))
        assert isinstance(lazy.data, da.Array)
        xr.testing.assert_identical(lazy.compute(), out)
        assert isinstance(sl.level_rows(lazy.data), da.Array)
        raw = xr.DataArray(make_mosaic((240, 260)), dims=("y", "x"), name="raw")
        assert sl.level_channels(raw, color_filter_array=RGGB).name == "raw"

    @pytest.mark.parametrize("kind", [StdDevUncertainty, VarianceUncertainty, InverseVariance])
    def test_an_uncertainty_grows_as_its_pixels(self, kind: type) -> None:
        raw, std = make_mosaic((240, 260)), StdDevUncertainty(np.full((240, 260), 5.0))
        flags, psf = np.ones((240, 260), np.uint8), np.ones((3, 3))
        ccd = CCDData(raw, unit="adu", uncertainty=std.represent_as(kind), flags=flags, psf=psf)
        out = sl.level_channels(ccd, sl.Channels(norms={"R": 2, "G": 1}), color_filter_array=RGGB)
        error = out.uncertainty.represent_as(StdDevUncertainty)
        assert (error.array[0, 0], error.array[0, 1], error.array[1, 0], error.array[1, 1]) == (10, 5, 5, 5)
        assert isinstance(out.uncertainty, kind)
        assert (out.uncertainty.parent_nddata, out.unit) == (out, u.adu)
        np.testing.assert_array_equal(out.flags, flags)
        np.testing.assert_array_equal(out.psf, psf)

    def test_an_uncertainty_that_cannot_be_told_is_left_out(self) -> None:
        raw, error = make_mosaic((240, 260)), np.full((240, 260), 5.0)
        divided = sl.Channels.preset("best").replace({"correction": "divide", "black_level": 100})
        ccd = CCDData(raw, unit="adu", uncertainty=StdDevUncertainty(error))
        assert sl.level_channels(ccd, divided, color_filter_array=RGGB).uncertainty is None
        unknown = NDData(raw, uncertainty=UnknownUncertainty(error))
        assert sl.level_channels(unknown, color_filter_array=RGGB).uncertainty is None

    def test_a_mask_and_an_uncertainty_of_nothing(self) -> None:
        expected = sl.level_rows(self.IMAGE)
        given = NDData(self.IMAGE, mask=False, uncertainty=StdDevUncertainty(None))
        np.testing.assert_array_equal(sl.level_rows(given).data, expected)
        raw = NDData(make_mosaic((240, 260)), mask=False, uncertainty=StdDevUncertainty(None))
        assert sl.level_channels(raw, color_filter_array=RGGB).uncertainty.array is None


class TestPattern:
    RAW = make_mosaic((120, 140))

    @pytest.mark.parametrize("given", ["RGGB", "rggb", ["rg", "gb"], np.array(["RG", "GB"])])
    def test_may_be_written_as_it_is_elsewhere(self, given: Any) -> None:
        expected = sl.level_channels(make_raw_frame(self.RAW))
        np.testing.assert_array_equal(sl.level_channels(self.RAW, color_filter_array=given), expected["sci"])
        frame = xr.Dataset({"raw": expected["sci"].copy(data=self.RAW)}, attrs={"color_filter_array": given})
        np.testing.assert_array_equal(sl.level_channels(frame)["sci"], expected["sci"])
        frame = make_raw_frame(self.RAW, pattern=GRBG)
        np.testing.assert_array_equal(sl.level_channels(frame, color_filter_array=given)["sci"], expected["sci"])

    @pytest.mark.parametrize(
        "given", ["", [], "RGB", "R", ["RG", "G"], ["", ""], ["RX", "GB"], [1, 2], [["R", "G"], ["G", "B"]], 7, "R GB"]
    )
    def test_that_is_none_is_refused(self, given: Any) -> None:
        with pytest.raises(SettingsError, match="needs rows of colours of one length, such as"):
            sl.level_channels(self.RAW, color_filter_array=given)
        with pytest.raises(SettingsError, match="needs rows of colours of one length, such as"):
            sl.level_channels(make_raw_frame(self.RAW).assign_attrs(color_filter_array=given))


class TestNoImage:
    """What is no image is refused in words, by each of the ways in which one may be given."""

    @pytest.mark.parametrize(
        ("image", "reason"),
        [
            (np.zeros((0, 5)), r"at least one pixel, this one none: \(0, 5\)"),
            (np.zeros((5, 0), np.uint16), "at least one pixel"),
            (np.float32(1), "two dimensions .*, this one 0"),
            (np.zeros(5), "two dimensions .*, this one 1"),
            (np.zeros((2, 3, 4)), r"two dimensions \(y, x\), this one 3"),
            (np.ones((9, 9), complex), "real numbers, this one of complex128"),
            (np.full((9, 9), "a"), "real numbers, this one of <U1"),
            (np.full((9, 9), None), "real numbers, this one of object"),
        ],
        ids=lambda given: "" if isinstance(given, str) else f"{given.dtype}{given.shape}",
    )
    def test_of_any_kind(self, image: np.ndarray, reason: str) -> None:
        dims = ("y", "x", "z")[: image.ndim]
        array = xr.DataArray(image, dims=dims)
        frame = xr.Dataset({"sci": array, "raw": array}, attrs={"color_filter_array": RGGB})
        # NDData itself refuses objects.
        kinds = [image, array, array.chunk(), array.chunk().data, frame, frame.chunk()]
        for given in kinds if image.dtype == object else [*kinds, NDData(image)]:
            with pytest.raises(ShapeError, match=reason):
                sl.level_rows(given)
            pattern = {} if isinstance(given, xr.Dataset) else {"color_filter_array": RGGB}
            with pytest.raises(ShapeError, match=reason):
                sl.level_channels(given, **pattern)

    def test_ragged(self) -> None:
        with pytest.raises(ShapeError, match="all its rows one length"):
            sl.level_rows([[1, 2], [3]])

    def test_other_dimensions(self) -> None:
        with pytest.raises(ShapeError, match=r"dimensions \('x', 'y'\); they must be \('y', 'x'\)"):
            sl.level_rows(make_frame(make_image().image).transpose("x", "y"))


@pytest.mark.parametrize("given", ["best", sl.Channels(), {"box_size": 3}])
def test_a_recipe_is_one_of_its_job(given: object) -> None:
    with pytest.raises(SettingsError, match=r"needs Rows\(\) or Rows.preset\('best'\)"):
        sl.level_rows(make_frame(make_image().image), given)
    wrong = sl.Rows() if isinstance(given, sl.Channels) else given
    with pytest.raises(SettingsError, match=r"needs Channels\(\) or Channels.preset\('best'\)"):
        sl.level_channels(make_mosaic((60, 60)), wrong, color_filter_array=RGGB)


def test_an_unknown_option_of_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown option 'overwite'; known: layout, keep, overwrite, "):
        sl.run(tmp_path, tmp_path / "out", overwite=True)


def test_export_takes_where_to_run(tmp_path: Path, client: Client) -> None:
    output = tmp_path / "out"
    sl.run(write_exposure(tmp_path / "a.fits"), output, client=client)
    written, before = output / "a_rowbgsub.fits", image_of(output / "a_rowbgsub.fits")
    written.unlink()
    assert [record.name for record in sl.export(output, client=client).done] == ["a"]
    np.testing.assert_array_equal(image_of(written), before)
    with pytest.raises(ClusterError, match="unknown cluster 'foo'"):
        sl.export(output, cluster="foo")
