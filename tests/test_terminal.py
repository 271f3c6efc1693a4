"""What the command line prints, on a terminal of 80 columns and into a pipe: tables, JSON, paths, progress, the log."""

import json
import logging
import os
import pty
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from distributed import Client

import skylevel as sl
from programs import SKYLEVEL, skylevel, skylevel_here, write_exposure, write_exposures, write_truncated
from skylevel import terminal
from skylevel.cli import commands

pytestmark = pytest.mark.packages

LONG = "jw99999001001_02101_00001_nrcb1_with_a_name_that_goes_on_and_on_and_on_and_on_cal"
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(*arguments: object, cwd: Path | None = None, columns: int = 80) -> tuple[int, str]:
    """Run the command line on a terminal of so many columns; its status, and what it showed without colours."""
    ours, its = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    command = [str(SKYLEVEL), *map(str, arguments)]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment, cwd=cwd) as process:
        os.close(its)
        shown = b""
        # The end of a terminal is an error.
        with suppress(OSError):
            while some := os.read(ours, 65536):
                shown += some
    os.close(ours)
    return process.returncode, ANSI.sub("", shown.decode()).replace("\r\n", "\n")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two exposures, one of a long name, and one that fails; read only."""
    folder = tmp_path_factory.mktemp("program")
    write_exposure(folder / f"{LONG}.fits", 1)
    write_exposure(folder / "e00.fits", 2)
    write_truncated(folder / "cut.fits")
    return folder


@pytest.fixture(scope="module")
def done(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run; read only."""
    output = tmp_path_factory.mktemp("done") / "out"
    assert skylevel_here("run", program, "--output", output, "--partition", "1/1") == 1
    return output


@pytest.mark.once
class TestJson:
    def test_of_a_run_some_of_which_fails(self, program: Path, tmp_path: Path) -> None:
        output = tmp_path / "out"
        process = skylevel("run", program, "--output", output, "--partition", "1/1", "--json")
        assert process.returncode == 1
        told = json.loads(process.stdout)
        assert {one["name"] for one in told["done"]} == {"e00", LONG}
        assert all(one["peak_mib"] > 0 and one["seconds"]["measure"] > 0 for one in told["done"])
        ((name, reason),) = [one.values() for one in told["failed"]]
        assert name == "cut"
        assert reason.startswith(f"{program}/cut.fits: ")
        assert told["report"] == f"{output}/report.html"
        assert told["store"] == f"{output}/program.zarr"
        assert (told["output"], told["done_before"]) == (str(output), [])
        assert "failed: " in process.stderr

    def test_of_a_plan(self, program: Path, tmp_path: Path) -> None:
        process = skylevel("run", program, "--output", tmp_path / "out", "--dry-run", "--json")
        told = json.loads(process.stdout)
        by_name = {one["name"]: one for one in told["exposures"]}
        assert by_name["e00"]["source"] == f"{program}/e00.fits"
        assert by_name["e00"]["outputs"] == {"levelled": f"{tmp_path}/out/e00_rowbgsub.fits"}
        assert (by_name["e00"]["to_do"], by_name["e00"]["fails"]) == (["measure", "export"], None)
        assert "cut short" in by_name["cut"]["fails"]
        assert [(kind["detector"], kind["exposures"]) for kind in told["kinds"]] == [("NRCA1", 2)]
        assert min(told["output_bytes"], told["free_bytes"], told["worker_bytes"]) > 0

    def test_of_a_state(self, done: Path) -> None:
        process = skylevel("status", done, "--json")
        assert process.returncode == 1
        told = json.loads(process.stdout)
        assert [told[state] for state in ("done", "failed", "left")] == [2, 1, 0]
        states = {one["name"]: one["state"] for one in told["exposures"]}
        assert states == {"e00": "done", LONG: "done", "cut": "failed"}

    def test_of_an_export(self, done: Path, tmp_path: Path, client: Client) -> None:
        shutil.copytree(done, tmp_path / "out")
        process = skylevel("export", tmp_path / "out", "--json", "--cluster", client.scheduler.address)
        assert process.returncode == 1
        assert {one["name"] for one in json.loads(process.stdout)["done"]} == {"e00", LONG}

    def test_of_settings(self) -> None:
        told = json.loads(skylevel("config", "channels", "--preset", "best", "--json").stdout)
        assert told == {"recipe": "channels", "preset": "best", "settings": sl.Channels.preset("best").to_dict()}

    def test_of_a_command_that_is_wrong(self, tmp_path: Path) -> None:
        process = skylevel("run", tmp_path / "nothing.fits", "--output", tmp_path / "out", "--json")
        assert (process.returncode, process.stdout) == (2, "")
        assert "no such file" in process.stderr

    def test_of_hostile_names(self, tmp_path: Path) -> None:
        folder = os.fsencode(tmp_path) + b"/in\xff\x1b]0;x\x07"
        Path(os.fsdecode(folder)).mkdir()
        good, bad = folder + b"/\x1b[31mgood\xfe.fits", folder + b'/"bad\n\xe2\x80\xae.fits'
        write_exposure(tmp_path / "e.fits", 1)
        shutil.move(tmp_path / "e.fits", good)
        Path(os.fsdecode(bad)).write_bytes(b"")
        run = ("run", os.fsdecode(folder), "--output", os.fsdecode(folder + b"/out"), "--json")
        for process, status in (
            (skylevel(*run, "--dry-run"), 0),
            (skylevel(*run, "--partition", "1/1"), 1),
            (skylevel("status", os.fsdecode(folder + b"/out"), "--json"), 1),
        ):
            assert process.returncode == status
            assert process.stdout.isascii()
            assert set(process.stdout) & set(map(chr, range(32))) == {"\n"}
            told = json.loads(process.stdout)
            assert told["output"] == rf"{tmp_path}/in\xff\x1b]0;x\x07/out"
            # What no other parser could read: half of a character.
            json.dumps(told, ensure_ascii=False).encode()

    def test_of_what_is_no_number(self, capsys: pytest.CaptureFixture[str]) -> None:
        terminal.print_json({"after": {"best": float("nan"), "program": 1.5}})
        assert json.loads(capsys.readouterr().out) == {"after": {"best": None, "program": 1.5}}


