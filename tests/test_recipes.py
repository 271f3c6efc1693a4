"""Settings: defaults, checks, presets, text from the command line, TOML, and the hash of a recipe."""

import dataclasses
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylevel.errors import SettingsError, SkylevelError
from skylevel.io.masks import read_mask
from skylevel.program.inputs import expand_inputs
from skylevel.recipes import RECIPES, Channels, Rows, canonical_hash, recipe_named
from skylevel.settings_file import read_settings

ROWS = {
    "box_size": 50, "filter_size": 3, "sigma_clip": 3.0, "threshold": 2.0, "kernel_fwhm": 3.0, "kernel_size": 3,
    "n_pixels": 5, "exclude_percentile": 10.0, "positive_only": True, "axis": "auto", "n_levels": 32,
    "contrast": 0.001,
}  # fmt: skip
CHANNELS = {
    "box_size": 100, "filter_size": 11, "sigma_clip": 5.0, "exclude_percentile": 10.0, "kernel_stddev": 1.0,
    "estimator": "mode", "norms": {"R": 1.34, "G": 1.0, "B": 1.25}, "method": "filled", "pedestal": 0.0,
}  # fmt: skip
EVERY_FIELD = [(cls, setting) for cls in RECIPES.values() for setting in dataclasses.fields(cls)]


@pytest.mark.parametrize(("recipe", "expected"), [(Rows(), ROWS), (Channels(), CHANNELS)])
def test_the_defaults_are_the_notebooks_numbers(recipe, expected):
    settings = recipe.to_dict()
    assert {name: settings[name] for name in expected} == expected
    assert {name: type(settings[name]) for name in expected} == {name: type(v) for name, v in expected.items()}


@pytest.mark.parametrize(("cls", "setting"), EVERY_FIELD, ids=lambda value: getattr(value, "name", None))
def test_every_field_says_what_it_is_and_where_it_comes_from(cls, setting):
    assert setting.metadata["doc"].rstrip(".")
    assert setting.metadata["source"]
    assert setting.metadata["decides"] in ("mask", "measurement", "group", "levelled", "product")


def test_a_recipe_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Rows().box_size = 40


def test_a_recipe_takes_keywords_only():
    with pytest.raises(TypeError):
        Rows(40)


@pytest.mark.parametrize("recipe", [Rows(box_size=32, positive_only=False), Channels(norms={"R": 2.0})])
def test_a_recipe_travels_to_a_worker(recipe):
    back = pickle.loads(pickle.dumps(recipe))
    assert back == recipe
    assert back.hash == recipe.hash


@pytest.mark.parametrize(
    ("cls", "settings", "says"),
    [
        (Rows, {"box_size": 0}, "box_size = 0: needs a value of at least 1"),
        (Rows, {"box_size": 2.5}, "needs a whole number"),
        (Rows, {"box_size": True}, "needs a number"),
        (Rows, {"box_size": None}, "needs a number"),
        (Rows, {"box_size": "wide"}, "box_size = 'wide': needs a number"),
        (Rows, {"box_size": math.inf}, "needs a number"),
        (Rows, {"sigma_clip": 0}, "needs a value above 0"),
        (Rows, {"sigma_clip": math.nan}, "needs a number"),
        (Rows, {"filter_size": 4}, "needs an odd whole number"),
        (Rows, {"kernel_size": 2}, "needs an odd whole number"),
        (Rows, {"exclude_percentile": 100.5}, "needs a value from 0 to 100"),
        (Rows, {"exclude_percentile": -1}, "needs a value from 0 to 100"),
        (Rows, {"contrast": 1.5}, "needs a value from 0 to 1"),
        (Rows, {"positive_only": "yes"}, "needs true or false"),
        (Rows, {"positive_only": 1}, "needs true or false"),
        (Rows, {"axis": "row"}, r"needs one of auto, rows, columns \(did you mean 'rows'\?\)"),
        (Channels, {"norms": {"R": 0}}, r"channels\.norms\.R = 0: needs a value above 0"),
        (Channels, {"norms": [1.0]}, "needs a factor by colour"),
        (Channels, {"method": "plane"}, "did you mean 'planes'"),
        (Channels, {"estimator": "sum"}, "needs one of mode, median, mean"),
    ],
)
def test_a_value_outside_what_is_allowed_is_refused(cls, settings, says):
    with pytest.raises(SettingsError, match=says) as caught:
        cls(**settings)
    assert cls.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (Rows, {"exclude_percentile": 0}),
        (Rows, {"exclude_percentile": 100}),
        (Rows, {"box_size": 1, "filter_size": 1, "kernel_size": 1, "n_pixels": 1}),
        (Rows, {"threshold": -1}),
        (Channels, {"pedestal": -5}),
        (Channels, {"norms": {}}),
    ],
)
def test_the_ends_of_a_range_are_allowed(cls, settings):
    made = cls(**settings)
    assert {name: getattr(made, name) for name in settings} == settings


