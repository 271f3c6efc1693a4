"""Whatever names, headers, URLs and lists hold: from the command line to FITS, or one line that names what is wrong."""

import gzip
import json
import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

import skylevel as sl
from corpus import ODD_NAMES, cal, card, colour, content, dng, huge_header, sparse, tag
from programs import (
    image_of,
    pixels_of,
    skylevel,
    skylevel_here,
    stamps,
    write_exposure,
    write_exposures,
    write_raw,
    write_truncated,
)
from skylevel.errors import PlanError
from skylevel.io.names import is_safe_component, safe_component
from skylevel.program.plan import make_plan

pytestmark = pytest.mark.packages

ALONE = ("--partition", "1/1")
SECRET = "AKIAsecretSECRET0123"
LONG = [("é" * 110 + ".fits"), "x" * 200 + ".fits", "y" * 240 + ".dng"]
NAMES = [*ODD_NAMES, "caf\udce9.dng", "\x1b]0;a\x07.dng", ".dng", "a::b.dng", "\x9b31m.fits", "no suffix", *LONG]


def run_here(capfd: Any, *arguments: object) -> tuple[int, str]:
    """Run the command line in this process: its status, and all that it printed."""
    status = skylevel_here("run", *arguments, *ALONE)
    printed = capfd.readouterr()
    return status, printed.out + printed.err


def refused(capfd: Any, *arguments: object) -> str:
    """Run a command that is wrong: the one line that says why."""
    status, said = run_here(capfd, *arguments)
    assert status == 2
    (line,) = said.splitlines()
    return line