class TestWidth:
    def test_a_state_fits_a_terminal(self, done: Path) -> None:
        status, shown = on_terminal("status", done)
        assert status == 1
        first, *failed = shown.splitlines()
        assert first.startswith(f"{done}:")
        assert any(line.startswith("  failed  cut") for line in failed)
        # Words go on the next line, indented; paths are there to be copied.
        assert all(len(line) <= 80 or "/" in line for line in shown.splitlines())
        assert any(re.match(r" {10}\S", line) for line in failed)

    def test_a_plan_fits_a_terminal(self, program: Path, tmp_path: Path) -> None:
        status, shown = on_terminal("run", program, "--output", tmp_path / "out", "--dry-run")
        assert status == 0
        table = shown.splitlines()[:4]
        assert max(map(len, table)) <= 80
        (line,) = [line for line in table if line.startswith("jw99999")]
        assert re.match(r"jw99999001001_\w+\.\.\.\w+_cal  rows +\S+ MB  measure, export$", line)

    def test_a_plan_says_what_would_fail_and_sizes_of_any_file(self, program: Path, tmp_path: Path) -> None:
        shutil.copytree(program, tmp_path / "in")
        (tmp_path / "in" / "tiny.fits").write_bytes(b"SIMPLE")
        shown = skylevel("run", tmp_path / "in", "--output", tmp_path / "out", "--dry-run").stdout
        assert re.search(r"^tiny +rows +0\.0 kB +nothing: fails$", shown, re.M)
        assert re.search(r"^exposures +4, 0 done already, 2 would fail$", shown, re.M)
        assert re.search(r"^rows +NRCA1 +F200W +2$", shown, re.M)
        assert not re.search(r"^rows +\d+$", shown, re.M)

    def test_a_table_is_in_one_piece(self, program: Path, tmp_path: Path) -> None:
        """What failed comes after the report, and what is advised after that."""
        _, shown = on_terminal("run", program, "--output", tmp_path / "out", "--partition", "1/1", columns=400)
        shown = shown.replace("\r", "\n")
        table = shown[shown.index("\ndone ") :]
        assert re.findall(r"^[\w:]+", table, re.M)[:7] == [
            "done", "failed", "work", "outputs", "store", "report", "failed:",
        ]  # fmt: skip
        assert re.search(r"a worker held up to \d\.\d\d GB$", table, re.M)

    def test_a_pipe_gets_each_line_whole(self, program: Path, done: Path, tmp_path: Path) -> None:
        planned = skylevel("run", program, "--output", tmp_path / "out", "--dry-run", env={"COLUMNS": "80"}).stdout
        assert re.search(rf"^{LONG}  rows  ", planned, re.M)
        stated = skylevel("status", done, env={"COLUMNS": "80"}).stdout.splitlines()
        assert len(stated) == 2
        assert stated[1].startswith(f"  failed  cut  {program}/cut.fits: ")

    def test_a_run_fits_a_terminal(self, program: Path, tmp_path: Path) -> None:
        shutil.copytree(program, tmp_path / "in")
        status, shown = on_terminal("run", "in", "--output", "out", "--partition", "1/1", cwd=tmp_path)
        assert status == 1
        lines = shown.replace("\r", "\n").splitlines()
        assert [line for line in lines if len(line) > 80 and LONG not in line] == []
        assert any(re.match(r"\d\d:\d\d:\d\d  e00: read", line) for line in lines)
        pace = re.compile(r"levelling .* 3/3 1 failed 0:\d\d:\d\d \d+\.\d/(s|min) 0:00:00 left")
        assert any(map(pace.match, lines))

    def test_progress_is_one_line_on_a_narrow_terminal(self, program: Path, tmp_path: Path) -> None:
        _, shown = on_terminal("run", program, "--output", tmp_path / "out", "--partition", "1/1", columns=60)
        pace = re.compile(r"levelling .* 3/3 1 failed \d+\.\d/(s|min) 0:00:00 left *")
        assert any(map(pace.fullmatch, shown.replace("\r", "\n").splitlines()))

    @pytest.mark.parametrize("name", ["", *commands.commands])
    def test_help_has_examples_and_fits(self, name: str) -> None:
        arguments = [name, "--help"] if name else ["--help"]
        shown = CliRunner(env={"COLUMNS": "80"}).invoke(commands, arguments).output
        assert max(map(len, shown.splitlines())) <= 80
        assert f"  Examples:\n    skylevel {name}" in shown


