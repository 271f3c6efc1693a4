"""Names from outside: safe as a path's component, and harmless where they are shown."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylevel.io.names import printable, safe_component

ORDINARY = [
    "jw04250004001_03101_00001_nrcb1_cal", "DSC01234", "NRCA1", "F200W", "SONY ILCE-7S", "Canon EOS 6D", "Ångström",
    "M31 (2024-01-01T00:00:00)", "a.b.c", "x" * 100, "-dash", "50%", "a~b", "星",
]  # fmt: skip
ODD = [
    "", ".", "..", ".fits", "..fits", "...", ".hidden", "/", "//", "a/b", "../a", "/etc/passwd", "a\\b", "..\\a",
    "memory://a", "a\0b", "\0", "a\nb", "a\r", "\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "a\x7f", "\u202egpj.exe",
    "\u2066a\u2069", "\ufeffa", "a\u200bb", "a\u2028b", "e\u0301", "\udcff\udcfe", "caf\udce9", "\ud800", " ", " a",
    "a ", "a::b", "a.", "x" * 101, "x" * 200, "x" * 255, "é" * 51, "星" * 90, "*", "a?", "<a>", 'a"b', "a|b", "~root",
    "zarr.json", "__init__", "a~0123456789abcdef", "\xa0",
]  # fmt: skip


def assert_safe(name: str, limit: int = 100) -> None:
    assert name
    assert not name.startswith((".", "~", " "))
    assert "/" not in name
    assert "\\" not in name
    assert "::" not in name
    assert name.isprintable()
    assert len(name.encode("utf-8")) <= limit
    assert Path("folder", name).parent == Path("folder")
    assert os.path.normpath(name) == name


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_names_stay(name):
    assert safe_component(name) == name
    assert_safe(name)


@pytest.mark.parametrize("name", ODD)
def test_odd_names_become_safe(name):
    safe = safe_component(name)
    assert safe != name
    assert_safe(safe)
    assert re.search(r"~[0-9a-f]{16}\Z", safe)


def test_names_stay_apart():
    names = [*ORDINARY, *ODD]
    safe = [safe_component(name) for name in names]
    assert len(set(safe)) == len(names)
    # Nor does an outside name meet one that was made safe.
    assert not set(map(safe_component, safe)) & set(safe) - set(ORDINARY)


def test_names_are_the_same_in_every_process():
    assert safe_component("") == "_~e3b0c44298fc1c14"
    assert safe_component("../a") == "_a~" + safe_component("../a")[-16:]


@given(text=st.text(st.characters(), max_size=300), limit=st.integers(32, 200))
def test_any_text(text, limit):
    assert_safe(safe_component(text, limit=limit), limit)
    assert safe_component(text, limit=limit) == safe_component(text, limit=limit)


@given(st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name))
def test_any_name_a_file_can_have(name):
    assert_safe(safe_component(os.fsdecode(name)))
    assert printable(os.fsdecode(name)).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("two\r\nlines", "two\\r\\nlines"),
        ("a\u2028b", "a\\u2028b"),
        ("\u202egpj", "\\u202egpj"),
        ("caf\udce9.fits", "caf\\xe9.fits"),
        ("\ud800", "\\ud800"),
        ("Ångström 星 50 %", "Ångström 星 50 %"),
        (5, "5"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


def test_printable_in_a_poorer_encoding():
    assert printable("Å 星", encoding="ascii") == "\\xc5 \\u661f"


def test_printable_is_cut():
    assert printable("x" * 300, limit=20) == "x" * 17 + "..."


@given(st.text(st.characters(), max_size=100))
def test_printable_is_harmless(text):
    assert printable(text).isprintable()
    assert printable(text, encoding="ascii").isascii()