def test_text_becomes_the_fields_type():
    made = Rows().replace({"box_size": "64", "threshold": "1.5", "positive_only": "False", "axis": "columns"})
    assert made == Rows(box_size=64, threshold=1.5, positive_only=False, axis="columns")
    assert type(made.box_size) is int
    assert type(made.threshold) is float


def test_a_dotted_name_reaches_into_a_mapping():
    made = Channels().replace({"norms.R": "1", "norms.E": 2})
    assert made.norms == {"R": 1.0, "G": 1.0, "B": 1.25, "E": 2.0}
    assert Channels().norms == {"R": 1.34, "G": 1.0, "B": 1.25}


@pytest.mark.parametrize(
    ("name", "near"), [("box_sise", "box_size"), ("n_pixel", "n_pixels"), ("kernal_fwhm", "kernel_fwhm")]
)
def test_an_unknown_setting_is_refused_with_the_nearest_name(name, near):
    with pytest.raises(SettingsError, match=f"unknown setting '{name}'.*did you mean '{near}'"):
        Rows().replace({name: 1})


def test_a_name_like_no_other_lists_the_known_ones():
    with pytest.raises(SettingsError, match="known: method, box_size") as caught:
        Rows().replace({"zzz": 1})
    assert "did you mean" not in str(caught.value)


def test_a_single_value_has_no_parts():
    with pytest.raises(SettingsError, match=r"box_size is a single value, so 'box_size\.y' names nothing"):
        Rows().replace({"box_size.y": 1})


def test_replace_leaves_the_original_alone():
    original = Channels()
    original.replace({"norms.R": 3.0, "box_size": 10})
    assert original == Channels()


def test_a_recipe_does_not_share_its_mapping_with_the_caller():
    norms = {"R": 2.0}
    made = Channels(norms=norms)
    norms["R"] = 9.0
    assert made.norms == {"R": 2.0}


@pytest.mark.parametrize("cls", RECIPES.values())
def test_the_notebook_preset_is_the_default(cls):
    assert cls.preset("notebook") == cls()


def test_the_planes_preset_measures_planes():
    assert Channels.preset("planes") == Channels(method="planes")


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match="rows: unknown preset 'nonesuch'; known: notebook"):
        Rows.preset("nonesuch")


@pytest.mark.parametrize(("name", "cls"), [("rows", Rows), ("channels", Channels)])
def test_a_recipe_is_found_by_its_name(name, cls):
    assert recipe_named(name) is cls


def test_an_unknown_recipe_is_refused_with_the_nearest_name():
    with pytest.raises(SettingsError, match="did you mean 'channels'"):
        recipe_named("channel")


def test_settings_are_read_from_toml(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('[rows]\nbox_size = 64\naxis = "columns"\n[channels]\npedestal = 100\n[channels.norms]\nR = 1.5\n')
    tables = read_settings(path)
    assert Rows(**tables["rows"]) == Rows(box_size=64, axis="columns")
    assert Channels(**tables["channels"]) == Channels(pedestal=100.0, norms={"R": 1.5})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[rows\n", "cannot read the settings"),
        (b"box_size = 3\n", r"'box_size' stands outside a table; put it under \[rows\] or \[channels\]"),
        (b"[row]\nbox_size = 3\n", "did you mean 'rows'"),
        (b"\xff\xfe", "cannot read the settings"),
    ],
)
def test_a_wrong_settings_file_is_refused(tmp_path, content, says):
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=says) as caught:
        read_settings(path)
    assert "\n" not in str(caught.value)


def test_a_missing_settings_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"absent\.toml"):
        read_settings(tmp_path / "absent.toml")


def test_the_hash_is_the_same_in_another_process():
    code = "from skylevel.recipes import Rows, Channels; print(Rows().hash, Channels().hash)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [Rows().hash, Channels().hash]


@pytest.mark.parametrize(
    ("cls", "change"),
    [
        (Rows, {"box_size": 51}),
        (Rows, {"threshold": 2.1}),
        (Rows, {"positive_only": False}),
        (Rows, {"contrast": 0.002}),
        (Channels, {"norms.R": 1.0}),
        (Channels, {"pedestal": 1}),
    ],
)
def test_a_changed_setting_changes_the_hash(cls, change):
    assert cls().replace(change).hash != cls().hash