@pytest.mark.once
class TestPaths:
    @pytest.fixture
    def here(self, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        shutil.copytree(program, tmp_path / "in")
        monkeypatch.chdir(tmp_path)
        yield tmp_path
        terminal.paths.learn((), "")

    @pytest.mark.parametrize("given", ["in", "in/*.fits", "@list.txt", "./in/"])
    def test_what_is_given_relative_is_shown_so(self, here: Path, given: str) -> None:
        (here / "list.txt").write_text("in/e00.fits\nin/cut.fits\n")
        process = skylevel("run", given, "--output", "out", "--partition", "1/1")
        assert str(here) not in process.stdout + process.stderr
        assert re.search(r"^report +out/report\.html$", process.stdout, re.M)
        assert re.search(r"^store +out/program\.zarr$", process.stdout, re.M)
        assert re.search(r"  e00: wrote out/e00_rowbgsub\.fits", process.stderr)
        assert re.search(r"^failed: (\./)?in/cut\.fits: ", process.stderr, re.M)
        # A log is read from anywhere.
        assert f"wrote {here}/out/e00_rowbgsub.fits" in (here / "out" / "skylevel.log").read_text()

    def test_what_is_given_absolute_stays_so(self, here: Path) -> None:
        process = skylevel("run", "in", "--output", here / "out", "--partition", "1/1")
        assert re.search(rf"^store +{here}/out/program\.zarr$", process.stdout, re.M)
        assert f"e00: wrote {here}/out/e00_rowbgsub.fits" in process.stderr
        assert re.search(r"^failed: in/cut\.fits: ", process.stderr, re.M)

    def test_a_path_within_another_one_is_none(self, here: Path) -> None:
        terminal.paths.learn(["in"], "out")
        told = f"{here}/in/a.fits: file:///mnt{here}/in/a.fits ({here}/out/b.fits) {here}/inner/c.fits"
        assert terminal.paths.as_given(told) == (
            f"in/a.fits: file:///mnt{here}/in/a.fits (out/b.fits) {here}/inner/c.fits"
        )


class TestLog:
    def test_its_times_run_forward(self, tmp_path: Path, client: Client, caplog: pytest.LogCaptureFixture) -> None:
        """Two workers: what one says of its exposure, another one's later step has been said before."""
        write_exposures(tmp_path / "in", 8)
        (tmp_path / "in" / "empty.fits").touch()
        with caplog.at_level(logging.INFO, "skylevel"):
            sl.run(tmp_path / "in", tmp_path / "out", client=client)
        times = [record.created for record in caplog.records]
        assert len(times) > 24
        assert times == sorted(times)


@pytest.fixture(scope="module")
def script() -> str:
    """What the documentation has a shell evaluate."""
    return skylevel(env={"_SKYLEVEL_COMPLETE": "bash_source"}).stdout


class TestCompletion:
    @pytest.mark.parametrize(
        ("typed", "offered"),
        [
            ("st", ["status"]),
            ("run --pres", ["--preset"]),
            ("run --preset b", ["best"]),
            ("run --layout ''", ["full", "primary"]),
            ("run --cluster s", ["slurm"]),
            ("config ''", ["rows", "channels"]),
            ("run e0", ["e00.fits"]),
            ("status o", ["out"]),
        ],
    )
    def test_bash_offers(self, script: str, tmp_path: Path, typed: str, offered: list[str]) -> None:
        """By bash itself: its completion of paths is asked for, where ours says so."""
        (tmp_path / "e00.fits").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "other").touch()
        asked = (
            f"PATH={SKYLEVEL.parent}:$PATH\n{script}\n"
            f"COMP_WORDS=(skylevel {typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1))\n"
            'compopt() { [ "$2" = default ] && A=file; [ "$2" = dirnames ] && A=directory; COMPREPLY=($(compgen -A $A'
            ' -- "${COMP_WORDS[COMP_CWORD]}")); }\n'
            "_skylevel_completion skylevel; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        process: Any = subprocess.run(["bash", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert process.stdout.split() == offered
        assert process.stderr == ""

    @pytest.mark.parametrize("shell", ["zsh", "fish"])
    def test_other_shells_get_theirs(self, shell: str) -> None:
        assert "skylevel" in skylevel(env={"_SKYLEVEL_COMPLETE": f"{shell}_source"}).stdout
