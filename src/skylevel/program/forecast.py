"""What a plan will need before anything runs: memory of a worker, and room for the outputs."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dask.system import CPU_COUNT

from skylevel.errors import PlanError
from skylevel.io.names import number_of
from skylevel.io.urls import is_remote
from skylevel.memory import process_memory
from skylevel.program.plan import Exposure

# Resident memory of a worker that has imported everything, and of its strips; a job's bytes for each pixel come on top.
# Rounded up from measurements, and held by tests/test_forecast.py: measured <= projected.
_BASE_BYTES = 300 << 20

# Of a pixel in the outputs: FITS float32 or uint32.
_OUTPUT_BYTES_PER_PIXEL = 4

# Of a pixel of a mosaic, beside: its weight, where it has none, and the image without those.
_MOSAIC_BYTES_PER_PIXEL = 9

# A worker holds a few blocks at a time, with the arrays that are made of them; Dask pauses one at 80 % of its limit.
_LEAST_WORKER_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Need:
    """What one exposure needs.

    Attributes
    ----------
    kind : tuple of str
        Recipe, detector or camera, and filter; empty words where unknown.
    memory : int
        Bytes of a worker's memory at the most.
    output : int
        Bytes of its outputs and its part of the store.
    """

    kind: tuple[str, str, str]
    memory: int
    output: int


def forecast(exposures: Sequence[Exposure]) -> dict[str, Need]:
    """Return what each exposure needs, by name, from what its header tells.

    A file that cannot be read needs nothing: it fails alone, whatever it claims.
    """
    return {exposure.name: _need(exposure) for exposure in exposures}


def summarize(needs: Mapping[str, Need]) -> list[tuple[tuple[str, str, str], int]]:
    """Return how many exposures there are of each kind, sorted."""
    return sorted(Counter(need.kind for need in needs.values()).items())


def require_disk(needs: Mapping[str, Need], output: str) -> dict[str, str]:
    """Refuse a plan whose outputs do not fit on the disk, but for exposures that alone are larger than what is free.

    Returns
    -------
    dict of str
        Why each of those fails, by name.

    Raises
    ------
    PlanError
        With the numbers; also where nothing else is left.
    """
    if is_remote(output):
        return {}
    free = free_disk(output)
    alone = [name for name, need in needs.items() if need.output > free]
    wanted = sum(need.output for name, need in needs.items() if name not in alone or len(alone) == len(needs))
    if wanted > free:
        raise PlanError(
            f"{output}: the outputs need about {gigabytes(wanted)} and {gigabytes(free)} are free; "
            "make room or choose another --output"
        )
    return {
        name: f"its outputs need about {gigabytes(needs[name].output)}, and {gigabytes(free)} are free on the disk"
        for name in alone
    }


def own_memory() -> int:
    """Bytes that a worker of this machine may use, of as many workers as there are cores."""
    return process_memory() // CPU_COUNT


def too_large(needs: Mapping[str, Need], worker_memory: int) -> list[str]:
    """Return the names of the exposures that one worker cannot hold."""
    return [name for name, need in needs.items() if worker_memory and need.memory > worker_memory]


def cautions(exposures: Sequence[Exposure]) -> list[str]:
    """Return a line on each thing that speaks against levelling some of the exposures."""
    told: dict[str, list[str]] = defaultdict(list)
    for exposure in exposures:
        if exposure.facts and (caution := exposure.job.caution(exposure.facts)):
            told[caution].append(exposure.name)
    return [f"{number_of(len(names), 'exposure')}, {names[0]} for one: {text}" for text, names in told.items()]


def free_disk(output: str) -> int:
    """Return the free bytes where the output folder is or will be."""
    folder = Path(output).resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def gigabytes(n: float) -> str:
    """Return bytes as a person reads them."""
    unit, power = ("GB", 1e9) if n >= 1e8 else ("MB", 1e6) if n >= 1e5 else ("kB", 1e3)
    return f"{n / power:.{2 if unit == 'GB' else 1}f} {unit}"


def impossible(
    exposures: Sequence[Exposure], needs: Mapping[str, Need], available: int, *, in_blocks: bool = True
) -> dict[str, str]:
    """Return why exposures that are too large for a worker and cannot be done in blocks fail, by name.

    Parameters
    ----------
    exposures : sequence of Exposure
        All that is left to do.
    needs : mapping of str to Need
    available : int
        Bytes of a worker's memory; 0 where there is no limit.
    in_blocks : bool
        Whether there are workers to share one.

    Raises
    ------
    PlanError
        Nothing else is left, and no other share may have more.
    """
    large = set(too_large(needs, available))
    reasons = {}
    for exposure in exposures:
        if exposure.name in large and (why := _why_in_one_piece(exposure, available, in_blocks=in_blocks)):
            needed = f"{exposure.source}: needs about {gigabytes(needs[exposure.name].memory)} of memory"
            reasons[exposure.name] = (
                f"{needed}, a worker has {gigabytes(available)}, and {why}: use fewer workers with more memory each"
                if in_blocks
                else f"{needed}, this process has {gigabytes(available)}: give it more, or run without {why}"
            )
    if in_blocks and reasons and len(reasons) == len(exposures):
        raise PlanError(next(iter(reasons.values())))
    return reasons


def _why_in_one_piece(exposure: Exposure, available: int, *, in_blocks: bool) -> str:
    """Return why an exposure cannot be done in blocks; empty where it can."""
    if not in_blocks:
        return "--partition, which does large frames in blocks"
    if exposure.job.block_rows(exposure.recipe) is None:
        return f"the job {exposure.recipe.name!r} levels a frame in one piece"
    if is_remote(exposure.source) or exposure.source.lower().endswith((".gz", ".fz")):
        return "only an uncompressed local file can be read in blocks"
    if list(exposure.outputs) != ["levelled"]:
        return "its other products (--keep) are made in one piece"
    return f"even in blocks it needs {gigabytes(_LEAST_WORKER_BYTES)}" if available < _LEAST_WORKER_BYTES else ""


def _need(exposure: Exposure) -> Need:
    facts = exposure.facts
    if facts is None or exposure.trouble:
        # It fails before anything is made for it.
        return Need((exposure.recipe.name, *(facts.instrument if facts else ("", ""))), _BASE_BYTES, 0)
    job, size = exposure.job, int(exposure.identity.get("size") or 0)
    of_products = max((job.products[product].bytes_per_pixel for product in exposure.outputs), default=0)
    copied = job.copied_bytes(size, facts, exposure.layout)
    of_outputs = _OUTPUT_BYTES_PER_PIXEL * len(exposure.outputs) + job.stored_bytes_per_pixel(exposure.recipe)
    of_mosaic = _MOSAIC_BYTES_PER_PIXEL if facts.attributes.get("resampled") else 0
    memory = _BASE_BYTES + (job.bytes_per_pixel(exposure.recipe) + of_products + of_mosaic) * facts.n_pixels
    kind = (exposure.recipe.name, *facts.instrument)
    return Need(kind, int(memory), int(facts.n_pixels * of_outputs) + copied)