def test_the_hash_does_not_depend_on_how_a_value_was_written():
    assert Rows(threshold=2, box_size="50").hash == Rows().hash
    assert Channels(norms={"B": 1.25, "G": 1, "R": "1.34"}).hash == Channels().hash


def test_what_they_decide_divides_the_settings():
    rows = Rows()
    decided = [rows.settings_of(what) for what in ("mask", "measurement", "product", "group")]
    assert "box_size" in decided[0]
    assert "positive_only" in decided[1]
    assert "contrast" in decided[2]
    assert "together" in decided[3]
    assert sum(map(len, decided)) == len(dataclasses.fields(rows))
    assert rows.settings_of("mask", "measurement") == decided[0] | decided[1]


@given(
    box_size=st.integers(1, 4096),
    filter_size=st.integers(0, 20).map(lambda n: 2 * n + 1),
    threshold=st.floats(-10, 10),
    exclude_percentile=st.floats(0, 100),
    positive_only=st.booleans(),
    axis=st.sampled_from(["auto", "rows", "columns"]),
)
def test_a_recipe_survives_json_and_text(**settings):
    recipe = Rows(**settings)
    assert Rows(**json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Rows().replace({name: str(value) for name, value in recipe.to_dict().items()}) == recipe


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), min_size=2, max_size=6))
def test_the_canonical_hash_ignores_the_order_of_keys(values):
    assert canonical_hash(values) == canonical_hash(dict(reversed(values.items())))
    assert canonical_hash(values) != canonical_hash(dict(list(values.items())[1:]))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[rows]\nbox_size = " + "[" * 3000 + "\n", "nested too deep"),
        ("[rows]\nbox_size = " + "9" * 5000 + "\n", "cannot read the settings"),
        ("[rows]\nbox_size = 0x" + "f" * 6000 + "\n", r"rows\.box_size = \(int\): needs a number"),
        # How deep it may be to be written out depends on the Python.
        ("[rows.box_size" + ".a" * 3000 + "]\n", r"rows\.box_size = (\(dict\)|\{'a': \{.* \.\.\.): needs a number"),
        ('[rows]\naxis = "' + "a" * 3000 + '"\n', r"rows\.axis = 'aaaaaa.* \.\.\.: needs one of auto, rows, columns"),
    ],
)
def test_what_no_setting_can_be_is_one_short_line(tmp_path, content, says):
    path = tmp_path / "settings.toml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=says) as caught:
        Rows().replace(read_settings(path)["rows"])
    assert len(str(caught.value)) < 300 + len(str(path))


def test_settings_may_begin_with_a_mark_of_utf_8(tmp_path):
    (tmp_path / "settings.toml").write_text("[rows]\nbox_size = 64\n", encoding="utf-8-sig")
    assert read_settings(tmp_path / "settings.toml") == {"rows": {"box_size": 64}}


def test_what_has_no_end_is_no_file_of_settings_or_mask(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "hole").open("wb") as stream:
        stream.truncate(8 << 30)
    for path, says in ((tmp_path / "pipe", "is no regular file"), ("/dev/zero", "is no regular file"),
                       (tmp_path / "hole", "is too long"), (tmp_path, "is no regular file")):  # fmt: skip
        with pytest.raises(SettingsError, match=says):
            read_settings(Path(path))
        with pytest.raises(SettingsError, match=says):
            Rows(mask=str(path))
        with pytest.raises(SettingsError, match=says):
            read_mask(str(path), (8, 8))


def test_a_file_that_is_missing_is_named_once(tmp_path):
    absent = tmp_path / "absent"
    for read in (read_settings, lambda path: Rows(mask=str(path)), lambda path: read_mask(str(path), (8, 8)),
                 lambda path: list(expand_inputs([f"@{path}"]))):  # fmt: skip
        with pytest.raises(SkylevelError, match=r"No such file or directory$") as caught:
            read(absent)
        assert str(caught.value).count("absent") == 1


@pytest.mark.parametrize("cls", RECIPES.values())
def test_no_number_is_outside_of_what_is_computed_with(cls):
    for field in dataclasses.fields(cls):
        if field.type in (int, float):
            with pytest.raises(SettingsError, match="needs a"):
                cls(**{field.name: 1e300})


@pytest.mark.parametrize(
    ("cls", "name"),
    [(Rows, "sky_steepness"), (Rows, "noise_exponent_rms"), (Rows, "group_days"), (Rows, "kernel_fwhm"),
     (Channels, "kernel_stddev")],
)  # fmt: skip
def test_too_small_a_number_is_refused_with_the_range(cls, name):
    with pytest.raises(SettingsError, match=rf"{name} = 1e-300: needs a value from [0-9.e-]+ to "):
        cls(**{name: 1e-300})
