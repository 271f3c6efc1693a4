"""The row job's presets from files to FITS: what exposures know alone and together, and what tells of it."""

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from programs import image_of, pixels_of, place_of, record_of, skylevel, skylevel_here, write_exposure
from scenes import make_image, real_file
from skylevel import Rows, level_rows, open_frame
from skylevel.errors import NoBackgroundError, SettingsError
from skylevel.io.masks import read_mask
from skylevel.io.store import ProgramStore
from skylevel.jobs import JOBS, Facts
from skylevel.jobs.rows import _time_span
from skylevel.level.streams import combine_streams
from skylevel.program.export import export
from skylevel.program.places import settle
from skylevel.program.plan import make_plan, store_url
from skylevel.program.view import open_program, program_status
from skylevel.report import write_report

pytestmark = pytest.mark.packages

SHAPE = (512, 512)
CARDS = {"NOUTPUTS": 1, "SLOWAXIS": 2, "SUBARRAY": "SUB512", "SUBSTRT1": 1, "SUBSTRT2": 1}


def write(folder: Path, name: str, seed: int, **settings) -> Path:
    cards = CARDS | settings.pop("cards", {})
    return write_exposure(folder / f"{name}.fits", seed, shape=SHAPE, border=4, cards=cards, **settings)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Four exposures that share a sky, one whose sky is another, and one of another filter."""
    for i in range(4):
        write(tmp_path / "in", f"e{i}", i)
    write(tmp_path / "in", "other", 7, gradient=0.5)
    write(tmp_path / "in", "single", 8, cards={"FILTER": "F444W"})
    return tmp_path / "in"


def run(inputs: Path, preset: str, *options: object) -> Path:
    output = inputs.parent / preset
    assert skylevel_here("run", inputs, "--output", output, "--preset", preset, "--partition", "1/1", *options) == 0
    return output


def stripe_error(output: Path, name: str, seed: int, **settings) -> float:
    """Rms of what is left of the stripes, a constant removed, over that of the stripes."""
    scene = make_image(SHAPE, seed=seed, border=4, **settings)
    rest = image_of(output / f"{name}_rowbgsub.fits") - (scene.image - scene.stripes)
    rows = np.nanmedian(rest[4:-4, 4:-4], axis=1)
    return float((rows - rows.mean()).std() / scene.stripes[:, 0].std())


def group_of(output: Path, name: str) -> xr.Dataset:
    store, node = ProgramStore(store_url(output)), place_of(output, name).node
    groups = [path.name for path in Path(store.url, node, "groups").iterdir() if path.is_dir()]
    assert len(groups) == 1
    return store.read_group(node, groups[0])[1]


def test_best_takes_the_stripes_and_keeps_the_sky(program: Path) -> None:
    output = run(program, "best")
    errors = [stripe_error(output, f"e{i}", i) for i in range(4)]
    assert np.mean(errors) < 0.5, errors
    levelled = image_of(output / "e0_rowbgsub.fits")
    assert np.nanmedian(levelled) == pytest.approx(np.nanmedian(make_image(SHAPE, seed=0).image), abs=0.01)
    header = fits.getheader(output / "e0_rowbgsub.fits")
    assert any("method=streams" in line.replace("\n", "") for line in ["".join(map(str, header["HISTORY"]))])


def test_a_group_shares_its_sky_and_one_that_disagrees_is_left_to_itself(program: Path) -> None:
    alone, together = run(program, "best"), run(program, "program")
    errors = np.array([[stripe_error(out, f"e{i}", i) for i in range(4)] for out in (alone, together)])
    assert errors[1].mean() < errors[0].mean()
    before, after = pixels_of(alone), pixels_of(together)
    same = [name for name in before if before[name] == after[name]]
    assert sorted(same) == ["other_rowbgsub.fits", "single_rowbgsub.fits"]
    sky = group_of(together, "e0")
    np.testing.assert_array_equal(sky["agrees"], [True] * 4 + [False])
    assert list(sky["member"].values) == ["e0", "e1", "e2", "e3", "other"]
    assert sky["reference"].attrs["units"] == "MJy/sr"
    assert all("long_name" in sky[name].attrs for name in sky.data_vars)
    log = (together / "skylevel.log").read_text()
    assert "combined 5 exposures: 4 share a sky" in log
    assert "left to itself: other" in log


def test_switching_to_the_group_measures_nothing_again(program: Path) -> None:
    output = run(program, "best")
    measured = {name: record_of(output, name)["checksums"] for name in ("e0", "other")}
    stamps = {path: path.stat().st_mtime_ns for path in output.glob("program.zarr/**/cell/*")}
    command = ("run", program, "--output", output, "--preset", "program", "--partition", "1/1")
    assert skylevel_here(*command) == 0
    assert {name: record_of(output, name)["checksums"] for name in measured} == measured
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert group_of(output, "e0")["agrees"].sum() == 4


@pytest.mark.parametrize("scale", [0.0, 1e8, 1e-8])
def test_an_odd_member_is_left_to_itself_and_spoils_no_other(program: Path, scale: float) -> None:
    expected = pixels_of(run(program, "program"))
    odd = write(program, "zz", 9)
    with fits.open(odd, mode="update") as hdus:
        hdus["SCI"].data *= np.float32(scale)
    output = program.parent / "with the odd one"
    command = ("run", program, "--output", output, "--preset", "program", "--partition", "1/1")
    assert skylevel_here(*command) == 0
    found = pixels_of(output)
    assert {name: found[name] for name in expected} == expected
    assert "left to itself: other, zz" in (output / "skylevel.log").read_text()


def test_a_group_that_cannot_be_combined_fails_alone(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(program, "single2", 9, cards={"FILTER": "F444W"})

    def combine(members: xr.Dataset, recipe: Rows) -> xr.Dataset:
        if "e0" in members["exposure"].values:
            raise np.linalg.LinAlgError("Singular matrix")
        return combine_streams(members, recipe)

    monkeypatch.setattr("skylevel.jobs.rows.combine_streams", combine)
    output = program.parent / "out"
    command = ("run", program, "--output", output, "--preset", "program", "--partition", "1/1")
    assert skylevel_here(*command) == 1
    states = {state.name: (state.state, state.reason) for state in program_status(output)}
    assert [name for name, (state, _) in states.items() if state == "done"] == ["single", "single2"]
    assert all("cannot be combined: Singular matrix" in states[name][1] for name in ("e0", "e3", "other"))
    monkeypatch.undo()
    assert skylevel_here(*command) == 0


def test_a_group_is_exported_though_a_member_was_never_measured(program: Path, client: Client) -> None:
    """As one is that a run was interrupted before."""
    output = run(program, "program")
    expected = pixels_of(output)
    write(program, "late", 9)
    settle(make_plan([str(program)], str(output), recipe=Rows.preset("program")), ProgramStore(store_url(output)))
    for path in output.glob("*.fits"):
        path.unlink()
    result = export(output, client=client)
    assert list(result.failed) == ["late"]
    assert pixels_of(output) == expected


def test_one_that_joins_later_makes_the_group_new(program: Path) -> None:
    late = program.parent / "late.fits"
    (program / "e3.fits").rename(late)
    output = run(program, "program")
    first = pixels_of(output)
    late.rename(program / "e3.fits")
    assert run(program, "program") == output
    again = pixels_of(output)
    assert first["e0_rowbgsub.fits"] != again["e0_rowbgsub.fits"]
    assert first["single_rowbgsub.fits"] == again["single_rowbgsub.fits"]
    assert group_of(output, "e0").sizes["member"] == 5
    assert {state.state for state in program_status(output)} == {"done"}


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bits(program: Path) -> None:
    here = run(program, "program")
    outputs = [here.parent / f"workers{n}" for n in (1, 2)]
    for n, output in enumerate(outputs, 1):
        assert skylevel("run", program, "--output", output, "--preset", "program", "--workers", n).returncode == 0
    assert pixels_of(here) == pixels_of(outputs[0]) == pixels_of(outputs[1])


def test_the_store_says_what_everything_is(program: Path) -> None:
    output = run(program, "program")
    node = open_program(output)["NRCA1/F200W"].to_dataset()
    assert node["row_level"].dims == ("exposure", "y", "amplifier")
    assert node["misfit"].dims == ("exposure",)
    assert node["sky"].dims == ("exposure", "term")
    for name in ("row_level", "cell", "weight", "coarse_cell", "node", "background"):
        assert node[name].attrs["long_name"], name
    assert record_of(output, "e0")["wcs"] is not None
    metrics = record_of(output, "e0")["metrics"]
    assert metrics["believed"] is True
    assert metrics["stripes_after"] < metrics["stripes_before"]
    assert metrics["source_flux_after"] == pytest.approx(metrics["source_flux"], rel=0.05)
    # Any client sees the group beside its exposures, as open_program shows it.
    for tree in (xr.open_datatree(store_url(output), engine="zarr"), open_program(output)):
        shared = [tree[path] for path in tree.groups if "groups/" in path and "sky_shape" in tree[path]]
        assert [group["agrees"].values.sum() for group in shared if group.sizes["member"] == 5] == [4]
        (group,) = [group for group in shared if group.sizes["member"] == 5]
        assert group["shared_sky"].dims == ("sky_y", "sky_x")
        assert float(group["shared_sky"].mean()) == pytest.approx(float(group["reference"]), rel=0.01)
    # The report draws it, and not its coefficients.
    page = Path(write_report(output)).read_text(encoding="utf-8")
    assert re.search(r'aria-label="the shared sky: from \S+ to \S+ MJy/sr"', page)
    assert "Legendre coefficients" not in page


@pytest.mark.parametrize("chunks", [{"y": 100}, {"y": 77, "x": 300}, {"x": 64}])
@pytest.mark.parametrize("fast_axis", [1, 2])
def test_chunks_do_not_matter(chunks: dict[str, int], fast_axis: int) -> None:
    frame = frame_of(make_image((300, 340), seed=3).image, fast_axis=fast_axis)
    whole = level_rows(frame, Rows.preset("best"))
    lazy = level_rows(frame.chunk(chunks), Rows.preset("best"))
    assert all(v.chunks is not None for v in lazy.data_vars.values())
    xr.testing.assert_identical(lazy.compute(), whole)


def frame_of(image: np.ndarray, flags: np.ndarray | None = None, **attrs) -> xr.Dataset:
    dq = np.zeros(image.shape, np.uint32) if flags is None else flags
    planes = {"sci": (("y", "x"), image, {"units": "MJy/sr"}), "dq": (("y", "x"), dq)}
    return xr.Dataset(planes, attrs={"n_outputs": 1, "unit": "MJy/sr", **attrs})


def test_vertical_stripes_are_horizontal_ones_turned() -> None:
    image = make_image((320, 300), seed=4).image
    flat = level_rows(frame_of(image), Rows.preset("best"))
    turned = level_rows(frame_of(np.ascontiguousarray(image.T), fast_axis=2), Rows.preset("best"))
    assert turned["row_level"].dims == ("x", "amplifier")
    np.testing.assert_array_equal(turned["sci"].values.T, flat["sci"].values)
    np.testing.assert_array_equal(turned["background"].values.T, flat["background"].values)
    np.testing.assert_array_equal(turned["source_mask"].values.T, flat["source_mask"].values)


@pytest.mark.parametrize("method", ["median", "streams"])
def test_flagged_pixels_do_not_count(method: str) -> None:
    image = make_image((256, 256), seed=5, nan_fraction=0.0).image
    flags = (np.random.default_rng(1).random(image.shape) < 0.1).astype(np.uint32)
    spoilt = np.where(flags, image + 1, image).astype(np.float32)
    recipe = Rows(method=method, dq_flags=1)
    clean, found = (level_rows(frame_of(i, flags), recipe)["row_level"] for i in (image, spoilt))
    np.testing.assert_array_equal(found, clean)
    other = level_rows(frame_of(spoilt, flags), Rows(method=method))["row_level"]
    assert not np.array_equal(other, clean)


def test_every_setting_of_streams_decides_something() -> None:
    image = make_image((512, 512), seed=6, galaxy=1.0).image
    reference = level_rows(frame_of(image), Rows(method="streams"))
    changes = {
        "sky_degree": 1, "sky_steepness": 0.1, "source_threshold": 6.0, "large_source_threshold": 20.0,
        "large_source_spacing": 256, "noise_exponent": 1.6, "noise_exponent_rms": 0.01, "stripe_gate": 1e4,
        "misfit_limit": 0.01, "sigma_clip": 5.0,
    }  # fmt: skip
    for name, value in changes.items():
        beside = {"noise_exponent": 1.6} if name == "noise_exponent_rms" else {}
        levels = level_rows(frame_of(image), Rows(method="streams", **{name: value}, **beside))["row_level"]
        assert not np.array_equal(levels, reference["row_level"]), name


def test_where_the_model_is_not_believed_the_log_says_so() -> None:
    image = make_image(SHAPE, seed=1).image
    recipe = Rows(method="streams", misfit_limit=0.01)
    estimate = level_rows(frame_of(image), recipe)
    assert not estimate["believed"]
    assert "only what changes quickly" in JOBS["rows"].finding(estimate, recipe)


def test_a_mosaic_is_warned_about_and_never_combined(tmp_path: Path) -> None:
    for k in range(2):
        write(tmp_path / "in", f"jw01288-o001_t{k:03d}_nircam_x", k)
    output = run(tmp_path / "in", "program")
    log = (output / "skylevel.log").read_text()
    assert "jw01288-o001_t000_nircam_x: read 512 x 512 pixels" in log
    assert "2 exposures, jw01288-o001_t000_nircam_x for one: the rows of a resampled image" in log
    assert "combined" not in log


def test_the_default_says_when_another_preset_serves_better(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(program, "notebook")
    assert "--preset best" in capsys.readouterr().out
    run(program, "best")
    assert "--preset best" not in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
def test_a_date_far_off_has_a_time_span() -> None:
    assert [_time_span(date, 10.0) for date in ("9999-01-01", "nonsense", "")] == ["10d297311", "undated", "undated"]


def test_time_spans_part_groups(tmp_path: Path) -> None:
    for k, date in enumerate(("2024-01-01T00:00:00", "2024-01-01T06:00:00", "2024-06-01T00:00:00", "no date")):
        write(tmp_path / "in", f"e{k}", k, cards={"DATE-BEG": date})
    output = run(tmp_path / "in", "program")
    node = Path(store_url(output), place_of(output, "e0").node, "groups")
    assert len([path for path in node.iterdir() if path.is_dir()]) == 3
    # Groups of some of a node's exposures stand beside them.
    assert len([path for path in open_program(output).groups if "/groups/" in path]) == 3


def test_columns_are_taken_where_they_carry_power() -> None:
    image = make_image((512, 400), seed=12, nan_fraction=0.0).image
    columns = (0.006 * np.random.default_rng(2).normal(size=400)).astype(np.float32)
    recipe = Rows(method="streams", columns=True)
    plain, striped = (level_rows(frame_of(i), recipe) for i in (image, image + columns))
    assert not plain["column_level"].any()
    rest = striped["column_level"].values - columns
    assert (rest - np.median(rest)).std() < 0.5 * columns.std()
    np.testing.assert_array_equal(
        striped["sci"].values, level_rows(frame_of(image + columns).chunk(y=90), recipe)["sci"].compute().values
    )
    turned = level_rows(frame_of(np.ascontiguousarray((image + columns).T), fast_axis=2), recipe)
    np.testing.assert_array_equal(turned["sci"].values.T, striped["sci"].values)


@pytest.mark.parametrize("name", ["jw01185002001_01101_00001-seg006", "jw01366002001_01101_00001-seg004"])
def test_real_rows_are_level_and_sources_keep_their_light(name: str) -> None:
    (path,) = real_file("nircam_tso").glob(f"{name}*.fits")
    frame = open_frame(path).load()
    metrics = JOBS["rows"].metrics(level_rows(frame, Rows.preset("best")))
    assert metrics["scatter_after"] <= 1.3
    assert metrics["stripes_after"] < 0.7 * metrics["stripes_before"]
    assert metrics["source_flux_after"] == pytest.approx(metrics["source_flux"], rel=0.005)


def test_a_real_mosaic_of_a_nebula_is_not_damaged() -> None:
    frame = open_frame(real_file("nircam_i2d/jw01288-o001_t011_nircam_clear-f480m_cropped.fits")).load()
    levelled = level_rows(frame, Rows.preset("best"))["sci"]
    assert float(np.nanstd(levelled - frame["sci"])) < 1e-3 * float(frame["sci"].std())
    facts = Facts("jwst", (635, 930), frame.attrs)
    assert "no detector's rows" in JOBS["rows"].caution(facts)


def test_real_vertical_stripes_and_other_detectors_are_levelled() -> None:
    paths = [*sorted(real_file("niriss_1093").glob("*.fits"))[:2], *real_file("miri").glob("*.fits")]
    for path in paths:
        frame = open_frame(path).load()
        out = level_rows(frame, Rows.preset("best"))
        assert out["row_level"].dims == ("x" if abs(frame.attrs["fast_axis"]) == 2 else "y", "amplifier")
        np.testing.assert_array_equal(np.isnan(out["sci"]), np.isnan(frame["sci"]))


def measured_by_job(frame: xr.Dataset) -> xr.Dataset:
    return JOBS["rows"].estimate(frame, Rows(), None)


def test_amplifiers_are_named_where_there_are_several() -> None:
    stripes = {"stripes_before": 2.0, "stripes_after": 1.0, "scatter_after": 2.0, "stripes_grew": False}
    advice = [JOBS["rows"].advice([stripes | {"n_amplifiers": n}], Rows()) for n in (0, 1, 4)]
    assert advice[:2] == ["", ""]
    assert advice[2].startswith("of 1 exposure the medians left stripes of single amplifiers in 1: try --preset best")
    frames = {name: make_image((512, 2048), seed=1).image for name in ("mosaic", "subarray", "full")}
    cards = {"mosaic": {"resampled": True}, "subarray": {"n_outputs": 1}, "full": {"n_outputs": 4}}
    counted = {n: JOBS["rows"].metrics(measured_by_job(frame_of(i, **cards[n]))) for n, i in frames.items()}
    assert [m["n_amplifiers"] for m in counted.values()] == [0, 1, 4]


def test_rows_that_vary_more_than_before_are_told() -> None:
    """Real exposures of a few rows, crowded by one star: the medians' own noise is more than the stripes were."""
    frames = [open_frame(path).load() for path in sorted(real_file("niriss_1093").glob("*.fits"))]
    estimates = [measured_by_job(frame) for frame in frames]
    metrics = [JOBS["rows"].metrics(estimate) for estimate in estimates]
    grew = [m["stripes_grew"] for m in metrics]
    assert 1 <= sum(grew) < sum(m["stripes_after"] > m["stripes_before"] for m in metrics)
    said = ["more than before" in JOBS["rows"].finding(estimate, Rows()) for estimate in estimates]
    assert said == grew
    advice = JOBS["rows"].advice(metrics, Rows())
    assert f"in {sum(grew)} the rows, or columns, vary more than before: better left as they were" in advice
    assert "amplifiers" not in advice
    # A mosaic has a caution of its own.
    # Boxes enough to tell a gradient of the sky by, these frames have not.
    assert all(np.isnan(m["sky_gradient"]) for m in metrics)
    (mosaic,) = real_file("miri").glob("*.fits")
    of_mosaic = JOBS["rows"].metrics(measured_by_job(open_frame(mosaic).load()))
    assert of_mosaic["stripes_grew"]
    assert JOBS["rows"].advice([of_mosaic], Rows()) == ""


