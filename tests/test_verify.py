# ruff: noqa: ARG005
"""What was written is looked at again: damaged outputs, chunks, records and plans are named, and healed by running."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from distributed import Client

import skylevel as sl
from programs import chunks_of, place_of, skylevel_here, stamps, write_exposure, write_exposures, write_raw
from skylevel.errors import SkylevelError
from skylevel.io.records import decode_record, encode_record
from skylevel.program.run import Target, export_program

pytestmark = pytest.mark.packages

ALONE = ("--partition", "1/1")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three exposures, levelled: one with checksums in its input, one without, and a raw."""
    folder = tmp_path_factory.mktemp("verify")
    write_exposures(folder / "in", 1)
    signed = write_exposure(folder / "in" / "signed.fits", 5)
    with fits.open(signed) as hdus:
        hdus.writeto(signed, overwrite=True, checksum=True)
    write_raw(folder / "in" / "night.dng")
    assert skylevel_here("run", folder / "in", "--output", folder / "out", *ALONE) == 0
    return folder


@pytest.fixture
def program(sound: Path, tmp_path: Path) -> Path:
    """A copy of them with the times of the inputs, so that nothing is to do."""
    shutil.copytree(sound, tmp_path / "p", symlinks=True)
    return tmp_path / "p"


def contents(folder: Path) -> dict[str, bytes]:
    """The outputs; DATE, when it was written, left out."""
    found = {}
    for path in sorted(folder.glob("*.fits")):
        with fits.open(path) as hdus:
            found[path.name] = b"".join(np.ascontiguousarray(h.data).tobytes() for h in hdus if h.data is not None)
    return found


def run(program: Path, *options: object) -> int:
    return skylevel_here("run", program / "in", "--output", program / "out", *ALONE, *options)


def export(program: Path, client: Client) -> dict[str, str]:
    """Write the outputs again; why each exposure failed, or the whole."""
    try:
        return export_program(str(program / "out"), target=Target(client=client)).failed
    except SkylevelError as error:
        return {"": str(error)}


def opened(program: Path) -> None:
    """Open a program whose store is damaged: that works, or is refused in one line."""
    with suppress(SkylevelError):
        sl.open_program(program / "out")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def hdu_data(path: Path, name: str) -> int:
    with fits.open(path) as hdus:
        return int(hdus[name].fileinfo()["datLoc"]) + 1000


OUTPUTS: dict[str, Callable[[Path], object]] = {
    "e00-truncated": lambda out: os.truncate(out / "e00_rowbgsub.fits", 9000),
    "e00-cut at an HDU's end": lambda out: cut_last_hdu(out / "e00_rowbgsub.fits"),
    "e00-empty": lambda out: (out / "e00_rowbgsub.fits").write_bytes(b""),
    "e00-missing": lambda out: (out / "e00_rowbgsub.fits").unlink(),
    "e00-other": lambda out: shutil.copy(out / "signed_rowbgsub.fits", out / "e00_rowbgsub.fits"),
    "e00-sci": lambda out: flip(out / "e00_rowbgsub.fits", hdu_data(out / "e00_rowbgsub.fits", "SCI")),
    "e00-err": lambda out: flip(out / "e00_rowbgsub.fits", hdu_data(out / "e00_rowbgsub.fits", "ERR")),
    "e00-header": lambda out: flip(out / "e00_rowbgsub.fits", 80 * 6 + 20),
    "signed-sci": lambda out: flip(out / "signed_rowbgsub.fits", hdu_data(out / "signed_rowbgsub.fits", "SCI")),
    "night-image": lambda out: flip(out / "night.bkg_subtracted.fits", 20_000),
    "night-truncated": lambda out: os.truncate(out / "night.bkg_subtracted.fits", 50_000),
}


def cut_last_hdu(path: Path) -> None:
    with fits.open(path) as hdus:
        end = int(hdus[-1].fileinfo()["hdrLoc"])
    os.truncate(path, end)


