"""A task of the shape of a program's own that does nothing; workers import this."""

from typing import Any

from skylevel.program.plan import Exposure
from skylevel.program.tasks import Record


def level_nothing(exposure: Exposure, *_: Any, **__: Any) -> Record:
    stages = ("read", "measure", "store", "export")
    return Record(exposure.name, [(0.0, f"{stage} nothing") for stage in stages], dict.fromkeys(stages, 0.0))
