"""Who does the work of a run: the Protocol, and whoever does one exposure after the other."""

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from skylevel.program.combine import combine_group
from skylevel.program.ledger import Group, Steps
from skylevel.program.plan import Exposure
from skylevel.program.tasks import Record, Where, level_exposure
from skylevel.version import __version__

Outcome = tuple[Exposure, Record | Exception]


class Workers(Protocol):
    """Who does the work.

    Attributes
    ----------
    refused : dict of str
        Why exposures cannot be done by them, by name.
    """

    refused: dict[str, str]

    @property
    def dashboard(self) -> str:
        """Address of a page that shows them at work; empty where there is none."""

    def run(
        self, exposures: Sequence[Exposure], steps: Mapping[str, Steps], group_keys: Mapping[str, str]
    ) -> Generator[Outcome, None, None]:
        """Do some steps of some exposures, and yield each with what came of it, as they finish."""

    def combine(self, group: Group, members: list[Exposure], key: str, url: str) -> str:
        """Combine a group; returns what was found, in words."""


class OneByOne:
    """Work done one exposure after the other, by whoever makes a call: this process, if nobody else is given."""

    dashboard = ""

    def __init__(
        self, url: str, refused: dict[str, str], make: Callable[[Callable[[], Any]], Any] = lambda call: call()
    ) -> None:
        self._url, self.refused, self._make = url, refused, make

    def run(
        self, exposures: Sequence[Exposure], steps: Mapping[str, Steps], group_keys: Mapping[str, str]
    ) -> Generator[Outcome, None, None]:
        """Do some steps of some exposures; see `Workers`."""
        for exposure in exposures:
            where = Where(self._url, __version__, group_keys.get(exposure.name))
            try:
                yield exposure, self._make(partial(level_exposure, exposure, where, steps[exposure.name]))
            except Exception as error:
                yield exposure, error

    def combine(self, group: Group, members: list[Exposure], key: str, url: str) -> str:
        """Combine a group; see `Workers`."""
        return str(self._make(partial(combine_group, group, members, key, url, __version__)))
