"""Associations rewritten for the levelled exposures."""

import json
from pathlib import Path
from typing import Any

import pytest

from programs import skylevel_here, write_exposures, write_truncated

pytestmark = pytest.mark.packages


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Two sound exposures, one that is cut short, and a background that is not levelled."""
    folder = tmp_path / "program"
    write_exposures(folder, 2)
    write_truncated(folder / "cut.fits")
    return folder


def associate(path: Path, *members: tuple[str, str], **further: Any) -> Path:
    listed = [{"expname": name, "exptype": kind, **further} for name, kind in members]
    products = [{"name": "jw1-o001_t001", "members": listed}]
    path.write_text(json.dumps({"asn_type": "image3", "asn_pool": "none", "products": products}))
    return path


def run(*inputs: object, output: Path, options: tuple[object, ...] = ("--partition", "1/1")) -> int:
    return skylevel_here("run", *inputs, "--output", output, *options)


def members_of(path: Path) -> list[tuple[str, str]]:
    (product,) = json.loads(path.read_text())["products"]
    return [(member["expname"], member["exptype"]) for member in product["members"]]


class TestWrittenAgain:
    def test_members_are_the_levelled_files_and_all_else_stays(self, program, tmp_path, capsys):
        given = associate(
            program / "jw1_asn.json", ("e00.fits", "science"), ("cut.fits", "science"), ("sky.fits", "background"),
            ("e01.fits", "science"), tweakreg_catalog="cat.ecsv", group_id="a",
        )  # fmt: skip
        assert run(given, output=tmp_path / "out") == 1
        written = tmp_path / "out" / "jw1_rowbgsub_asn.json"
        assert members_of(written) == [
            ("e00_rowbgsub.fits", "science"), (str(program / "sky.fits"), "background"),
            ("e01_rowbgsub.fits", "science"),
        ]  # fmt: skip
        assert all((tmp_path / "out" / name).exists() for name, kind in members_of(written) if kind == "science")
        before, after = (json.loads(path.read_text()) for path in (given, written))
        assert after["asn_pool"] == "none"
        assert after["products"][0]["name"] == before["products"][0]["name"]
        assert {m["tweakreg_catalog"] for m in after["products"][0]["members"]} == {str(program / "cat.ecsv")}
        assert {m["group_id"] for m in after["products"][0]["members"]} == {"a"}
        assert "jw1_rowbgsub_asn.json: left out, as they failed: cut.fits" in capsys.readouterr().err

    def test_what_is_mended_comes_back(self, program, tmp_path):
        given = associate(program / "jw1_asn.json", ("e00.fits", "science"), ("cut.fits", "science"))
        assert run(given, output=tmp_path / "out") == 1
        (program / "cut.fits").unlink()
        (program / "e01.fits").rename(program / "cut.fits")
        assert run(given, output=tmp_path / "out") == 0
        assert [name for name, _ in members_of(tmp_path / "out" / "jw1_rowbgsub_asn.json")] == [
            "e00_rowbgsub.fits", "cut_rowbgsub.fits",
        ]  # fmt: skip

    def test_it_appears_whole_and_follows_no_link(self, program, tmp_path):
        given = associate(program / "jw1_asn.json", ("e00.fits", "science"))
        (tmp_path / "out").mkdir()
        (tmp_path / "mine").write_text("kept")
        (tmp_path / "out" / "jw1_rowbgsub_asn.json").symlink_to(tmp_path / "mine")
        (tmp_path / "out" / f".jw1_rowbgsub_asn.json.{'0123456789abcdef' * 2}.tmp").touch()
        assert run(given, output=tmp_path / "out") == 0
        assert (tmp_path / "mine").read_text() == "kept"
        assert [name for name, _ in members_of(tmp_path / "out" / "jw1_rowbgsub_asn.json")] == ["e00_rowbgsub.fits"]
        assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".tmp"]

    def test_shares_of_a_program_make_one(self, program, tmp_path):
        members = [(name, "science") for name in ("e00.fits", "cut.fits", "e01.fits")]
        given = associate(program / "jw1_asn.json", *members)
        for share in ("1/3", "2/3", "3/3"):
            run(given, output=tmp_path / "out", options=("--partition", share))
        assert [name for name, _ in members_of(tmp_path / "out" / "jw1_rowbgsub_asn.json")] == [
            "e00_rowbgsub.fits", "e01_rowbgsub.fits",
        ]  # fmt: skip

    def test_in_the_folder_of_the_inputs_too(self, program):
        """The association that was given is not touched."""
        given = associate(program / "jw1_asn.json", ("e00.fits", "science"))
        before = given.read_bytes()
        assert run(given, output=program) == 0
        assert given.read_bytes() == before
        assert members_of(program / "jw1_rowbgsub_asn.json") == [("e00_rowbgsub.fits", "science")]


    def test_named_in_a_list(self, program, tmp_path):
        associate(program / "jw1_asn.json", ("e00.fits", "science"))
        (program / "list.txt").write_text("jw1_asn.json\ne01.fits\n")
        assert run(f"@{program / 'list.txt'}", output=tmp_path / "out") == 0
        assert members_of(tmp_path / "out" / "jw1_rowbgsub_asn.json") == [("e00_rowbgsub.fits", "science")]


class TestNotWritten:
    def test_without_a_levelled_exposure(self, program, tmp_path, capsys):
        given = associate(program / "jw1_asn.json", ("cut.fits", "science"), ("sky.fits", "background"))
        assert run(given, output=tmp_path / "out") == 1
        assert not list((tmp_path / "out").glob("*asn.json"))
        assert "not written: no exposure of it was levelled" in capsys.readouterr().err

    def test_of_files_that_the_pipeline_does_not_open(self, program, tmp_path):
        given = associate(program / "jw1_asn.json", ("e00.fits", "science"))
        assert run(given, output=tmp_path / "out", options=("--partition", "1/1", "--layout", "primary")) == 0
        assert not list((tmp_path / "out").glob("*asn.json"))