class TestOutputs:
    @pytest.mark.parametrize("damage", OUTPUTS)
    def test_a_damaged_output_does_not_count_as_done(self, program: Path, capfd: Any, damage: str) -> None:
        before = contents(program / "out")
        assert skylevel_here("status", program / "out", "--verify") == 0
        assert "3 done, 0 failed, 0 left" in capfd.readouterr().out
        OUTPUTS[damage](program / "out")
        skylevel_here("status", program / "out", "--verify")
        said = capfd.readouterr().out
        assert "2 done, 0 failed, 1 left" in said
        assert f"left  {damage.partition('-')[0]}" in said
        assert run(program, "--verify", "--dry-run") == 0
        assert run(program, "--verify") == 0
        assert contents(program / "out") == before
        assert [s.state for s in sl.status(program / "out", verify=True)] == ["done"] * 3

    @pytest.mark.parametrize("damage", ["e00-truncated", "e00-cut at an HDU's end", "e00-empty", "night-truncated"])
    def test_a_truncated_one_never_counts(self, program: Path, damage: str) -> None:
        before = contents(program / "out")
        OUTPUTS[damage](program / "out")
        assert [s.state for s in sl.status(program / "out")].count("left") == 1
        assert run(program) == 0
        assert contents(program / "out") == before

    def test_what_is_sound_is_left_alone(self, program: Path) -> None:
        # The copy's inputs are elsewhere, which its plan does not know yet.
        assert run(program) == 0
        before = stamps(program / "out")
        assert run(program, "--verify") == 0
        assert {n for n, s in stamps(program / "out").items() if before.get(n) != s} == {"skylevel.log"}

    @pytest.mark.parametrize("damage", OUTPUTS)
    def test_damage_is_seen_without_the_input(self, program: Path, damage: str) -> None:
        shutil.rmtree(program / "in")
        assert [s.state for s in sl.status(program / "out", verify=True)] == ["done"] * 3
        OUTPUTS[damage](program / "out")
        assert [s.state for s in sl.status(program / "out", verify=True)].count("left") == 1

    @pytest.mark.parametrize("hdu", ["PRIMARY", "SCI", "ERR", "DQ"])
    @pytest.mark.parametrize("name", ["e00", "signed"])
    def test_a_change_of_any_hdu_is_seen(self, program: Path, name: str, hdu: str) -> None:
        path = program / "out" / f"{name}_rowbgsub.fits"
        with fits.open(path) as hdus:
            place = int(hdus[hdu].fileinfo()["hdrLoc"]) + 80 * 6 + 20
        flip(path, place)
        assert [s.state for s in sl.status(program / "out", verify=True)].count("left") == 1


class TestChunks:
    @pytest.mark.parametrize("array", ["source_mask", "row_level", "background", "record"])
    @pytest.mark.parametrize("how", ["flipped", "gone", "empty", "short"])
    def test_a_damaged_chunk(self, program: Path, capfd: Any, client: Client, array: str, how: str) -> None:
        before, chunk = contents(program / "out"), chunks_of(program / "out", "e00")[array]
        whole = chunk.read_bytes()
        if how == "gone":
            chunk.unlink()
        else:
            damaged = {"empty": b"", "short": whole[:-5], "flipped": whole[:9] + bytes([whole[9] ^ 1]) + whole[10:]}
            chunk.write_bytes(damaged[how])
        skylevel_here("status", program / "out", "--verify")
        assert "2 done, 0 failed, 1 left" in capfd.readouterr().out
        for path in (program / "out").glob("*.fits"):
            path.unlink()
        (failed,) = export(program, client).values()
        assert "e00.fits: " in failed
        assert "run the program again" in failed
        # Beside missing outputs, by running again.
        assert run(program) == 0
        assert contents(program / "out") == before
        assert [s.state for s in sl.status(program / "out", verify=True)] == ["done"] * 3

    def test_a_damaged_chunk_beside_whole_outputs(self, program: Path) -> None:
        before, chunk = contents(program / "out"), chunks_of(program / "out", "e00")["source_mask"]
        whole = chunk.read_bytes()
        flip(chunk, 9)
        assert run(program, "--verify") == 0
        assert chunk.read_bytes() == whole
        assert contents(program / "out") == before

    def test_a_failed_exposure_is_said_to_have_failed(self, program: Path, capfd: Any, client: Client) -> None:
        (program / "in" / "cut.fits").write_bytes(b"SIMPLE  =")
        assert run(program) == 1
        assert capfd.readouterr().err.count("cut.fits: ") == 1
        (failed,) = export(program, client).values()
        assert "not measured yet" not in failed
        assert "header is damaged" in failed


