"""The command line, run as a user runs it: exit status, one clear line for each error, and what it leaves on disk."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits
from distributed import Client

import skylevel as sl
from programs import (
    chunks_of,
    image_of,
    measured_in,
    pixels_of,
    record_of,
    skylevel,
    skylevel_here,
    stamps,
    write_exposure,
    write_exposures,
    write_raw,
    write_truncated,
)
from scenes import DATA

ANSI = re.compile(r"\x1b\[")


@pytest.fixture(scope="module")
def cluster(client: Client) -> str:
    """The running cluster's address: a command starts none of its own."""
    return str(client.scheduler.address)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two exposures and a raw; read only."""
    folder = tmp_path_factory.mktemp("program")
    write_exposures(folder, 2)
    write_raw(folder / "night.dng")
    return folder


@pytest.fixture(scope="module")
def done(program: Path, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder and the finished process of a first run; the folder is read only."""
    output = tmp_path_factory.mktemp("done") / "out"
    return output, skylevel("run", program, "--output", output, "--cluster", cluster)


@pytest.fixture
def output(done: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the first run's folder, whose index says so."""
    shutil.copytree(done[0], tmp_path / "out")
    index = tmp_path / "out" / "program.zarr" / "plan.json"
    index.write_text(index.read_text().replace(str(done[0]), str(tmp_path / "out")))
    return tmp_path / "out"


def arrays_of(output: Path) -> dict[str, tuple[int, int]]:
    """Time of change and inode of every file of the store but commit records and what is told of all exposures."""
    by_name = {name: chunks_of(output, name) for name in measured_in(output)}
    chunks = [path for files in by_name.values() for kind, path in files.items() if kind != "record"]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in chunks}


def everything(output: Path) -> dict[str, tuple[int, int]]:
    """Stamps of outputs and measurements: all but the index and the log."""
    return {name: stamp for name, stamp in stamps(output).items() if not name.endswith((".json", ".log"))}


