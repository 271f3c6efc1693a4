"""A job that skylevel does not know, from the command line to FITS, with what its exposures know together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits

import toy_job
from programs import chunks_of, finish, measured_in, place_of, skylevel_here, stamps, write_exposures
from skylevel.io.store import ProgramStore
from skylevel.jobs import JOBS
from skylevel.program.plan import make_plan, store_url
from skylevel.program.run import run_partition
from skylevel.program.view import open_program, program_status
from skylevel.recipes import RECIPES

SKIES = (0.4, 0.5, 0.9)


@pytest.fixture
def exposures(tmp_path: Path) -> Path:
    """Three of one detector and filter, whose skies differ, and one of another filter."""
    for i, sky in enumerate(SKIES):
        write_exposures(tmp_path / f"{i}", 1, sky=sky, sources=0, nan_fraction=0.0)
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"{i}" / "e00.fits").rename(tmp_path / "in" / f"e{i}.fits")
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy job is known to these tests alone."""
    monkeypatch.setitem(JOBS, "median", toy_job.MedianJob())
    monkeypatch.setitem(RECIPES, "median", toy_job.Median)


def level_of(path: Path) -> float:
    return float(np.nanmedian(fits.getdata(path)))


def run(exposures: Path, *options: str) -> int:
    """The command line as a user runs it who has imported the job, with real workers, which preload it."""
    code = "import sys, toy_job; from skylevel.cli import main; main()"
    output = exposures.parent / "out"
    command = [sys.executable, "-c", code, "run", exposures, "--output", output, "--recipe", "median", *options]
    preload = json.dumps(["toy_job"])
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "DASK_DISTRIBUTED__WORKER__PRELOAD": preload}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return int(finish(subprocess.Popen(list(map(str, command)), env=env, **pipes)).returncode)


@pytest.mark.slow
def test_on_real_workers(exposures: Path) -> None:
    assert run(exposures, "--workers", "2") == 0
    out = exposures.parent / "out"
    assert sorted(path.name for path in out.glob("*.fits")) == [f"e{i}_median.fits" for i in range(3)]
    assert all(abs(level_of(path)) < 0.02 for path in out.glob("*.fits"))
    assert fits.getheader(out / "e0_median.fits")["SKYRECIP"] == "median"


@pytest.mark.slow
def test_combined_on_real_workers(exposures: Path) -> None:
    assert run(exposures, "--workers", "2", "--set", "together=true") == 0
    assert_combined(exposures.parent / "out", SKIES)


def test_each_alone(exposures: Path) -> None:
    out = exposures.parent / "out"
    assert skylevel_here("run", exposures, "--output", out, "--partition", "1/1", "--recipe", "median") == 0
    assert measured_in(out) == ["e0", "e1", "e2"]
    assert all(abs(level_of(path)) < 0.02 for path in out.glob("*.fits"))
    assert open_program(out)["NRCA1/F200W"]["row_median"].shape == (3, 160)


def assert_combined(out: Path, skies: tuple[float, ...]) -> None:
    """Every exposure lost the mean of all skies, and nothing is left to do."""
    expected = np.array(skies) - np.mean(skies)
    found = [level_of(out / f"e{i}_median.fits") for i in range(len(skies))]
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert {state.state for state in program_status(out)} == {"done"}


