"""A bar that grows in a notebook while a program runs; needs nothing but IPython."""

import sys
import time
from collections.abc import Sized
from html import escape
from importlib import import_module
from typing import Any

# Seconds between two changes of the bar: each is a message to the browser.
_EVERY = 0.2


def notebook_bar() -> "NotebookBar | None":
    """Return what shows how many exposures are finished, in the output of a notebook's cell; elsewhere None."""
    # Whoever runs in a notebook has imported it.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return NotebookBar() if hasattr(shell, "kernel") else None


class NotebookBar:
    """Called with how many are finished, and of how many.

    Attributes
    ----------
    dashboard : str
        Address of the cluster's, to which the bar then links.
    failed : sized
        Exposures that failed so far, which the bar counts.
    """

    def __init__(self) -> None:
        self.dashboard = ""
        self.failed: Sized = ()
        self._handle: Any = None
        self._shown = 0.0

    def __call__(self, count: int, total: int) -> None:
        """Show how far the run is."""
        if count < total and time.monotonic() - self._shown < _EVERY:
            return
        # Of the notebook alone: nobody else has it.
        shown: Any = import_module("IPython.display")
        bar = f'<progress value="{count}" max="{total}"></progress> {count} of {total} exposures'
        if self.failed:
            bar += f", {len(self.failed)} failed"
        if self.dashboard:
            bar += f' <a href="{escape(self.dashboard)}" target="_blank">dashboard</a>'
        if self._handle is None:
            self._handle = shown.display(shown.HTML(bar), display_id=True)
        else:
            self._handle.update(shown.HTML(bar))
        self._shown = time.monotonic()