@pytest.mark.once
class TestNames:
    @pytest.mark.parametrize("name", NAMES, ids=ascii)
    def test_any_name_a_file_can_have(self, tmp_path: Path, capfd: Any, name: str) -> None:
        folder, output = tmp_path / "in", tmp_path / "out"
        folder.mkdir()
        (folder / name).write_bytes(dng() if name.endswith("dng") else cal())
        status, said = run_here(capfd, f"{folder}/{name}", "--output", output)
        assert status == 0, said
        (written,) = output.glob("*.fits")
        assert is_safe_component(written.name)
        assert np.isfinite(image_of(written)).all()
        assert said.replace("\n", "").isprintable()
        assert (output / "skylevel.log").read_text(encoding="utf-8").replace("\n", "").isprintable()
        before = stamps(output)
        status, said = run_here(capfd, f"{folder}/{name}", "--output", output)
        assert "1 done already, to do: nothing" in said or "1 done already\n" in said
        assert {k: v for k, v in stamps(output).items() if k != "skylevel.log"} == {
            k: v for k, v in before.items() if k != "skylevel.log"
        }
        assert sl.status(output)[0].state == "done"

    def test_all_of_them_at_once_on_a_cluster(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        for name in NAMES:
            (folder / name).write_bytes(dng() if name.endswith("dng") else cal())
        (folder / "cut\udce9\x1b[2J.fits").write_bytes(cal()[:9000])
        environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        process = skylevel("run", folder, "--output", tmp_path / "out", "--workers", 1, env=environment)
        assert process.returncode == 1
        taken = [name for name in NAMES if name.endswith(("fits", "dng"))]
        assert len(list((tmp_path / "out").glob("*.fits"))) == len(taken)
        assert process.stderr.count("cut\\xe9\\x1b[2J.fits") == 1
        assert (process.stdout + process.stderr).replace("\n", "").isprintable()
        assert sorted(s.state for s in sl.status(tmp_path / "out")) == ["done"] * len(taken) + ["failed"]

    def test_an_ordinary_name_stays(self, tmp_path: Path) -> None:
        for name in ("jw04250004001_03101_00001_nrcb1_cal", "DSC 01234 (2)", "Ångström", "z" * 180):
            (tmp_path / f"{name}.fits").write_bytes(cal())
            (planned,) = make_plan([str(tmp_path / f"{name}.fits")], str(tmp_path))
            assert planned.name == name

    def test_the_folder_of_outputs_may_have_any_name(self, tmp_path: Path, capfd: Any) -> None:
        source = write_exposure(tmp_path / "e.fits")
        output = tmp_path / "o\udce9::\x1b[2J"
        assert run_here(capfd, source, "--output", output)[0] == 0
        assert skylevel_here("status", output, "--verify") == 0
        assert capfd.readouterr().out.replace("\n", "").isprintable()
        assert sl.open_program(output)["NRCA1/F200W"].sizes["exposure"] == 1

    def test_files_that_share_a_stem(self, tmp_path: Path, capfd: Any) -> None:
        write_exposure(tmp_path / "in" / "a.fits")
        (tmp_path / "in" / "a.fits.gz").write_bytes(gzip.compress((tmp_path / "in" / "a.fits").read_bytes()))
        write_exposure(tmp_path / "in" / "A.fits", 1)
        assert run_here(capfd, tmp_path / "in", "--output", tmp_path / "out")[0] == 0
        written = pixels_of(tmp_path / "out")
        assert set(written) == {"a.fits_rowbgsub.fits", "a.fits.gz_rowbgsub.fits", "A_rowbgsub.fits"}
        assert written["a.fits_rowbgsub.fits"] == written["a.fits.gz_rowbgsub.fits"] != written["A_rowbgsub.fits"]

    def test_names_that_a_file_system_takes_for_the_same(self, tmp_path: Path, monkeypatch: Any) -> None:
        write_exposure(tmp_path / "in" / "a.fits")
        write_exposure(tmp_path / "in" / "A.fits")
        monkeypatch.setattr("skylevel.program.plan._ignores_case", lambda _: True)
        with pytest.raises(PlanError, match="would write the same outputs"):
            make_plan([str(tmp_path / "in")], str(tmp_path / "out"))

    def test_what_was_made_safe_is_known_as_safe(self) -> None:
        for name in NAMES:
            assert is_safe_component(safe_component(name, limit=200))
        for name in ("..", "a/b", "", "a\\b", "\x1b", 5, None, "zarr.json", ".a", "x" * 300):
            assert not is_safe_component(name)


class TestHeaders:
    DETECTORS = ("..", "/etc", "exposures", "failed", "plan.json", "lock", "zarr.json", "groups", "160x200", "a::b",
                 "record", "LOCK", "program.zarr", "NRCA1", "run.lock", "Run-1-of-2.lock", "combining.lock",
                 "lock.0123456789abcdef", "described", "plan.json.tmp", "zarr.json.partial", "zarr.0.partial",
                 "ZARR.JSON", "_failed")  # fmt: skip

    def test_names_of_detectors_and_filters(self, tmp_path: Path, capfd: Any) -> None:
        """None of them takes the place of what a store has for itself, nor of another."""
        folder, output = tmp_path / "in", tmp_path / "out"
        for i, detector in enumerate(self.DETECTORS):
            write_exposure(folder / f"{i}.fits", i, shape=(60, 70), cards={"DETECTOR": detector})
            write_exposure(folder / f"{i}-no.fits", i, shape=(60, 70), cards={"DETECTOR": detector, "FILTER": None})
        form = "60x70-mesh2x2"
        write_exposure(folder / "form.fits", 1, shape=(60, 70), cards={"DETECTOR": "NRCA1", "FILTER": form})
        write_exposure(folder / "neither.fits", 1, shape=(60, 70), cards={"DETECTOR": None, "FILTER": None})
        for _ in range(2):
            assert run_here(capfd, folder, "--output", output)[0] == 0
            leaves = sl.open_program(output).leaves
            found = sorted(str(n) for leaf in leaves for n in leaf["exposure"].values)
            assert found == sorted(path.stem for path in folder.iterdir())
        assert skylevel_here("status", output, "--verify") == 0
        alone = [leaf["exposure"].values.tolist() for leaf in leaves]
        assert ["13"] in alone
        assert [str(self.DETECTORS.index("_failed"))] in alone
        assert sl.open_program(output)["NRCA1/F200W"]["exposure"].values.tolist() == ["13"]

    def test_a_store_in_which_a_folder_stands_for_a_lock(self, tmp_path: Path, capfd: Any) -> None:
        write_exposure(tmp_path / "e.fits", shape=(60, 70))
        for name in ("run.lock", "lock"):
            folder = tmp_path / name / "program.zarr" / name
            folder.mkdir(parents=True)
            line = refused(capfd, tmp_path / "e.fits", "--output", tmp_path / name)
            assert line.endswith(f"{folder}: is a folder, where a lock is to stand: remove it, and run again")

    def test_escape_sequences_in_a_raws_texts(self, tmp_path: Path, capfd: Any) -> None:
        raw = write_raw(tmp_path / "a.dng")
        raw.write_bytes(raw.read_bytes().replace(b"skylevel Demo", b"sky\x1b[2J\x07 Demo"))
        for extra in ((), ("--dry-run",)):
            status, said = run_here(capfd, raw, "--output", tmp_path / "out", *extra)
            assert status == 0
            assert said.replace("\n", "").isprintable()

    def test_cards_that_nobody_needs(self, tmp_path: Path, capfd: Any) -> None:
        for keyword in ("DATE-BEG", "EFFEXPTM", "FASTAXIS", "PROGRAM"):
            for i, value in enumerate(("= 'no end", "= word", "= 1 2", "= 1E999", "= 99999999999999999999")):
                (tmp_path / f"{keyword}-{i}.fits").write_bytes(card(cal(), keyword, value))
        (tmp_path / "PIXAR_SR.fits").write_bytes(card(cal(), "PIXAR_SR", "= (1, ", hdu=1))
        status, said = run_here(capfd, tmp_path, "--output", tmp_path / "out")
        assert status == 0, said
        assert len(list((tmp_path / "out").glob("*.fits"))) == 21

    @pytest.mark.parametrize("value", ["= 'nan'", "= 'inf'", "= '-Infinity'", "= 1E999"])
    def test_cards_that_are_no_finite_number(self, tmp_path: Path, capfd: Any, value: str) -> None:
        """They are no facts: every later command finds a plan and outputs as of any other file."""
        for keyword in ("EFFEXPTM", "PHOTMJSR", "PIXAR_SR"):
            hdu = 0 if keyword == "EFFEXPTM" else 1
            (tmp_path / f"{keyword}.fits").write_bytes(card(cal(), keyword, value, hdu=hdu))
        numbers = dict.fromkeys(("EXPTIME", "ISOSPEED", "APERTURE", "FOCALLEN"), 7.5)
        for keyword in numbers:
            (tmp_path / f"{keyword}.fits").write_bytes(card(colour(**numbers), keyword, value))
        output = tmp_path / "out"
        for _ in range(2):
            status, said = run_here(capfd, tmp_path, "--output", output)
            assert status == 0, said
            assert "damaged" not in said
        assert "7 done already" in said
        for command in ("status", "report"):
            assert skylevel_here(command, output) == 0
        assert all(np.isfinite(image_of(path)).all() for path in output.glob("*.fits"))
        (camera,) = (node for node in sl.open_program(output).leaves if "iso" in node.coords)
        assert np.isfinite(camera["iso"]).sum() == 3

    def test_each_bad_or_lying_file_fails_alone(self, tmp_path: Path, capfd: Any) -> None:
        folder, output = tmp_path / "in", tmp_path / "out"
        sound = write_exposure(folder / "sound.fits")
        raw = write_raw(folder / "raw.dng")
        bad = {
            "detector.fits": content(card(cal(), "DETECTOR", "= 'no end")),
            "filter.fits": content(card(cal(), "FILTER", "= word")),
            "naxis.fits": content(card(cal(), "NAXIS", "= 2147483648", hdu=1)),
            "pcount.fits": content(card(cal(), "PCOUNT", "= 9223372036854775807", hdu=1)),
            "gcount.fits": content(card(cal(), "GCOUNT", "= 2147483648", hdu=1)),
            "sparse.fits": sparse(10**6, 10**6),
            "lying.dng": content(tag(tag(dng(), 256, 40000), 257, 35000)),
            "bomb.fits.gz": content(gzip.compress(huge_header(10**6, 10**6) + bytes(1 << 22))),
            "blank.fits.gz": content(gzip.compress(cal()[:160].ljust(18 << 20) + b"END".ljust(2880), 1)),
            "empty.fits": content(b""),
            "pipe.fits": lambda path: os.mkfifo(path),
            "dangling.fits": lambda path: path.symlink_to("gone"),
            "zero.fits": lambda path: path.symlink_to("/dev/zero"),
        }
        for name, make in bad.items():
            make(folder / name)
        status, said = run_here(capfd, folder, "--output", output, "--dry-run")
        assert status == 0
        for name in bad:
            assert said.count(f"would fail: {folder}/{name}: ") == 1
        assert not output.exists()
        status, said = run_here(capfd, folder, "--output", output)
        assert status == 1
        lines = [line for line in said.splitlines() if line.startswith("failed: ")]
        assert len(lines) == len(bad)
        for name in bad:
            assert said.count(f"{folder}/{name}") == 1, said
        written = sorted(path.name for path in output.glob("*.fits"))
        assert written == [f"{raw.stem}.bkg_subtracted.fits", f"{sound.stem}_rowbgsub.fits"]

    def test_coordinates_that_would_take_for_ever(self, tmp_path: Path, capfd: Any) -> None:
        for i, cards in enumerate(({"A_ORDER": 15000}, {"A_ORDER": 10**6}, {"WCSAXES": 10**9})):
            (tmp_path / f"{i}.fits").write_bytes(cal(cards=cards))
        assert run_here(capfd, tmp_path, "--output", tmp_path / "out")[0] == 0

    def test_pixels_near_the_largest_number(self, tmp_path: Path, capfd: Any) -> None:
        pixels = np.full((60, 70), 2e38, "f4")
        pixels[::2] = -2e38
        (tmp_path / "huge.fits").write_bytes(cal(pixels))
        (tmp_path / "flat.fits").write_bytes(cal(np.full((60, 70), 2e38, "f4")))
        status, said = run_here(capfd, tmp_path, "--output", tmp_path / "out")
        outputs = list((tmp_path / "out").glob("*.fits"))
        assert all(np.isfinite(image_of(path)).all() for path in outputs)
        assert len(outputs) + said.count("failed: ") == 2
        assert status == (1 if "failed: " in said else 0)


class TestTooLarge:
    def test_for_this_process(self, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
        write_exposure(tmp_path / "small.fits", shape=(60, 70))
        large = write_exposure(tmp_path / "large.fits", shape=(300, 400))
        monkeypatch.setattr("skylevel.program.run.process_memory", lambda: (300 << 20) + 12 * 300 * 400 - 1)
        status, said = run_here(capfd, tmp_path, "--output", tmp_path / "out")
        assert status == 1
        assert f"failed: {large}: needs about" in said
        assert [path.name for path in (tmp_path / "out").glob("*.fits")] == ["small_rowbgsub.fits"]
        # Another share's process may have more.
        status, said = run_here(capfd, large, "--output", tmp_path / "out2")
        assert status == 1
        assert "needs about" in said

    def test_for_the_disk(self, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
        write_exposure(tmp_path / "small.fits", shape=(60, 70))
        large = write_exposure(tmp_path / "large.fits", shape=(300, 400))
        monkeypatch.setattr("skylevel.program.forecast.free_disk", lambda _: 400_000)
        status, said = run_here(capfd, tmp_path, "--output", tmp_path / "out", "--dry-run")
        assert "would fail: its outputs need about" in said
        status, said = run_here(capfd, tmp_path, "--output", tmp_path / "out")
        assert status == 1
        assert f"failed: {large}: its outputs need about" in said
        assert "make room" in refused_after_start(capfd, large, "--output", tmp_path / "out2")


def refused_after_start(capfd: Any, *arguments: object) -> str:
    status, said = run_here(capfd, *arguments)
    assert status == 2
    return said.splitlines()[-1]


class TestPast:
    def test_a_mosaics_empty_pixels_stay_and_are_not_measured(self, tmp_path: Path, capfd: Any) -> None:
        image = np.random.default_rng(1).normal(-3.0, 0.2, (120, 150)).astype("f4")
        weight = np.ones_like(image)
        weight[:, :60] = 0
        image[:, :60] = 0
        image[3, 100] = 0
        hdus = [fits.ImageHDU(image, name="SCI"), fits.ImageHDU(weight, name="WHT")]
        (tmp_path / "m_i2d.fits").write_bytes(cal(hdus=hdus))
        write_exposure(tmp_path / "e_cal.fits")
        run = (tmp_path, "--output", tmp_path / "out", "--set", "positive_only=false")
        status, said = run_here(capfd, *run)
        assert status == 0
        assert said.count("no detector's rows") == 1
        assert "1 exposure, m_i2d for one: the rows of a resampled image" in said
        with fits.open(tmp_path / "out" / "m_i2d_rowbgsub.fits") as written:
            levelled = written["SCI"].data
            assert "no detector's rows" in str(written[0].header["HISTORY"])
        assert (levelled[:, :60] == 0).all()
        assert abs(np.median(levelled[:, 60:])) < 0.05
        assert levelled[3, 100] > 2
        assert "detector's rows" not in str(fits.getheader(tmp_path / "out" / "e_cal_rowbgsub.fits")["HISTORY"])

    def test_no_data_stays_lazily_too(self, tmp_path: Path) -> None:
        image = np.random.default_rng(1).normal(3.0, 0.2, (120, 150)).astype("f4")
        image[:50, :60] = 0
        (tmp_path / "m_i2d.fits").write_bytes(cal(image))
        frame = sl.open_frame(tmp_path / "m_i2d.fits")
        eager = sl.level_rows(frame)
        lazy = sl.level_rows(frame.chunk(y=37, x=41))
        assert (eager["sci"].values[:50, :60] == 0).all()
        np.testing.assert_array_equal(eager["sci"], lazy["sci"])
        np.testing.assert_array_equal(eager["source_mask"], lazy["source_mask"])

    def test_what_was_levelled_before_is_refused_by_name(self, tmp_path: Path, capfd: Any) -> None:
        marks = {"jwst": {"S_CLNFNS": "COMPLETE"}, "grizli": {"ONEFEXP": True}, "ours": {"SKYLEVEL": "0.1"}}
        for name, cards in marks.items():
            write_exposure(tmp_path / "in" / f"{name}.fits", cards=cards)
        raw = write_raw(tmp_path / "raw" / "night.dng")
        assert run_here(capfd, raw, "--output", tmp_path / "first")[0] == 0
        shutil.copy(tmp_path / "first" / "night.bkg_subtracted.fits", tmp_path / "in" / "night.fits")
        write_exposure(tmp_path / "in" / "new.fits")
        run = (tmp_path / "in", "--output", tmp_path / "out")
        _, said = run_here(capfd, *run, "--dry-run")
        assert said.count("was levelled before, by") == 4
        status, said = run_here(capfd, *run)
        assert status == 1
        for name, tool in (("jwst", "clean_flicker"), ("grizli", "grizli"), ("ours", "sky"), ("night", "skylevel")):
            assert f"failed: {tmp_path}/in/{name}.fits: was levelled before, by {tool}" in said
        assert len(list((tmp_path / "out").glob("*.fits"))) == 1
        assert run_here(capfd, *run, "--again")[0] == 0
        assert len(list((tmp_path / "out").glob("*.fits"))) == 5
        assert not sl.run(tmp_path / "in", tmp_path / "out", again=True).failed

    def test_shares_agree_that_it_is_done_again(self, tmp_path: Path) -> None:
        for i in range(3):
            write_exposure(tmp_path / "in" / f"{i}.fits", i, cards={"SKYLEVEL": "0.1"})
        for share in ("1/2", "2/2"):
            assert skylevel_here("run", tmp_path / "in", "--output", tmp_path / "out", "--again",
                                 "--partition", share) == 0  # fmt: skip
        assert [s.state for s in sl.status(tmp_path / "out")] == ["done"] * 3


class TestLists:
    @pytest.mark.parametrize("special", ["/dev/zero", "pipe", "folder", "noise"])
    def test_a_list_or_association_that_is_no_file(self, tmp_path: Path, capfd: Any, special: str) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()
        (tmp_path / "noise").write_bytes(bytes(range(256)) * 99)
        given = tmp_path / special
        assert f"@{given}: cannot read the list" in refused(capfd, f"@{given}", "--output", tmp_path / "out")
        link = tmp_path / "a_asn.json"
        link.symlink_to(given)
        if special != "folder":
            assert "not a JWST association" in refused(capfd, link, "--output", tmp_path / "out")

    def test_a_list_that_names_itself(self, tmp_path: Path, capfd: Any) -> None:
        (tmp_path / "list.txt").write_text(f"@{tmp_path}/list.txt\n")
        assert "names another list" in refused(capfd, f"@{tmp_path}/list.txt", "--output", tmp_path / "out")

    def test_names_in_a_list_that_are_no_utf8(self, tmp_path: Path, capfd: Any) -> None:
        (tmp_path / "caf\udce9.fits").write_bytes(cal())
        (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9.fits\r\n")
        assert run_here(capfd, f"@{tmp_path}/list.txt", "--output", tmp_path / "out")[0] == 0

    def test_a_line_that_no_file_can_be_named(self, tmp_path: Path, capfd: Any) -> None:
        (tmp_path / "list.txt").write_text("x" * 5000)
        assert "nothing matches it" in refused(capfd, f"@{tmp_path}/list.txt", "--output", tmp_path / "out")

    @pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"products": [{"members": [{"expname": 5}]}]}',
                                      '{"products": [{"members": [{"expname": "a\\u0000"}]}]}',
                                      '{"products": [{"members": [{"expname": ""}]}]}'])  # fmt: skip
    def test_associations_that_are_none(self, tmp_path: Path, capfd: Any, text: str) -> None:
        (tmp_path / "a_asn.json").write_text(text)
        line = refused(capfd, tmp_path / "a_asn.json", "--output", tmp_path / "out")
        assert "not a JWST association" in line
        assert len(line) < 1000

    def test_a_pipe_as_input_or_member(self, tmp_path: Path, capfd: Any) -> None:
        os.mkfifo(tmp_path / "pipe.fits")
        write_exposure(tmp_path / "e.fits")
        members = [{"expname": name, "exptype": "science"} for name in ("pipe.fits", "e.fits")]
        (tmp_path / "a_asn.json").write_text(json.dumps({"products": [{"members": members}]}))
        for given in ((tmp_path / "a_asn.json",), (tmp_path / "pipe.fits", tmp_path / "e.fits")):
            status, said = run_here(capfd, *given, "--output", tmp_path / "out")
            assert status == 1
            assert "pipe.fits: is a pipe, a socket or a device, not a file" in said


class TestFolders:
    def test_subfolders_are_told_or_looked_into(self, tmp_path: Path, capfd: Any) -> None:
        top = tmp_path / "in"
        write_exposure(top / "e.fits")
        write_exposure(top / "n1" / "e.fits", 1)
        write_exposure(top / "n1" / "deep" / "f.fits", 2)
        write_exposure(top / "n2" / "e.fits", 3)
        (top / ".hidden").mkdir()
        run = (top, "--output", top / "out")
        status, said = run_here(capfd, *run)
        assert status == 0
        assert "2 subfolders skipped; --recursive looks into them" in said
        assert "1 exposure" in said
        assert "1 exposures" not in said
        status, said = run_here(capfd, *run, "--recursive")
        assert status == 0
        expected = {"e", "n1-e", "n2-e", "f"}
        assert {path.name.removesuffix("_rowbgsub.fits") for path in (top / "out").glob("*.fits")} == expected
        assert "1 done already" in said

    def test_a_folder_with_nothing_but_folders(self, tmp_path: Path, capfd: Any) -> None:
        write_exposure(tmp_path / "in" / "night" / "e.fits")
        line = refused(capfd, tmp_path / "in", "--output", tmp_path / "out")
        assert "--recursive looks into its 1 subfolder" in line

    def test_a_preset_for_which_nothing_is_there(self, tmp_path: Path, capfd: Any) -> None:
        write_exposures(tmp_path / "in", 1)
        run = ("--output", tmp_path / "out", "--preset", "planes")
        _, said = run_here(capfd, tmp_path / "in", *run)
        assert "--preset planes changes nothing" in said
        write_raw(tmp_path / "in" / "night.dng")
        _, said = run_here(capfd, tmp_path / "in", *run)
        assert "changes nothing" not in said

    @pytest.mark.parametrize(
        ("write", "option", "job"),
        [
            (write_exposure, ("--set", "channels.box_size=7"), "channels"),
            (write_exposure, ("--set", "norms.R=1"), "channels"),
            (write_exposure, ("--config", "night.toml"), "channels"),
            (write_raw, ("--set", "threshold=3"), "rows"),
            (write_raw, ("--keep", "background,segmentation"), "rows"),
        ],
    )
    def test_an_option_for_which_nothing_is_there(
        self, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, write: Any, option: tuple[str, str], job: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("night.toml").write_text("[channels]\nbox_size = 64\n")
        for writer, name in ((write_exposure, "e.fits"), (write_raw, "n.dng")):
            writer(tmp_path / "both" / name)
        run = ("--output", tmp_path / "out", "--dry-run", *option)
        given = write(tmp_path / "in" / ("e.fits" if write is write_exposure else "n.dng"))
        status, said = run_here(capfd, given, *run)
        named = f"{option[0]} {option[1].removeprefix('background,')}"
        assert (status, said.count("changes nothing")) == (0, 1)
        assert f"skylevel: {named} changes nothing: it is one of {job}, and no exposure" in said
        assert "changes nothing" not in run_here(capfd, tmp_path / "both", *run)[1]

    def test_a_colour_that_no_exposure_has(self, tmp_path: Path, capfd: Any) -> None:
        run = (write_raw(tmp_path / "in" / "n.dng"), "--output", tmp_path / "out", "--dry-run", "--set", "norms.R=2")
        assert "changes nothing" not in run_here(capfd, *run)[1]
        said = run_here(capfd, *run, "--set", "norms.Q=7")[1]
        assert "--set norms.Q=7 changes nothing: no exposure has that colour" in said


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves a folder to whoever brings any signature; 403 to others."""
    folder = tmp_path / "served"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self, *, with_body: bool = True) -> None:
            name, _, query = self.path.partition("?")
            path = folder / name.lstrip("/")
            if f"X-Amz-Signature={SECRET}" not in query or not path.is_file():
                self.send_error(403)
                return
            body = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"one"')
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        do_HEAD = partial(do_GET, with_body=False)  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    Handler.do_HEAD = lambda self: Handler.do_GET(self, with_body=False)
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=partial(http.serve_forever, poll_interval=0.05))
        thread.start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.mark.once
class TestSecrets:
    def signed(self, server: str, name: str, more: str = "") -> str:
        return f"http://{server}/{name}?X-Amz-Date=2024{more}&X-Amz-Signature={SECRET}{more}"

    def test_a_signed_url_is_fetched_and_its_signature_kept_nowhere(
        self, server: str, tmp_path: Path
    ) -> None:
        write_exposure(tmp_path / "served" / "jw01_cal.fits")
        write_truncated(tmp_path / "served" / "cut_cal.fits")
        inputs = [self.signed(server, name) for name in ("jw01_cal.fits", "cut_cal.fits", "gone_cal.fits")]
        process = skylevel("run", *inputs, "--output", tmp_path / "out", "--workers", 1)
        assert process.returncode == 1, process.stderr
        assert sorted(path.name for path in (tmp_path / "out").glob("*.fits")) == ["jw01_cal_rowbgsub.fits"]
        assert process.stderr.count(f"failed: http://{server}/cut_cal.fits: ") == 1
        assert process.stderr.count(f"failed: http://{server}/gone_cal.fits: ") == 1
        assert SECRET not in process.stdout + process.stderr
        for path in (tmp_path / "out").rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
        # The same exposure under a new signature.
        again = skylevel("run", self.signed(server, "jw01_cal.fits", "new"), "--output", tmp_path / "out", *ALONE)
        assert again.returncode == 0
        assert "1 done already" in again.stderr
        assert SECRET not in again.stdout + again.stderr
        # One file, however it is signed.
        twice = [self.signed(server, "jw01_cal.fits", more) for more in ("", "x")]
        assert len(make_plan(twice, str(tmp_path / "out"))) == 1

    def test_a_server_that_refuses(self, server: str, tmp_path: Path, capfd: Any) -> None:
        url = f"http://user:{SECRET}@{server}/jw01_cal.fits?token={SECRET}"
        status, said = run_here(capfd, url, "--output", tmp_path / "out")
        assert status == 1
        assert SECRET not in said
        assert f"failed: http://{server}/jw01_cal.fits: cannot be fetched" in said

    def test_messages_of_the_store(self, tmp_path: Path, capfd: Any) -> None:
        source = write_exposure(tmp_path / "e.fits")
        output = f"memory://user:{SECRET}@{tmp_path.name}/out"
        assert run_here(capfd, source, "--output", output)[0] == 0
        for command in (("status", output), ("status", f"{output}/none"), ("status", f"nosuch://u:{SECRET}@host/a")):
            skylevel_here(*command)
            printed = capfd.readouterr()
            assert SECRET not in printed.out + printed.err
        with warnings.catch_warnings(), pytest.raises(sl.SkylevelError) as caught:
            sl.open_program(f"{output}/none")
        assert SECRET not in str(caught.value)
