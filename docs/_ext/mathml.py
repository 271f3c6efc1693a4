"""Equations as MathML, which browsers draw themselves: no script, no font, no other machine."""

from typing import Any

from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def inline(self: HTML5Translator, node: Any) -> None:
    """Write an equation within a line."""
    self.body.append(convert(node.astext()))


def block(self: HTML5Translator, node: Any) -> None:
    """Write an equation that stands alone."""
    self.body.append(f'<div class="equation">{convert(node.astext(), display="block")}</div>')


def nothing(self: HTML5Translator, node: Any) -> None:
    """Both are written whole when their node is entered."""


def setup(app: Sphinx) -> dict[str, bool]:
    """Make it the way in which equations are drawn."""
    app.add_html_math_renderer("mathml", (inline, nothing), (block, nothing))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