def test_that_stripes_grew_is_no_chance() -> None:
    """Stripes as strong as what the medians of half the columns make of noise: as often more as less after."""
    rng = np.random.default_rng(5)
    half = np.sqrt(np.pi / 2 / 64)
    grew = []
    for _ in range(60):
        image = 100 + rng.normal(size=(128, 128)) + half * rng.normal(size=(128, 1))
        grew.append(JOBS["rows"].metrics(measured_by_job(frame_of(image.astype(np.float32))))["stripes_grew"])
    assert sum(grew) <= 6


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 140)),
    method=st.sampled_from(["median", "streams"]),
    missing=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    header=st.fixed_dictionaries(
        {},
        optional={
            "n_outputs": st.sampled_from([-3, 0, 1, 2, 4, 5, 10**9]),
            "fast_axis": st.sampled_from([-2, -1, 0, 1, 2, 77]),
            "slow_axis": st.integers(-2, 2),
            "substrt1": st.sampled_from([-5, 0, 1, 500, 2048, 10**12]),
            "substrt2": st.sampled_from([-5, 0, 1, 500, 2048, 10**12]),
            "instrument": st.sampled_from(["NIRCAM", "MIRI", "N/A"]),
        },
    ),
)
def test_any_frame_and_header_is_levelled_or_refused(shape, method, missing, header) -> None:
    rng = np.random.default_rng(1)
    image = (0.5 + 0.02 * rng.normal(size=shape)).astype(np.float32)
    image[rng.random(shape) < missing] = np.nan
    try:
        out = level_rows(frame_of(image, **header), Rows(method=method, columns=method == "streams"))
    except NoBackgroundError:
        return
    np.testing.assert_array_equal(np.isnan(out["sci"]), np.isnan(image))
    assert JOBS["rows"].finding(out, Rows(method=method))
    assert JOBS["rows"].metrics(out)