class TestCombined:
    """One that joins later makes its group's outputs stale."""

    def run(self, exposures: Path, *options: str) -> int:
        out = (exposures if exposures.is_dir() else exposures.parent).parent / "out"
        together = ("--recipe", "median", "--set", "together=true")
        return skylevel_here("run", exposures, "--output", out, "--partition", "1/1", *together, *options)

    def test_all_at_once(self, exposures: Path) -> None:
        assert self.run(exposures) == 0
        out = exposures.parent / "out"
        assert_combined(out, SKIES)
        store, node = ProgramStore(store_url(out)), place_of(out, "e0").node
        groups = [path for path in Path(store.url, node, "groups").iterdir() if path.is_dir()]
        assert len(groups) == 1
        assert int(store.read_group(node, groups[0].name)[1]["n"]) == 3
        # Any client sees it.
        tree = xr.open_datatree(store.url, engine="zarr")
        assert int(tree[f"{node}/groups/{groups[0].name}"]["n"]) == 3

    def test_one_joins_later(self, exposures: Path) -> None:
        last = (exposures / "e2.fits").rename(exposures.parent / "e2.fits")
        assert self.run(exposures) == 0
        out = exposures.parent / "out"
        assert_combined(out, SKIES[:2])
        last.rename(exposures / "e2.fits")
        measured = {name: place_of(out, name) for name in ("e0", "e1")}
        assert self.run(exposures) == 0
        assert {name: place_of(out, name) for name in measured} == measured
        assert_combined(out, SKIES)

    def test_one_alone_of_those_that_are_done(self, exposures: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert self.run(exposures) == 0
        out = exposures.parent / "out"
        before, node = stamps(out), place_of(out, "e0").node
        assert self.run(exposures / "e0.fits", "--verify") == 0
        assert "1 done already" in capfd.readouterr().err
        assert {name for name, stamp in stamps(out).items() if before.get(name) != stamp} <= {"skylevel.log"}
        assert_combined(out, SKIES)
        assert open_program(out)[node.rpartition("/")[0]]["date_obs"].values.tolist() == ["2024-01-01T00:00:00"] * 3

    def test_one_joins_by_its_own_name(self, exposures: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """It is combined with those that are measured; theirs are left, and the next run of all writes them."""
        last = (exposures / "e2.fits").rename(exposures.parent / "e2.fits")
        assert self.run(exposures) == 0
        out = exposures.parent / "out"
        written = {name: stamp for name, stamp in stamps(out).items() if name.endswith(".fits")}
        last.rename(exposures / "e2.fits")
        capfd.readouterr()
        assert self.run(exposures / "e2.fits") == 0
        assert "2 exposures of earlier runs left" in capfd.readouterr().err
        assert {name: stamps(out)[name] for name in written} == written
        assert level_of(out / "e2_median.fits") == pytest.approx(SKIES[2] - np.mean(SKIES), abs=0.03)
        assert {state.name: state.state for state in program_status(out)} == {"e0": "left", "e1": "left", "e2": "done"}
        assert self.run(exposures) == 0
        assert_combined(out, SKIES)

    def test_shares_that_add_to_what_is_done(self, exposures: Path) -> None:
        first = exposures.parent / "first"
        first.mkdir()
        (exposures / "e0.fits").rename(first / "e0.fits")
        assert self.run(first) == 0
        out = str(exposures.parent / "out")
        plan = make_plan([str(exposures)], out, recipe=toy_job.Median(together=True))
        assert [run_partition(plan, out, (share, 2)).failed for share in (1, 2)] == [{}, {}]
        assert {state.name: state.state for state in program_status(out)} == {"e0": "left", "e1": "done", "e2": "done"}
        assert level_of(Path(out, "e2_median.fits")) == pytest.approx(SKIES[2] - np.mean(SKIES), abs=0.03)
        assert self.run(first) == 0
        assert_combined(Path(out), SKIES)

    def test_a_damaged_member_is_measured_anew(self, exposures: Path) -> None:
        last = (exposures / "e2.fits").rename(exposures.parent / "e2.fits")
        assert self.run(exposures) == 0
        out = exposures.parent / "out"
        damaged = chunks_of(out, "e1")["row_median"]
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        last.rename(exposures / "e2.fits")
        assert self.run(exposures) == 0
        assert_combined(out, SKIES)

    def test_a_damaged_member_whose_input_is_gone_is_done_without(self, exposures: Path) -> None:
        last = (exposures / "e2.fits").rename(exposures.parent / "e2.fits")
        assert self.run(exposures) == 0
        out = exposures.parent / "out"
        damaged = chunks_of(out, "e1")["row_median"]
        damaged.write_bytes(bytes(damaged.stat().st_size))
        (exposures / "e1.fits").unlink()
        last.rename(exposures / "e2.fits")
        assert self.run(exposures / "e2.fits") == 1
        assert level_of(out / "e2_median.fits") == pytest.approx(SKIES[2] - np.mean(SKIES[::2]), abs=0.03)
        assert self.run(exposures) == 0
        assert {state.name: state.state for state in program_status(out)} == {"e0": "done", "e2": "done"}

    def test_what_other_settings_combined_is_not_shown(self, exposures: Path) -> None:
        assert self.run(exposures) == 0
        out = exposures.parent / "out"
        assert len(open_program(out)["NRCA1/F200W/groups"].children) == 1
        assert self.run(exposures, "--set", "together=false") == 0
        assert "groups" not in open_program(out)["NRCA1/F200W"].children

    def test_again_does_nothing(self, exposures: Path) -> None:
        assert self.run(exposures) == 0
        out = exposures.parent / "out"
        before = {path: path.stat().st_mtime_ns for path in out.glob("*.fits")}
        assert self.run(exposures) == 0
        assert {path: path.stat().st_mtime_ns for path in out.glob("*.fits")} == before

    def test_a_lost_output_is_written_again(self, exposures: Path) -> None:
        assert self.run(exposures) == 0
        out = exposures.parent / "out"
        (out / "e1_median.fits").unlink()
        assert self.run(exposures) == 0
        assert_combined(out, SKIES)

    def test_one_that_cannot_be_read_is_left_out(self, exposures: Path) -> None:
        (exposures / "e9.fits").write_bytes((exposures / "e0.fits").read_bytes()[:5000])
        assert self.run(exposures) == 1
        assert (exposures.parent / "out" / "e2_median.fits").exists()

    def test_over_the_shares_of_a_job_array(self, exposures: Path) -> None:
        out = str(exposures.parent / "out")
        plan = make_plan([str(exposures)], out, recipe=toy_job.Median(together=True))
        first = run_partition(plan, out, (1, 2))
        assert not list(Path(out).glob("*.fits"))
        second = run_partition(plan, out, (2, 2))
        assert (first.failed, second.failed) == ({}, {})
        assert_combined(Path(out), SKIES)
