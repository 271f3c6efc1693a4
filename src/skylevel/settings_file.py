"""Settings as TOML: written with comments for a person to edit, and read again."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import tomlkit

from skylevel.errors import SettingsError
from skylevel.files import cause, read_text
from skylevel.recipes import Recipe, recipe_named


def to_toml(recipe: Recipe) -> str:
    """Return a recipe as a commented TOML table: above each setting its meaning, unit, allowed values and source."""
    table = tomlkit.table()
    for setting in dataclasses.fields(recipe):
        for line in _comment(setting):
            table.add(tomlkit.comment(line))
        value = getattr(recipe, setting.name)
        table.add(setting.name, _inline(value) if isinstance(value, dict) else value)
        table.add(tomlkit.nl())
    document = tomlkit.document()
    document.add(tomlkit.comment(f"Settings of skylevel's recipe {recipe.name!r}; use with --config FILE.toml"))
    document.add(recipe.name, table)
    return tomlkit.dumps(document).rstrip() + "\n"


def read_settings(path: Path) -> dict[str, dict[str, Any]]:
    """Settings by recipe name from a TOML file whose tables are ``[rows]`` and ``[channels]``.

    Raises
    ------
    SettingsError
        The file cannot be read, is not TOML, or has a table that is no recipe.
    """
    try:
        tables = tomllib.loads(read_text(path))
    except RecursionError as error:
        raise SettingsError(f"{path}: cannot read the settings: they are nested too deep") from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot read the settings: {cause(error)}") from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: {name!r} stands outside a table; put it under [rows] or [channels]")
        recipe_named(name)
    return tables


def _inline(values: dict[str, Any]) -> Any:
    table = tomlkit.inline_table()
    table.update(values)
    return table


def _comment(setting: dataclasses.Field[Any]) -> list[str]:
    rule = setting.metadata
    facts = [f"Unit: {rule['unit']}."] if rule["unit"] else []
    if rule["choices"]:
        facts.append(f"One of: {', '.join(rule['choices'])}.")
    return [rule["doc"], " ".join([*facts, f"Source: {rule['source']}."])]
