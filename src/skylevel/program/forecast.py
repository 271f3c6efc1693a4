"""What a plan will need before anything runs: memory of a worker, and room for the outputs."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skylevel.errors import PlanError
from skylevel.io.remote import is_remote
from skylevel.jobs import Facts
from skylevel.program.plan import Exposure

# Resident memory of a worker that has imported everything, and of its strips; a job's bytes for each pixel come on top.
# Rounded up from measurements, and held by tests/test_forecast.py: measured <= projected.
_BASE_BYTES = 300 << 20

# Of a pixel in the outputs: FITS float32 or uint32.
_OUTPUT_BYTES_PER_PIXEL = 4

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

    A file that cannot be read is projected from its size alone; it fails when it is run.
    """
    return {exposure.name: _need(exposure) for exposure in exposures}


def summarize(needs: Mapping[str, Need]) -> list[tuple[tuple[str, str, str], int]]:
    """Return how many exposures there are of each kind, sorted."""
    return sorted(Counter(need.kind for need in needs.values()).items())


def require_disk(needs: Mapping[str, Need], output: str) -> None:
    """Refuse a plan whose outputs do not fit on the disk.

    Raises
    ------
    PlanError
        With the numbers.
    """
    if is_remote(output):
        return
    wanted, free = sum(need.output for need in needs.values()), free_disk(output)
    if wanted > free:
        raise PlanError(
            f"{output}: the outputs need about {gigabytes(wanted)} and {gigabytes(free)} are free; "
            "make room or choose another --output"
        )


def too_large(needs: Mapping[str, Need], worker_memory: int) -> list[str]:
    """Return the names of the exposures that one worker cannot hold."""
    return [name for name, need in needs.items() if worker_memory and need.memory > worker_memory]


def free_disk(output: str) -> int:
    """Return the free bytes where the output folder is or will be."""
    folder = Path(output).resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def gigabytes(n: float) -> str:
    """Return bytes as a person reads them."""
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def require_possible(exposure: Exposure, needed: int, available: int) -> None:
    """Refuse what is too large for a worker and cannot be done in blocks.

    Raises
    ------
    PlanError
        With the numbers and what to do.
    """
    why = None
    if exposure.job.block_rows(exposure.recipe) is None:
        why = f"the job {exposure.recipe.name!r} levels a frame in one piece"
    elif is_remote(exposure.source) or exposure.source.endswith(".gz"):
        why = "only an uncompressed local file can be read in blocks"
    elif list(exposure.outputs) != ["levelled"]:
        why = "its other products (--keep) are made in one piece"
    elif available < _LEAST_WORKER_BYTES:
        why = f"even in blocks it needs {gigabytes(_LEAST_WORKER_BYTES)}"
    if why:
        raise PlanError(
            f"{exposure.source}: needs about {gigabytes(needed)} of memory, a worker has {gigabytes(available)}, "
            f"and {why}: use fewer workers with more memory each"
        )


def _need(exposure: Exposure) -> Need:
    job, size = exposure.job, int(exposure.identity.get("size") or 0)
    facts = exposure.facts or Facts("", (1, size // 2), {})
    of_products = max((job.products[product].bytes_per_pixel for product in exposure.outputs), default=0)
    copied = job.copied_bytes(size, facts, exposure.layout) if exposure.facts else 0
    of_outputs = _OUTPUT_BYTES_PER_PIXEL * len(exposure.outputs) + job.stored_bytes_per_pixel(exposure.recipe)
    kind = (exposure.recipe.name, *facts.instrument)
    memory = _BASE_BYTES + (job.bytes_per_pixel(exposure.recipe) + of_products) * facts.n_pixels
    return Need(kind, int(memory), int(facts.n_pixels * of_outputs) + copied)
