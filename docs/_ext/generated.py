"""Parts of pages that are made from the package, so that they cannot differ from it.

- ``{settings} rows``: every setting of a recipe.
- ``{presets} rows``: its presets, and what each sets.
- ``{commands}``: every command of the command line, as its ``--help`` says.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from skylevel.cli import commands
from skylevel.recipes import Recipe, recipe_named

DONE_AGAIN = {
    "mask": "the source mask, and so everything",
    "measurement": "the measurement; a stored source mask is used again",
    "group": "what exposures know together, and their files; no exposure is measured again",
    "levelled": "the files; nothing is measured again",
    "product": "that product alone",
}


def settings(recipe: type[Recipe]) -> Iterator[str]:
    """Describe every setting of a recipe as MyST: name and default, then meaning, unit, range, effect, source."""
    for setting in dataclasses.fields(recipe()):
        rule = setting.metadata
        yield f"({recipe.name}-{setting.name})="
        yield f"`{setting.name}` = `{_toml(getattr(recipe(), setting.name))}` {rule['unit']}".rstrip()
        yield f": {rule['doc']} {_allowed(rule)}".rstrip()
        yield ""
        yield f"  A change does again: {DONE_AGAIN[rule['decides']]}. *Source: {rule['source']}.*"
        yield ""


def presets(recipe: type[Recipe]) -> Iterator[str]:
    """Describe a recipe's presets as a table: their names, and what differs from the default."""
    yield "| preset | sets |"
    yield "|---|---|"
    for name, changed in recipe.presets.items():
        shown = ", ".join(f"`{field} = {_toml(value)}`" for field, value in changed.items())
        yield f"| `{name}` | {shown or 'nothing: the default'} |"


def command_pages() -> Iterator[str]:
    """Describe every command by its own help text, read at 100 columns."""
    for name, command in commands.commands.items():
        context = click.Context(command, info_name=f"skylevel {name}", terminal_width=100, max_content_width=100)
        yield f"## skylevel {name}"
        yield ""
        yield "```text"
        yield from command.get_help(context).splitlines()
        yield "```"
        yield ""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _allowed(rule: Mapping[str, Any]) -> str:
    parts = []
    if math.isfinite(rule["low"]):
        parts.append(f"at least {rule['low']:g}")
    if math.isfinite(rule["high"]):
        parts.append(f"at most {rule['high']:g}")
    if math.isfinite(rule["above"]):
        parts.append(f"above {rule['above']:g}")
    if rule["odd"]:
        parts.append("odd")
    if rule["choices"]:
        parts.append("one of " + ", ".join(f'`"{choice}"`' for choice in rule["choices"]))
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


class _OfRecipe(SphinxDirective):
    """A part of a page that is made from the recipe it names."""

    required_arguments = 1
    make: ClassVar[Callable[[type[Recipe]], Iterator[str]]]

    def run(self) -> list[nodes.Node]:
        """Make it, and read it as part of the page."""
        return self.parse_text_to_nodes("\n".join(type(self).make(recipe_named(self.arguments[0]))))


class Settings(_OfRecipe):
    """``{settings} NAME``."""

    make = staticmethod(settings)


class Presets(_OfRecipe):
    """``{presets} NAME``."""

    make = staticmethod(presets)


class Commands(SphinxDirective):
    """``{commands}``."""

    def run(self) -> list[nodes.Node]:
        """Make it, and read it as part of the page."""
        return self.parse_text_to_nodes("\n".join(command_pages()), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("settings", Settings)
    app.add_directive("presets", Presets)
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