def edited(path: Path, edit: Callable[[Any], Any]) -> None:
    document = json.loads(path.read_text())
    result = edit(document)
    path.write_text(json.dumps(document if result is None else result))


def in_plan(edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda store: edited(store / "plan.json", edit)


def in_exposure(**values: Any) -> Callable[[Path], None]:
    return in_plan(lambda plan: plan["exposures"][0].update(values))


PLANS: dict[str, Callable[[Path], None]] = {
    "no JSON": lambda store: (store / "plan.json").write_text("{"),
    "no text": lambda store: (store / "plan.json").write_bytes(b"\xff\xfe\x00"),
    "deep": lambda store: (store / "plan.json").write_text("[" * 100_000),
    "empty": lambda store: (store / "plan.json").write_text(""),
    "a list": in_plan(lambda plan: [plan]),
    "no exposures": in_plan(lambda plan: plan.pop("exposures") and None),
    "exposures nested": in_plan(lambda plan: plan.update(exposures=[plan["exposures"]])),
    "exposures twice": in_plan(lambda plan: plan.update(exposures=plan["exposures"] * 2)),
    "exposures null": in_plan(lambda plan: plan.update(exposures=None)),
    "recipes null": in_plan(lambda plan: plan.update(recipes=None)),
    "recipes of another kind": in_plan(lambda plan: plan.update(recipes=[{"recipe": "no", "settings": 5}])),
    "settings": in_plan(lambda plan: plan["recipes"][0].update(settings={"box_size": -5})),
    "recipe -1": in_exposure(recipe=-1),
    "recipe text": in_exposure(recipe="0"),
    "recipe 99": in_exposure(recipe=99),
    "source 5": in_exposure(source=5),
    "source relative": in_exposure(source="../../etc/passwd"),
    "name a path": in_exposure(name="../../e00"),
    "name null": in_exposure(name=None),
    "name empty": in_exposure(name=""),
    "outputs elsewhere": in_exposure(outputs={"levelled": "../e00_rowbgsub.fits"}),
    "outputs another file": in_exposure(outputs={"levelled": "precious.txt"}),
    "outputs absolute": in_exposure(outputs={"levelled": "/tmp/e00_rowbgsub.fits"}),
    "outputs list": in_exposure(outputs=["levelled"]),
    "outputs none": in_exposure(outputs={}),
    "outputs unknown": in_exposure(outputs={"levelled": "e00_rowbgsub.fits", "other": "x"}),
    "place elsewhere": in_exposure(place=["../../victim", 0]),
    "place absolute": in_exposure(place=["/victim", 0]),
    "place negative": in_exposure(place=["NRCA1/F200W", -1]),
    "place text": in_exposure(place="NRCA1"),
    "place huge": in_exposure(place=["NRCA1/F200W", 10**30]),
    "place of another": in_plan(lambda plan: plan["exposures"][0].update(place=plan["exposures"][2]["place"])),
    "facts 5": in_exposure(facts=5),
    "facts shape": in_exposure(facts=["jwst", [10**9, 10**9], {}]),
    "facts shape text": in_exposure(facts=["jwst", "ab", {}]),
    "facts nested": in_exposure(facts=["jwst", [160, 200], {"fast_axis": [[1]]}]),
    "facts list": in_exposure(facts=["jwst", [160, 200], []]),
    "facts kind": in_exposure(facts=["other", [160, 200], {}]),
    "layout": in_exposure(layout="flat"),
    "identity list": in_exposure(identity=[1, 2]),
    "identity text": in_exposure(identity="x"),
    "size text": in_exposure(identity={"name": "e00.fits", "size": "large"}),
    "access": in_exposure(access="http://elsewhere/x.fits"),
}


def strangers_to(program: Path) -> set[Path]:
    """All files and folders around a program's store."""
    return {path for path in program.parent.rglob("*") if "program.zarr" not in str(path)}


@pytest.mark.once
class TestPlans:
    @pytest.mark.parametrize("damage", PLANS)
    def test_a_damaged_plan_is_named_and_healed(
        self, program: Path, capfd: Any, client: Client, damage: str
    ) -> None:
        before, around = contents(program / "out"), strangers_to(program)
        (program / "out" / "precious.txt").write_text("mine")
        PLANS[damage](program / "out" / "program.zarr")
        skylevel_here("status", program / "out", "--verify")
        assert len(capfd.readouterr().err) < 1000
        export(program, client)
        assert run(program, "--dry-run") == 0
        capfd.readouterr()
        assert run(program, "--verify") == 0, capfd.readouterr()
        assert contents(program / "out") == before
        assert [s.state for s in sl.status(program / "out", verify=True)] == ["done"] * 3
        assert (program / "out" / "precious.txt").read_text() == "mine"
        strangers = strangers_to(program) - around
        assert {p.name for p in strangers} == {"precious.txt"}


def metadata(store: Path, node: str, array: str = "row_level") -> Path:
    return store / node / array / "zarr.json"


ZARR: dict[str, Callable[[Path, str], None]] = {
    "array gone": lambda store, node: metadata(store, node).unlink(),
    "array empty": lambda store, node: metadata(store, node).write_text(""),
    "array deep": lambda store, node: metadata(store, node).write_text("[" * 100_000),
    "array no text": lambda store, node: metadata(store, node).write_bytes(b"\xff\x00"),
    "array a list": lambda store, node: metadata(store, node).write_text("[]"),
    "attributes a list": lambda store, node: edited(metadata(store, node), lambda m: m.update(attributes=[])),
    "chunks null": lambda store, node: edited(metadata(store, node), lambda m: m.update(chunk_grid=None)),
    "chunk shape null": lambda store, node: edited(
        metadata(store, node), lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=None)
    ),
    "chunk shape 0": lambda store, node: edited(
        metadata(store, node), lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=[0, 0])
    ),
    "codecs": lambda store, node: edited(metadata(store, node), lambda m: m.update(codecs=5)),
    "codecs none": lambda store, node: edited(metadata(store, node), lambda m: m.update(codecs=[])),
    "data type": lambda store, node: edited(metadata(store, node), lambda m: m.update(data_type="complex999")),
    "another data type": lambda store, node: edited(metadata(store, node), lambda m: m.update(data_type="int16")),
    "shape": lambda store, node: edited(metadata(store, node), lambda m: m.update(shape=[-1, "x"])),
    "shape huge": lambda store, node: edited(metadata(store, node), lambda m: m.update(shape=[10**12, 160])),
    "dimension names": lambda store, node: edited(metadata(store, node), lambda m: m.update(dimension_names=[5])),
    "dimensions null": lambda store, node: edited(metadata(store, node), lambda m: m.update(dimension_names=None)),
    "format": lambda store, node: edited(metadata(store, node), lambda m: m.update(zarr_format=2)),
    "a group": lambda store, node: edited(metadata(store, node), lambda m: m.update(node_type="group")),
    "fill value": lambda store, node: edited(metadata(store, node), lambda m: m.update(fill_value={})),
    "record gone": lambda store, node: metadata(store, node, "record").unlink(),
    "record damaged": lambda store, node: metadata(store, node, "record").write_text("{}"),
    "coordinate": lambda store, node: metadata(store, node, "mesh_y").write_text("{"),
    "names": lambda store, node: metadata(store, node, "exposure").write_text("[]"),
    "node": lambda store, node: (store / node / "zarr.json").write_text("{"),
    "node attributes": lambda store, node: edited(store / node / "zarr.json", lambda m: m.update(attributes=[])),
    "root": lambda store, node: (store / "zarr.json").write_text("{"),
    "root a list": lambda store, node: (store / "zarr.json").write_text("[]"),
    "root gone": lambda store, node: (store / "zarr.json").unlink(),
    "consolidated": lambda store, node: edited(
        store / "zarr.json", lambda m: m.update(consolidated_metadata={"metadata": 5})
    ),
    "root attributes": lambda store, node: edited(store / "zarr.json", lambda m: m.update(attributes=[])),
    "node gone": lambda store, node: shutil.rmtree(store / node),
    "array a file": lambda store, node: (shutil.rmtree(store / node / "row_level"),
                                         (store / node / "row_level").write_text("x")),
    "stray folder": lambda store, node: (store / node / "stray").mkdir(),
    "failure damaged": lambda store, node: ((store / "failed").mkdir(),
                                            (store / "failed" / "e00.json").write_text("[")),
    "failures a file": lambda store, node: (store / "failed").write_text("x"),
}  # fmt: skip


