"""Outputs appear whole or not at all, under any name, and follow no link."""

import pytest

from skylevel.io.atomic import aside, remove_asides, replacing

NAMES = ["o.fits", "x" * 250, "\u661f" * 83, "caf\udce9.fits", "a::b", "\x1b[2J", "..."]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_written(tmp_path, name):
    with replacing(tmp_path / name) as temporary:
        temporary.write_bytes(b"new")
        assert not (tmp_path / name).exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_leftovers_of_a_name_are_found_again(tmp_path, name):
    aside(tmp_path / name).touch()
    aside(tmp_path / "other").touch()
    remove_asides(tmp_path, [name])
    assert [path.name[:7] for path in tmp_path.iterdir()] == [".other."]


def interrupted(path):
    with replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt


def test_a_failure_leaves_what_stood_there(tmp_path):
    (tmp_path / "o").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "o")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("o", b"old")]


def test_a_planted_link_is_replaced(tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    (tmp_path / "o").symlink_to(precious)
    with replacing(tmp_path / "o") as temporary:
        temporary.write_bytes(b"new")
    assert precious.read_bytes() == b"mine"
    assert (tmp_path / "o").read_bytes() == b"new"
    assert not (tmp_path / "o").is_symlink()


def test_a_planted_link_among_the_leftovers_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "kept").touch()
    aside(tmp_path / "o").symlink_to(precious)
    remove_asides(tmp_path, ["o"])
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert (precious / "kept").exists()
