"""Tasks of the shape of a program's own that do nothing; workers import this."""

from typing import Any

from skylevel.program.plan import Exposure
from skylevel.program.tasks import Record


def nothing(exposure: Exposure) -> Record:
    return Record(exposure.name)


def measure_nothing(exposure: Exposure, *_: Any) -> Record:
    return Record(exposure.name, [(0.0, "read nothing"), (0.0, "measured nothing")], {"read": 0.0, "measure": 0.0})


def export_nothing(_: Exposure, measured: Record, *__: Any) -> Record:
    return measured