@pytest.mark.once
class TestRun:
    def test_all_fine(self, done: tuple[Path, Any]) -> None:
        output, process = done
        assert process.returncode == 0
        assert {path.name for path in output.glob("*.fits")} == {
            "e00_rowbgsub.fits", "e01_rowbgsub.fits", "night.bkg_subtracted.fits"
        }  # fmt: skip
        assert re.search(r"^done +3\s", process.stdout, re.M)
        assert re.search(r"^failed +0\s", process.stdout, re.M)
        assert str(output) in process.stdout
        assert not ANSI.search(process.stdout + process.stderr)

    def test_steps_are_logged_with_their_times(self, done: tuple[Path, Any]) -> None:
        output, process = done
        stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        assert re.search(rf"^{stamp}  e00: read 160 x 200 pixels$", process.stderr, re.M)
        assert re.search(rf"^{stamp}  e00: measured 160 rows; \d+\.\d % of the pixels in sources", process.stderr, re.M)
        assert re.search(rf"^{stamp}  night: wrote {re.escape(str(output))}/night\.bkg_sub", process.stderr, re.M)
        log = (output / "skylevel.log").read_text()
        assert re.search(rf"^{stamp} INFO e00: read 160 x 200 pixels$", log, re.M)

    def test_an_identical_run_does_nothing_and_says_so(self, program: Path, output: Path, cluster: str) -> None:
        before = everything(output)
        process = skylevel("run", program, "--output", output, "--cluster", cluster)
        assert process.returncode == 0
        assert re.search(r"^done +0\s", process.stdout, re.M)
        assert re.search(r"^done before +3\s", process.stdout, re.M)
        assert "3 exposures: 3 done already, to do: nothing" in process.stderr
        assert everything(output) == before

    def test_overwrite_does_it_again(self, program: Path, output: Path, cluster: str) -> None:
        before, pixels = arrays_of(output) | stamps(output), pixels_of(output)
        assert skylevel("run", program, "--output", output, "--cluster", cluster, "--overwrite").returncode == 0
        after = arrays_of(output) | stamps(output)
        again = [name for name in before if name.endswith("fits") or Path(name).is_absolute()]
        assert all(after[name] != before[name] for name in again)
        assert pixels_of(output) == pixels

    def test_some_fail_and_are_named_everything_else_is_done(self, program: Path, tmp_path: Path, cluster: str) -> None:
        shutil.copytree(program, tmp_path / "in")
        write_truncated(tmp_path / "in" / "cut.fits")
        (tmp_path / "in" / "zero.nef").touch()
        process = skylevel("run", tmp_path / "in", "--output", tmp_path / "out", "--cluster", cluster)
        assert process.returncode == 1
        assert re.search(r"^done +3\s", process.stdout, re.M)
        assert re.search(r"^failed +2\s", process.stdout, re.M)
        failed = sorted(line for line in process.stderr.splitlines() if line.startswith("failed: "))
        assert [line.split(": ")[1] for line in failed] == [str(tmp_path / "in" / n) for n in ("cut.fits", "zero.nef")]
        assert "the file is cut short" in failed[0]
        assert "the file is empty" in failed[1]
        assert len(list((tmp_path / "out").glob("*.fits"))) == 3

    def test_quiet_prints_what_failed_and_the_table(self, program: Path, tmp_path: Path, cluster: str) -> None:
        cut = write_truncated(tmp_path / "cut.fits")
        process = skylevel("run", program, cut, "--output", tmp_path / "out", "--cluster", cluster, "--quiet")
        lines = process.stderr.splitlines()
        assert lines
        assert all("cut.fits" in line for line in lines)
        assert re.search(r"^done +3\s", process.stdout, re.M)

    def test_a_relative_output_is_relative_to_the_command(
        self, program: Path, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not to the folder in which the workers were started."""
        monkeypatch.chdir(tmp_path)
        assert skylevel("run", program, "--cluster", cluster).returncode == 0
        assert measured_in(tmp_path / "skylevel-output") == ["e00", "e01", "night"]
        assert skylevel("status").stdout.startswith("skylevel-output: 3 done, 0 failed, 0 left")

    def test_long_paths_are_printed_whole(self, program: Path, tmp_path: Path) -> None:
        output = tmp_path / ("a-long-name-" * 8) / ("another-" * 8)
        process = skylevel("run", program / "e00.fits", "--output", output, "--partition", "1/1")
        assert str(output / "program.zarr") in process.stdout
        assert str(output / "e00_rowbgsub.fits") in process.stderr

    def test_two_shares_are_one_run(self, program: Path, done: tuple[Path, Any], tmp_path: Path) -> None:
        for share in ("1/2", "2/2"):
            assert skylevel_here("run", program, "--output", tmp_path / "out", "--partition", share) == 0
        assert pixels_of(tmp_path / "out") == pixels_of(done[0])

    def test_dry_run_prints_the_plan_and_writes_nothing(self, program: Path, output: Path, tmp_path: Path) -> None:
        process = skylevel("run", program, "--output", tmp_path / "new", "--dry-run")
        assert process.returncode == 0
        assert not (tmp_path / "new").exists()
        for name, recipe in (("e00", "rows"), ("e01", "rows"), ("night", "channels")):
            planned = rf"^{name} +{recipe} +0\.\d MB +measure, export$"
            assert re.search(planned, process.stdout, re.M)
        assert re.search(rf"^into +{tmp_path}/new$", process.stdout, re.M)
        (output / "e01_rowbgsub.fits").unlink()
        before = stamps(output)
        process = skylevel("run", program, "--output", output, "--dry-run")
        todo = {line.split()[0]: line.split()[4] for line in process.stdout.splitlines()[1:4]}
        assert todo == {"e00": "-", "e01": "export", "night": "-"}
        assert stamps(output) == before


class TestOptions:
    def test_set_reaches_a_factor_of_one_colour(self, program: Path, done: tuple[Path, Any], tmp_path: Path) -> None:
        run = ("run", program / "night.dng", "--output", tmp_path, "--partition", "1/1")
        assert skylevel_here(*run, "--set", "norms.R=1") == 0
        red, usual = (image_of(folder / "night.bkg_subtracted.fits") for folder in (tmp_path, done[0]))
        assert abs(usual[::2, ::2] / red[::2, ::2] - 1.34).max() < 1e-5
        assert (usual[1::2] == red[1::2]).all()

    def test_settings_apply_where_they_exist(self, program: Path, tmp_path: Path) -> None:
        settings = ("--set", "rows.box_size=40", "--set", "threshold=3", "--set", "channels.box_size=60")
        assert skylevel_here("run", program, "--output", tmp_path, "--partition", "1/1", *settings) == 0
        stored = {name: record_of(tmp_path, name) for name in ("e00", "night")}
        assert stored["e00"]["recipe_hash"] == sl.Rows(box_size=40, threshold=3).hash
        assert stored["night"]["recipe_hash"] == sl.Channels(box_size=60).hash

    def test_layout_primary(self, program: Path, done: tuple[Path, Any], tmp_path: Path) -> None:
        run = ("run", program, "--output", tmp_path, "--partition", "1/1", "--layout", "primary")
        assert skylevel_here(*run) == 0
        for path in tmp_path.glob("*.fits"):
            with fits.open(path) as hdus:
                assert len(hdus) == 1
        assert pixels_of(tmp_path) == pixels_of(done[0])

    def test_keep_writes_the_products_of_the_notebook(self, program: Path, tmp_path: Path) -> None:
        run = ("run", program, "--output", tmp_path, "--partition", "1/1")
        assert skylevel_here(*run, "--keep", "segmentation, masked,background") == 0
        assert {path.name for path in tmp_path.glob("*.fits")} == {
            "e00_rowbgsub.fits", "e00_masked.fits", "e00_background.fits", "detections_segm_e00.fits",
            "e01_rowbgsub.fits", "e01_masked.fits", "e01_background.fits", "detections_segm_e01.fits",
            "night.bkg_subtracted.fits", "night.bkg_background.fits",
        }  # fmt: skip

    @pytest.mark.parametrize(("recipe", "expected"), [("rows", sl.Rows()), ("channels", sl.Channels())])
    def test_the_printed_settings_are_the_recipe(
        self, program: Path, tmp_path: Path, recipe: str, expected: sl.Rows | sl.Channels
    ) -> None:
        process = skylevel("config", recipe)
        assert process.returncode == 0
        (tmp_path / "mine.toml").write_text(process.stdout)
        source = program / ("e00.fits" if recipe == "rows" else "night.dng")
        run = ("run", source, "--output", tmp_path / "out", "--partition", "1/1", "--config", tmp_path / "mine.toml")
        assert skylevel_here(*run) == 0
        assert record_of(tmp_path / "out", source.stem)["recipe_hash"] == expected.hash
        edited = process.stdout.replace("box_size = ", "box_size = 1")
        (tmp_path / "mine.toml").write_text(edited)
        assert skylevel_here(*run, "--set", "exclude_percentile=100") == 0
        changed = expected.replace({"box_size": int(f"1{expected.box_size}"), "exclude_percentile": 100})
        assert record_of(tmp_path / "out", source.stem)["recipe_hash"] == changed.hash

    def test_a_preset_by_name(self, program: Path, tmp_path: Path) -> None:
        run = ("run", program, "--output", tmp_path, "--partition", "1/1")
        assert skylevel_here(*run, "--preset", "planes") == 0
        assert record_of(tmp_path, "night")["settings"]["method"] == "planes"
        assert record_of(tmp_path, "e00")["recipe_hash"] == sl.Rows().hash
        assert 'method = "planes"' in skylevel("config", "channels", "--preset", "planes").stdout


class TestWrongCommands:
    """Status 2, one clear line, nothing run and nothing written."""

    @pytest.mark.packages
    @pytest.mark.parametrize(
        ("arguments", "cause"),
        [
            (["--set", "boxsize=3"], "unknown setting 'boxsize' (did you mean 'box_size'?)"),
            (["--set", "box_size"], "--set box_size: needs FIELD=VALUE"),
            (["--set", "box_size=wide"], "box_size = 'wide': needs a number"),
            (["--set", "box_size=-1"], "needs a value of at least 1"),
            (["--set", "norms.R=zero"], "norms.R = 'zero': needs a number"),
            (["--set", "threshold.R=1"], "threshold is a single value"),
            (["--preset", "bset"], "(did you mean 'best'?)"),
            (["--config", "gone.toml"], "gone.toml: cannot read the settings"),
            (["--config", "bad.toml"], "bad.toml: cannot read the settings"),
            (["--config", "table.toml"], "unknown recipe 'row'; known: rows, channels (did you mean 'rows'?)"),
            (["--config", "loose.toml"], "'box_size' stands outside a table"),
            (["--config", "value.toml"], "rows.box_size = 'big': needs a number"),
            (["--keep", "masks"], "unknown product to keep 'masks'; known: segmentation, masked, background"),
            (["--layout", "flat"], "'flat' is not one of 'full', 'primary'"),
            (["--recipe", "columns"], "'columns' is not one of"),
            (["--workers", "0"], "0 is not in the range"),
            (["--nonsense"], "No such option"),
            (["nowhere.fits"], "nowhere.fits: no such file, and nothing matches it"),
            (["other/e00.fits"], "would write the same outputs"),
            (["--partition", "3"], "--partition 3: needs I/N"),
            (["--partition", "\u00b2/3"], "needs I/N"),
            (["--partition", "1/" + "9" * 5000], "needs I/N"),
            (["--cluster", "foo"], "unknown cluster 'foo': needs local, slurm or an address such as tcp://HOST:PORT"),
            (["--cluster", "foo", "--dry-run"], "unknown cluster 'foo'"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_nothing_is_run(
        self, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], cause: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("bad.toml").write_text("[rows\nbox_size = ")
        Path("table.toml").write_text("[row]\nbox_size = 3\n")
        Path("loose.toml").write_text("box_size = 3\n")
        Path("value.toml").write_text("[rows]\nbox_size = 'big'\n")
        write_exposure(tmp_path / "other" / "e00.fits", 5)
        process = skylevel("run", program, *arguments, "--output", "out")
        assert process.returncode == 2
        assert cause in process.stderr
        said = [line for line in process.stderr.splitlines() if line and not line.startswith(("Usage:", "Try "))]
        assert len(said) == 1
        assert process.stdout == ""
        assert not Path("out").exists()

    @pytest.mark.parametrize(
        ("cluster", "cause"),
        [
            ("tcp://127.0.0.1:1", "no scheduler answers: Timed out"),
            ("tcp://127.0.0.1", "missing port number"),
        ],
    )
    @pytest.mark.once
    def test_nowhere_to_run(self, program: Path, tmp_path: Path, cluster: str, cause: str) -> None:
        env = {"DASK_SKYLEVEL__CONNECT_TIMEOUT": "1s"}
        run = ("run", program, "--output", tmp_path / "out", "--cluster", cluster, "--quiet")
        process = skylevel(*run, env=env, timeout=60)
        assert process.returncode == 2
        assert cause in process.stderr
        assert len(process.stderr.splitlines()) == 1
        assert list(tmp_path.rglob("*.fits")) == []

    def test_export_of_no_program_makes_no_folder(self, tmp_path: Path) -> None:
        process = skylevel("export", tmp_path / "typo")
        assert (process.returncode, len(process.stderr.splitlines())) == (2, 1)
        assert not (tmp_path / "typo").exists()

    def test_no_input(self) -> None:
        process = skylevel("run")
        assert process.returncode == 2
        assert "Missing argument 'INPUT...'" in process.stderr

    def test_a_share_that_does_not_exist(self, program: Path, tmp_path: Path) -> None:
        process = skylevel("run", program, "--output", tmp_path / "out", "--partition", "3/2")
        assert process.returncode == 2
        assert "partition 3/2" in process.stderr
        assert list(tmp_path.rglob("*.fits")) == []

    def test_an_output_that_is_a_file(self, program: Path, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("in the way")
        process = skylevel("run", program, "--output", tmp_path / "out")
        assert process.returncode == 2
        assert str(tmp_path / "out") in process.stderr
        assert len(process.stderr.splitlines()) == 1

    @pytest.mark.once
    @pytest.mark.parametrize("command", ["status", "export"])
    def test_a_folder_that_was_never_run(self, tmp_path: Path, command: str) -> None:
        process = skylevel(command, tmp_path / "out")
        assert process.returncode == 2
        assert "no program was run into this folder" in process.stderr

    def test_a_recipe_nobody_knows(self) -> None:
        assert skylevel("config", "columns").returncode == 2
        process = skylevel("config", "rows", "--preset", "none")
        assert process.returncode == 2
        assert "rows: unknown preset 'none'" in process.stderr


class TestOddFiles:
    """What users' folders also hold fails alone, with its name."""

    def test_each_is_named_once(self, program: Path, tmp_path: Path) -> None:
        shutil.copy2(program / "e00.fits", tmp_path / "good.fits")
        (tmp_path / "empty.fits").touch()
        (tmp_path / "notes.fits").write_text("Good seeing tonight.\n" * 200)
        (tmp_path / "picture.fits").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5000))
        (tmp_path / "folder.fits").mkdir()
        write_truncated(tmp_path / "cut.fits")
        fits.PrimaryHDU().writeto(tmp_path / "headeronly.fits")
        members = [{"expname": name, "exptype": "science"} for name in ("good.fits", "gone.fits", "folder.fits")]
        (tmp_path / "jw1_asn.json").write_text(json.dumps({"products": [{"members": members}]}))
        expected = {
            "cut": "the file is cut short",
            "empty": "the file is empty",
            "folder": "cannot be read: Is a directory",
            "gone": "there is no such file",
            "headeronly": "it holds no image",
            "notes": "does not begin as FITS",
            "picture": "does not begin as FITS",
        }
        given = (tmp_path, tmp_path / "jw1_asn.json")
        process = skylevel("run", *given, "--output", tmp_path / "out", "--partition", "1/1")
        assert process.returncode == 1
        assert re.search(r"^done +1\s", process.stdout, re.M)
        failed = {
            Path(line.split(": ")[1]).stem: line for line in process.stderr.splitlines() if line.startswith("failed: ")
        }
        assert set(failed) == set(expected)
        for name, cause in expected.items():
            assert cause in failed[name]
        assert [path.name for path in (tmp_path / "out").glob("*.fits")] == ["good_rowbgsub.fits"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
    def test_a_file_that_may_not_be_read(self, program: Path, tmp_path: Path) -> None:
        shutil.copy2(program / "e00.fits", tmp_path / "secret.fits")
        (tmp_path / "secret.fits").chmod(0)
        process = skylevel("run", tmp_path, "--output", tmp_path / "out", "--partition", "1/1")
        assert process.returncode == 1
        assert "secret.fits: cannot be read: Permission denied" in process.stderr


@pytest.mark.once
class TestStatusAndExport:
    def test_status_of_what_is_done(self, output: Path) -> None:
        process = skylevel("status", output)
        assert (process.returncode, process.stdout) == (0, f"{output}: 3 done, 0 failed, 0 left\n")

    def test_status_of_what_is_not(self, program: Path, tmp_path: Path) -> None:
        cut = write_truncated(tmp_path / "cut.fits")
        assert skylevel_here("run", program, cut, "--output", tmp_path / "out", "--partition", "1/1") == 1
        (tmp_path / "out" / "e01_rowbgsub.fits").unlink()
        process = skylevel("status", tmp_path / "out")
        assert process.returncode == 1
        first, failed, left = process.stdout.splitlines()
        assert first == f"{tmp_path / 'out'}: 2 done, 1 failed, 1 left"
        assert re.match(rf"  failed  cut  {re.escape(str(cut))}: .*cut short", failed)
        assert left == "  left  e01"

    def test_export_writes_the_files_again(self, output: Path, cluster: str) -> None:
        pixels, measured = pixels_of(output), arrays_of(output)
        for path in output.glob("*.fits"):
            path.unlink()
        process = skylevel("export", output, "--cluster", cluster)
        assert process.returncode == 0
        assert pixels_of(output) == pixels
        assert arrays_of(output) == measured

    def test_export_names_what_is_not_measured(self, output: Path, cluster: str) -> None:
        chunks_of(output, "e01")["record"].unlink()
        process = skylevel("export", output, "--cluster", cluster)
        assert process.returncode == 1
        assert re.search(r"^failed: .*/e01\.fits: not measured yet: run the program again$", process.stderr, re.M)


class TestStart:
    def test_version(self) -> None:
        assert skylevel("--version").stdout == f"skylevel, version {sl.__version__}\n"

    @pytest.mark.parametrize("command", [(), ("run",), ("status",), ("export",), ("config",), ("demo",)])
    def test_help(self, command: tuple[str, ...]) -> None:
        process = skylevel(*command, "--help")
        assert process.returncode == 0
        assert process.stdout.startswith("Usage: skylevel")

    @pytest.mark.parametrize(
        "code",
        [
            "import skylevel; skylevel.Rows(); skylevel.Channels()",
            "import skylevel.cli",
            "import skylevel.cli as c; c.commands.main(['run', '--help'], standalone_mode=False)",
            "import skylevel.cli as c; c.commands.main(['config', 'rows'], standalone_mode=False)",
        ],
    )
    def test_what_is_heavy_is_not_imported_for_it(self, code: str) -> None:
        asked = f"{code}\nimport sys, json\nprint('\\n' + json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
        printed = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
        loaded = set(json.loads(printed.splitlines()[-1]))
        assert "skylevel" in loaded
        assert not loaded & {"numpy", "scipy", "xarray", "astropy", "dask", "distributed", "zarr", "rawpy", "photutils"}


@pytest.fixture
def real() -> Path:
    if not DATA.exists():
        pytest.skip("no real data here")
    return DATA


@pytest.mark.slow
def test_real_programs_and_real_damage(real: Path, tmp_path: Path, cluster: str) -> None:
    """23 exposures of three instruments are levelled; four raws that hold no mosaic are named."""
    folders = [real / name for name in ("niriss_1093", "nircam_tso", "camera")]
    process = skylevel("run", *folders, "--output", tmp_path, "--cluster", cluster)
    assert process.returncode == 1
    assert re.search(r"^done +23\s", process.stdout, re.M)
    assert len(list(tmp_path.glob("*.fits"))) == 23
    failed = {Path(line.split(": ")[1]).name for line in process.stderr.splitlines() if line.startswith("failed: ")}
    assert failed == {
        "exiftool_CanonRaw.cr2", "exiftool_DNG.dng", "imageio_Nikon_uncompressed.nef", "mei_issue247_1.nef"
    }  # fmt: skip
    frame = sl.open_frame(real / "nircam_tso" / "jw01366002001_01101_00001-seg004_nrca3_rateints_I00372.fits")
    levelled = sl.level_rows(frame)["sci"].to_numpy()
    (written,) = tmp_path.glob("jw01366*_rowbgsub.fits")
    assert fits.getdata(written).tobytes() == levelled.astype(">f4").tobytes()


def test_logging_is_left_as_it_was() -> None:
    """Importing the command line sets up no handler."""
    assert logging.getLogger("skylevel").handlers == []