class TestStores:
    @pytest.mark.parametrize("damage", ZARR)
    def test_damaged_metadata_are_healed(self, program: Path, capfd: Any, client: Client, damage: str) -> None:
        before, store = contents(program / "out"), program / "out" / "program.zarr"
        ZARR[damage](store, place_of(program / "out", "e00").node)
        skylevel_here("status", program / "out", "--verify")
        opened(program)
        for path in (program / "out").glob("*.fits"):
            path.unlink()
        export(program, client)
        capfd.readouterr()
        assert run(program, "--verify") == 0, capfd.readouterr()
        assert contents(program / "out") == before
        assert [s.state for s in sl.status(program / "out", verify=True)] == ["done"] * 3
        names = [str(n) for leaf in sl.open_program(program / "out").leaves for n in leaf["exposure"].values]
        assert sorted(names) == ["e00", "night", "signed"]

    @pytest.mark.parametrize("values", [{"checksums": {"row_level": 5}}, {"checksums": {"other": ["00"]}},
                                        {"small": {"x": 5}},
                                        {"facts": {"date_obs": [1]}}, {"outputs": 5}, {"outputs": {"levelled": 5}},
                                        {"outputs": {"levelled": {"size": "x", "sums": [1]}}}, {"exported": 5},
                                        {"metrics": {"unlevelled": "many"}}, {"name": 5}])  # fmt: skip
    def test_records_of_another_form(self, program: Path, capfd: Any, values: dict[str, Any]) -> None:
        before, chunk = contents(program / "out"), chunks_of(program / "out", "e00")["record"]
        record = decode_record(chunk.read_bytes())
        assert record is not None
        chunk.write_bytes(encode_record(record | values))
        skylevel_here("status", program / "out", "--verify")
        opened(program)
        capfd.readouterr()
        assert run(program, "--verify") in (0, 1), capfd.readouterr()
        assert contents(program / "out") == before