class TestMask:
    """A user's own mask."""

    @pytest.fixture
    def spoilt(self) -> tuple[np.ndarray, np.ndarray]:
        """An image, and the same with light where the mask is."""
        image = make_image((256, 300), seed=9).image
        light = image.copy()
        light[100:140, 20:260] += 0.015
        return image, light

    def masked(self, path: Path, image: np.ndarray) -> np.ndarray:
        return level_rows(frame_of(image), Rows(method="streams", mask=str(path)))["row_level"].values

    def test_fits(self, tmp_path: Path, spoilt: tuple[np.ndarray, np.ndarray]) -> None:
        mask = np.zeros((256, 300), np.uint8)
        mask[100:140, 20:260] = 1
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(mask, name="MASK")]).writeto(tmp_path / "mask.fits")
        clean, found = (self.masked(tmp_path / "mask.fits", image) for image in spoilt)
        np.testing.assert_array_equal(found, clean)
        lazy = level_rows(frame_of(spoilt[1]).chunk(y=100), Rows(method="streams", mask=str(tmp_path / "mask.fits")))
        np.testing.assert_array_equal(lazy["row_level"].values, clean)

    def test_regions(self, tmp_path: Path, spoilt: tuple[np.ndarray, np.ndarray]) -> None:
        pytest.importorskip("regions")
        text = "# Region file format: DS9\nimage\nbox(141,121,250,50,0)\ncircle(9000,9000,3)\n"
        (tmp_path / "mask.reg").write_text(text)
        clean, found = (self.masked(tmp_path / "mask.reg", image) for image in spoilt)
        np.testing.assert_array_equal(found, clean)

    @pytest.mark.parametrize(
        ("text", "n_masked"),
        [
            ("image\ncircle(100,100,50)\n-circle(100,100,20)\n", 6580),
            ("image\n-circle(100,100,20)\ncircle(100,100,50) # color=red\n", 6580),
            ("image\ncircle(100,100,300000)\n", 256 * 300),
            ("image\ncircle(9000,9000,5)\n", 0),
            ("image\npolygon(10.3,10.2,30.3,30.2,30.3,10.2,10.3,30.2)\n", 200),
        ],
    )
    def test_regions_that_are_cut(self, tmp_path: Path, text: str, n_masked: int) -> None:
        pytest.importorskip("regions")
        (tmp_path / "mask.reg").write_text(text)
        assert read_mask(str(tmp_path / "mask.reg"), (256, 300)).sum() == n_masked

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("image\ncircle(1,1,3)\nphysical\ncircle(5,5,3)\n", "line 3, 'physical': .* is not supported"),
            ("nothing of the kind\n", "line 1, 'nothing of the kind': "),
            ("circle(5,5,3)\n", r"line 1, 'circle\(5,5,3\)': A coordinate frame was not found"),
            ("image\n\ncircle(5,5)\n", r"line 3, 'circle\(5,5\)': "),
            ("image\ncircle(5,5,x)\n", r"line 2, 'circle\(5,5,x\)': "),
            ("image\nline(1,1,9,9)\n", "cannot draw <LinePixelRegion.*: it encloses no area"),
            ("image\npolygon(1,1,9,1,4,1)\n", "cannot draw <PolygonPixelRegion.*: it encloses no area"),
            ("image\npoint(1,1)\n", "cannot draw <PointPixelRegion.*: it encloses no area"),
            ("image\n# text(1,1) text={a}\n", "cannot draw <TextPixelRegion.*: it encloses no area"),
            ("image\ncircle(nan,1,1)\n", "cannot draw <CirclePixelRegion"),
            ("image\n-circle(5,5,3)\n", "holds no region to mask"),
            ("# only a comment\n", "holds no region to mask"),
        ],
    )
    def test_regions_that_cannot_be_drawn_are_named(self, tmp_path: Path, text: str, reason: str) -> None:
        pytest.importorskip("regions")
        (tmp_path / "mask.reg").write_text(text)
        with pytest.raises(SettingsError, match=rf"mask\.reg: .*{reason}") as caught:
            read_mask(str(tmp_path / "mask.reg"), (64, 64))
        assert "\n" not in str(caught.value)

    def test_a_damaged_compressed_one_is_named(self, tmp_path: Path) -> None:
        path, mask = tmp_path / "mask.fits", np.random.default_rng(1).integers(0, 9, (64, 64)).astype(np.int16)
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(mask)]).writeto(path)
        content = bytearray(path.read_bytes())
        with fits.open(path, disable_image_compression=True) as hdus:
            start = hdus[1]._data_offset + hdus[1].header["NAXIS1"] * hdus[1].header["NAXIS2"]
        content[start : start + 600] = b"\xff" * 600
        path.write_bytes(content)
        with pytest.raises(SettingsError, match=r"mask\.fits: cannot read the mask"):
            read_mask(str(path), (64, 64))

    def test_another_content_is_another_recipe(self, tmp_path: Path) -> None:
        path = tmp_path / "mask.fits"
        fits.PrimaryHDU(np.zeros((8, 8), np.uint8)).writeto(path)
        before = Rows(mask=str(path))
        assert Rows(**before.to_dict()) == before
        fits.PrimaryHDU(np.ones((8, 8), np.uint8)).writeto(path, overwrite=True)
        assert Rows(mask=str(path)).hash != before.hash
        with pytest.raises(SettingsError, match="changed since"):
            level_rows(frame_of(np.ones((8, 8), np.float32)), before)

    @pytest.mark.parametrize("content", [b"", b"SIMPLE  = nothing", b"x" * 5000])
    def test_what_is_no_mask_is_refused_by_name(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "mask.fits").write_bytes(content)
        with pytest.raises(SettingsError, match=r"mask\.fits"):
            self.masked(tmp_path / "mask.fits", make_image((64, 64)).image)

    def test_one_of_another_size_is_refused(self, tmp_path: Path) -> None:
        fits.PrimaryHDU(np.zeros((8, 8), np.uint8)).writeto(tmp_path / "mask.fits")
        with pytest.raises(SettingsError, match="the mask is"):
            self.masked(tmp_path / "mask.fits", make_image((64, 64)).image)
        with pytest.raises(SettingsError, match="cannot be read"):
            Rows(mask=str(tmp_path / "none.fits"))
