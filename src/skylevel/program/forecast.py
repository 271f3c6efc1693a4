"""What a plan will need before anything runs: memory of a worker, and room for the outputs."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skylevel.errors import PlanError, SkylevelError
from skylevel.io.frame import peek_frame
from skylevel.io.remote import is_remote
from skylevel.program.plan import Exposure

# Resident memory of a worker that has imported everything, and of its strips; then bytes for each pixel of an
# exposure: its image, what was measured, and the copy that is written. Rounded up from measurements, and held by
# tests/test_forecast.py: measured <= projected.
_BASE_BYTES = 300 << 20
_BYTES_PER_PIXEL = {"rows": 12, "channels": 10}
_BYTES_PER_PIXEL_OF_PRODUCT = {"segmentation": 48, "masked": 9, "background": 12}

# Of a pixel in the outputs: FITS float32 or uint32; and in the store, a compressed mask.
_OUTPUT_BYTES_PER_PIXEL = 4
_STORE_BYTES_PER_PIXEL = 0.5


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
    """What each exposure needs, by name, from the files' headers.

    A file that is remote or cannot be read is projected from its size alone; it fails when it is run.
    """
    return {exposure.name: _need(exposure) for exposure in exposures}


def summarize(needs: Mapping[str, Need]) -> list[tuple[tuple[str, str, str], int]]:
    """How many exposures there are of each kind, sorted."""
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
    """Names of the exposures that one worker cannot hold."""
    return [name for name, need in needs.items() if worker_memory and need.memory > worker_memory]


def free_disk(output: str) -> int:
    """Free bytes where the output folder is or will be."""
    folder = Path(output).resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def gigabytes(n: float) -> str:
    """Bytes as a person reads them."""
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def _need(exposure: Exposure) -> Need:
    kind, n_pixels = (exposure.recipe.name, "", ""), int(exposure.identity.get("size") or 0) // 2
    copied = 0
    try:
        if not is_remote(exposure.source):
            shape, attributes = peek_frame(exposure.source)
            n_pixels = shape[0] * shape[1]
            detector = attributes.get("detector") or attributes.get("camera") or ""
            kind = (exposure.recipe.name, str(detector), str(attributes.get("filter", "")))
            if exposure.recipe.name == "rows" and exposure.layout == "full":
                copied = int(exposure.identity.get("size") or 0) - _OUTPUT_BYTES_PER_PIXEL * n_pixels
    except SkylevelError:
        pass
    per_pixel = _BYTES_PER_PIXEL[exposure.recipe.name]
    per_pixel += max((_BYTES_PER_PIXEL_OF_PRODUCT.get(product, 0) for product in exposure.outputs), default=0)
    store = _STORE_BYTES_PER_PIXEL if exposure.recipe.name == "rows" else 0
    output = n_pixels * (_OUTPUT_BYTES_PER_PIXEL * len(exposure.outputs) + store) + max(copied, 0)
    return Need(kind, _BASE_BYTES + per_pixel * n_pixels, int(output))