class TestLinks:
    def planted(self, program: Path, link: Path) -> Path:
        """Somebody else's folder, to which a link leads in place of one of the store's."""
        victim = program / "victim"
        victim.mkdir()
        (victim / "precious").write_text("mine")
        if link.is_dir():
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.symlink_to(victim)
        return victim

    @pytest.mark.parametrize("where", ["", "{node}", "{parent}", "{node}/row_level", "{node}/record", "failed",
                                       "exposures"])  # fmt: skip
    def test_links_in_a_store_are_not_followed(self, program: Path, capfd: Any, where: str) -> None:
        node = place_of(program / "out", "e00").node
        link = program / "out" / "program.zarr" / where.format(node=node, parent=node.split("/")[0])
        victim = self.planted(program, link)
        (program / "in" / "cut.fits").write_bytes(b"SIMPLE  =")
        status = run(program, "--overwrite")
        said = capfd.readouterr().err
        assert [path.name for path in victim.rglob("*")] == ["precious"]
        assert status in (1, 2)
        assert "is a link" in said
        link.unlink()
        assert run(program, "--overwrite") == 1

    def test_a_log_that_is_a_link_or_a_pipe(self, program: Path, capfd: Any) -> None:
        log, victim = program / "out" / "skylevel.log", program / "victim.txt"
        victim.write_text("mine")
        log.unlink()
        log.symlink_to(victim)
        assert run(program) == 2
        assert "skylevel.log: is a link" in capfd.readouterr().err
        assert victim.read_text() == "mine"
        log.unlink()
        os.mkfifo(log)
        assert run(program) == 2
        assert str(log) in capfd.readouterr().err

    def test_an_output_that_is_a_link_is_replaced(self, program: Path) -> None:
        output, victim = program / "out" / "e00_rowbgsub.fits", program / "victim.txt"
        victim.write_text("mine")
        output.unlink()
        output.symlink_to(victim)
        assert run(program) == 0
        assert not output.is_symlink()
        assert victim.read_text() == "mine"
