"""What a picture is drawn from: blocks, cells, levels of lines, and their power."""

import base64
import io
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import scenes
import skylevel as sl
from skylevel.jobs import Measured, Writing, job_for
from skylevel.jobs.picture import picture_of
from skylevel.kernels.pattern import ColorPattern
from skylevel.kernels.preview import (
    block_means,
    block_sides,
    cell_means,
    line_levels,
    masked_cells,
    mosaic_means,
    outline,
    power_spectrum,
)

pytestmark = pytest.mark.packages

RNG = np.random.default_rng(1)


def measured(frame: xr.Dataset, recipe: Any = None) -> Measured:
    """A frame with what its job measures of it."""
    job = job_for(frame.attrs["kind"])
    assert job is not None
    recipe = recipe or job.recipe()
    estimate = job.estimate(frame, recipe, None)
    writing = Writing("full", [], [])
    return Measured(job=job, frame=frame, estimate=estimate, recipe=recipe, group=None, writing=writing)


def pixels(picture: dict[str, Any], name: str) -> np.ndarray:
    """An image of a picture."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["images"][name]))))


class TestKernels:
    @pytest.mark.parametrize(
        ("shape", "sides"),
        [((2048, 2048), (11, 11)), ((64, 64), (1, 1)), ((2048, 64), (11, 1)), ((1, 5), (1, 1)), ((999, 999), (5, 5))],
    )
    def test_a_picture_is_small_and_a_strip_stays_wide(self, shape: tuple[int, int], sides: tuple[int, int]) -> None:
        assert block_sides(shape) == sides

    def test_sides_are_whole_periods(self) -> None:
        assert block_sides((4000, 6000), (2, 2)) == (30, 30)
        assert block_sides((30, 30), (6, 6)) == (6, 6)

    def test_means_of_blocks(self) -> None:
        image = RNG.normal(5, 1, (33, 47)).astype(np.float32)
        found = block_means(cell_means(image, width=5), height=4)
        np.testing.assert_allclose(found, image[:32, :45].reshape(8, 4, 9, 5).mean(axis=(1, 3)), rtol=1e-5)

    def test_a_pixel_without_a_value_takes_its_cell_with_it_alone(self) -> None:
        image = np.ones((4, 6), np.float32)
        image[1, 2] = np.nan
        image[:, 5] = np.nan
        np.testing.assert_array_equal(block_means(cell_means(image, width=3), height=4), [[1.0, np.nan]])

    @pytest.mark.parametrize("width", [1, 7, 300])
    def test_cells_with_a_masked_pixel(self, width: int) -> None:
        mask = RNG.random((20, 900)) < 0.005
        count = 900 // width
        expected = mask[:, : count * width].reshape(20, count, width).any(axis=2)
        np.testing.assert_array_equal(masked_cells(mask, width=width), expected)

    def test_a_cell_that_is_masked_all_over_its_256_pixels(self) -> None:
        assert masked_cells(np.ones((1, 256), bool), width=256).all()

    def test_levels_leave_out_sources_and_outliers(self) -> None:
        levels = RNG.normal(0, 1, 50).astype(np.float32)
        cells = levels[:, None] + RNG.normal(0, 0.01, (50, 40)).astype(np.float32)
        masked = np.zeros(cells.shape, bool)
        cells[3, 5], masked[3, 5] = 100.0, True
        cells[7, 9] = 1e6
        cells[9, 1] = np.nan
        masked[11] = True
        found = line_levels(cells, masked)
        assert np.isnan(found[11])
        known = np.arange(50) != 11
        np.testing.assert_allclose(found[known], levels[known], atol=0.02)

    def test_white_noise_has_its_variance_at_every_frequency(self) -> None:
        frequency, power = power_spectrum(RNG.normal(3.0, 0.2, 20000).astype(np.float32))
        assert 0 < frequency[0] < frequency[-1] <= 0.5
        np.testing.assert_allclose(power[frequency > 0.01], 0.04, rtol=0.25)

    def test_a_wave_stands_out_at_its_frequency(self) -> None:
        frequency, power = power_spectrum(np.sin(2 * np.pi * 0.125 * np.arange(2048)).astype(np.float32))
        assert frequency[np.argmax(power)] == pytest.approx(0.125, rel=0.15)

    def test_a_slope_stays_at_low_frequencies(self) -> None:
        frequency, power = power_spectrum(np.linspace(-1, 1, 2048, dtype=np.float32))
        assert power[frequency > 0.1].max() < 1e-6 * power.max()

    @pytest.mark.parametrize("levels", [np.zeros(3), np.full(100, np.nan)])
    def test_too_little_for_a_spectrum(self, levels: np.ndarray) -> None:
        assert power_spectrum(levels.astype(np.float32))[1].size == 0

    @pytest.mark.parametrize("rows", [("RG", "GB"), ("GBGRRG", "BRBGGG", "GGRBBR", "GGBRGR", "RBGGGB", "GRGGBG")])
    def test_colours_of_a_mosaic(self, rows: tuple[str, ...]) -> None:
        pattern = ColorPattern.of(rows)
        colors = pattern.colors_at(np.arange(50), np.arange(70))
        mosaic = np.select([colors == "R", colors == "G"], [100, 200], 300).astype(np.uint16)
        found = mosaic_means(mosaic, pattern, sides=(12, 18))
        np.testing.assert_array_equal(found, np.broadcast_to([[[100]], [[200]], [[300]]], (3, 4, 3)))

    def test_an_outline_hides_nothing_of_what_it_is_around(self) -> None:
        mask = np.zeros((5, 5), bool)
        mask[2, 2] = mask[0, 0] = True
        found = outline(mask)
        assert not (found & mask).any()
        assert found.sum() == 8 + 3 - 1


class TestPictures:
    def test_stripes_are_there_before_and_gone_after(self) -> None:
        picture = picture_of(measured(scenes.make_frame(shape=(400, 410), stripes=0.1)))
        assert picture["scatter"]["after"] < 0.2 * picture["scatter"]["before"]
        before, after, subtracted = (pixels(picture, name).astype(float) for name in ("before", "after", "subtracted"))
        assert before.shape == after.shape == subtracted.shape
        # At one stretch, what is left of the rows' levels is seen as little as it is.
        assert after.mean(axis=1).std() < 0.3 * before.mean(axis=1).std()
        assert np.corrcoef(before.mean(axis=1), subtracted.mean(axis=1))[0, 1] > 0.95

    def test_the_first_row_is_the_lowest(self) -> None:
        frame = scenes.make_frame(shape=(100, 100))
        frame["sci"].data[:20] += 5.0
        assert pixels(picture_of(measured(frame)), "before")[-10:].mean() > 200

    def test_vertical_stripes(self) -> None:
        frame = scenes.make_frame(shape=(240, 200), stripes=0.1)
        turned = xr.Dataset({"sci": (("y", "x"), frame["sci"].values.T.copy())}, attrs=frame.attrs | {"fast_axis": 2})
        picture, same = (picture_of(measured(one)) for one in (turned, frame))
        assert picture["dim"] == "x"
        assert picture["scatter"] == pytest.approx(same["scatter"], rel=0.05)

    def test_a_camera_frame_has_its_channels_backgrounds(self) -> None:
        picture = picture_of(measured(scenes.make_raw_frame(shape=(240, 260))))
        assert [mesh["name"] for mesh in picture["meshes"]] == ["R", "G", "B"]
        assert pixels(picture, "after").shape[2] == 3
        assert "levels" not in picture

    def test_a_frame_in_blocks_has_the_same_pictures_of_fewer_lines(self) -> None:
        frame = scenes.make_frame(shape=(900, 600), stripes=0.1)
        whole, blocks = picture_of(measured(frame)), picture_of(measured(frame.chunk({"y": 250})))
        assert pixels(whole, "before").shape == pixels(blocks, "before").shape
        assert "levels" not in blocks
        assert np.corrcoef(pixels(whole, "before").ravel(), pixels(blocks, "before").ravel())[0, 1] > 0.5

    @given(
        shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
        odd=st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 3e38]),
        share=st.floats(0, 1),
        dtype=st.sampled_from(["float32", "float64"]),
    )
    def test_no_image_is_too_odd(self, shape: tuple[int, int], odd: float, share: float, dtype: str) -> None:
        image = RNG.normal(0.3, 0.1, shape)
        image[RNG.random(shape) < share] = odd
        frame = xr.Dataset({"sci": (("y", "x"), image.astype(dtype))}, attrs={"kind": "jwst"})
        estimate = xr.Dataset({"row_level": (("y",), RNG.normal(0, 1, shape[0]).astype(np.float32))})
        job = job_for("jwst")
        assert job is not None
        about = {"recipe": sl.Rows(), "group": None, "writing": Writing("full", [], [])}
        picture = picture_of(Measured(job=job, frame=frame, estimate=estimate, **about))
        assert pixels(picture, "before").shape == pixels(picture, "after").shape
