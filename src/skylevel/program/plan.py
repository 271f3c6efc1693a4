"""From inputs to exposures: what to run, under which recipe, to which output."""

import glob
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from skylevel.errors import PlanError
from skylevel.io.remote import file_system
from skylevel.io.store import FORMAT
from skylevel.recipes import RECIPES, Recipe, canonical_hash, recipe_named

FITS_SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fts.gz")
RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
LAYOUTS = ("full", "primary")
PRODUCTS = ("segmentation", "masked", "background")

# Our own outputs, which a folder or a glob does not take in again.
_OUTPUT_ENDINGS = ("_rowbgsub.fits", "_masked.fits", "_background.fits", ".bkg_subtracted.fits", ".bkg_background.fits")
_OUTPUT_STARTS = ("detections_segm_",)

_REMOTE_MARK = "://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """One file to level, and everything its tasks must know.

    Attributes
    ----------
    name : str
        The file's name without its suffix; unique in a program.
    source : str
        Absolute path or URL.
    recipe : Recipe
    outputs : dict of str
        Absolute path or URL of each product: ``levelled``, and those that are kept.
    layout : {"full", "primary"}
    identity : dict
        What tells the file's content from another's without reading it: name, size, time of its last change.
    """

    name: str
    source: str
    recipe: Recipe
    outputs: Mapping[str, str]
    layout: str
    identity: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Decides whether a stored measurement still holds: SHA-256 of file, recipe and format."""
        settings = self.recipe.stage_dict("mask", "level")
        return canonical_hash([dict(self.identity), self.recipe.name, settings, FORMAT])

    @property
    def mask_key(self) -> str:
        """Decides whether a stored source mask still holds, whatever else of the recipe changed."""
        return canonical_hash([dict(self.identity), self.recipe.name, self.recipe.stage_dict("mask"), FORMAT])

    @property
    def export_key(self) -> str:
        """Decides whether an output on disk is the one asked for."""
        return canonical_hash([self.key, self.recipe.to_dict(), self.layout, sorted(self.outputs)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the store's index."""
        return {
            "name": self.name, "source": self.source, "recipe": self.recipe.name, "settings": self.recipe.to_dict(),
            "outputs": dict(self.outputs), "layout": self.layout, "identity": dict(self.identity),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        recipe = recipe_named(values["recipe"])(**values["settings"])
        rest = {key: values[key] for key in ("name", "source", "outputs", "layout", "identity")}
        return cls(recipe=recipe, **rest)


def make_plan(
    inputs: Iterable[str],
    output: str,
    *,
    recipe: str = "auto",
    recipes: Mapping[str, Recipe] | None = None,
    layout: str = "full",
    keep: Sequence[str] = (),
) -> list[Exposure]:
    """Turn inputs into exposures, sorted by name.

    Parameters
    ----------
    inputs : iterable of str
        Files, folders, globs, JWST associations (``*_asn.json``), ``@list.txt``, URLs.
    output : str
        Folder or URL of the outputs.
    recipe : {"auto", "rows", "channels"}
        "auto": rows for FITS, channels for anything else.
    recipes : mapping of str to Recipe, optional
        Settings by recipe name; the defaults for those not named.
    layout : {"full", "primary"}
    keep : sequence of {"segmentation", "masked", "background"}

    Raises
    ------
    PlanError
        Nothing matched an input; two inputs would write the same output, or an input would be overwritten.
    """
    _require_known("layout", [layout], LAYOUTS)
    _require_known("product to keep", keep, PRODUCTS)
    _require_known("recipe", [recipe], ("auto", *RECIPES))
    chosen = {name: cls() for name, cls in RECIPES.items()} | dict(recipes or {})
    sources = sorted(set(expand_inputs(inputs)), key=lambda source: (_base_name(source), source))
    exposures = [
        _exposure(source, output, chosen[_recipe_for(source) if recipe == "auto" else recipe], layout, keep)
        for source in sources
    ]
    _refuse_collisions(exposures)
    return exposures


def expand_inputs(inputs: Iterable[str]) -> Iterator[str]:
    """The files behind each input, as absolute paths or URLs.

    Raises
    ------
    PlanError
        An input matches nothing, or a list or association cannot be read.
    """
    for given in inputs:
        if given.startswith("@"):
            yield from _listed(Path(given[1:]))
        elif given.startswith("file://"):
            yield from expand_inputs([given.removeprefix("file://")])
        elif _REMOTE_MARK in given:
            yield from _remote(given)
        elif Path(given).is_dir():
            yield from _some(given, _levelable(Path(given).iterdir()))
        elif given.endswith("_asn.json"):
            yield from _associated(Path(given))
        elif Path(given).is_file():
            yield _absolute(Path(given))
        else:
            # Not Path.glob: a pattern may be absolute.
            matches = glob.glob(given, recursive=True)  # noqa: PTH207
            yield from _some(given, _levelable(map(Path, matches)))


def partition(exposures: Sequence[Exposure], index: int, count: int) -> list[Exposure]:
    """Every `count`-th exposure from the `index`-th (from 1): a fair share of each kind of file."""
    if not 1 <= index <= count:
        raise PlanError(f"partition {index}/{count}: the first number must be from 1 to the second")
    by_kind = sorted(exposures, key=lambda exposure: exposure.recipe.name)
    return by_kind[index - 1 :: count]


def summarize(exposures: Sequence[Exposure]) -> Counter[str]:
    """How many exposures each recipe has."""
    return Counter(exposure.recipe.name for exposure in exposures)


def _require_known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for value in given:
        if value not in known:
            raise PlanError(f"unknown {what} {value!r}; known: {', '.join(known)}")


def _recipe_for(source: str) -> str:
    return "rows" if source.lower().endswith(FITS_SUFFIXES) else "channels"


def _some(given: str, found: Iterable[str]) -> list[str]:
    matches = list(found)
    if not matches:
        hint = "; a folder's files must be FITS or camera raw" if Path(given).is_dir() else ""
        raise PlanError(f"{given}: no such file, and nothing matches it{hint}")
    return matches


def _levelable(paths: Iterable[Path]) -> Iterator[str]:
    """Files with a suffix that skylevel knows, without its own outputs."""
    for path in paths:
        if _is_levelable(path.name) and path.is_file():
            yield _absolute(path)


def _absolute(path: Path) -> str:
    """One spelling for a file; a link keeps its own name, under which its outputs are asked for."""
    return str(path.parent.resolve() / path.name)


def _is_levelable(path: str) -> bool:
    name = _base_name(path).lower()
    is_output = name.endswith(_OUTPUT_ENDINGS) or name.startswith(_OUTPUT_STARTS)
    return name.endswith((*FITS_SUFFIXES, *RAW_SUFFIXES)) and not is_output


def _listed(path: Path) -> Iterator[str]:
    """Inputs from a text file, one a line; blank lines and those after ``#`` do not count."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"@{path}: cannot read the list: {error}") from error
    named = [line for line in lines if line and not line.startswith("#")]
    # Names in a list are relative to the list, as in an association.
    yield from expand_inputs(line if _REMOTE_MARK in line else str(path.parent / line) for line in named)


def _associated(path: Path) -> Iterator[str]:
    """Science members of a JWST association, beside which they lie."""
    try:
        products = json.loads(path.read_text(encoding="utf-8"))["products"]
        members = [member for product in products for member in product["members"]]
        names = [member["expname"] for member in members if member.get("exptype", "science") == "science"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{path}: not a JWST association: {type(error).__name__}: {error}") from error
    if not names:
        raise PlanError(f"{path}: the association has no science member")
    # A member that is missing fails alone, when it is read.
    yield from (_absolute(path.parent / name) for name in names)


def _remote(given: str) -> list[str]:
    """Files behind a URL: itself, a folder's files or a glob's matches."""
    try:
        files, path = file_system(given)
        if "*" in path:
            found = files.glob(path)
        elif files.isdir(path):
            found = files.ls(path, detail=False)
        else:
            # One spelling for a file, however it was asked for; a chained URL has no other.
            return [given if "::" in given else files.unstrip_protocol(path)]
    except Exception as error:  # Each protocol has errors of its own.
        raise PlanError(f"{given}: cannot be listed: {' '.join(str(error).split())}") from error
    return _some(given, (files.unstrip_protocol(str(p)) for p in found if _is_levelable(str(p))))


def _exposure(source: str, output: str, recipe: Recipe, layout: str, keep: Sequence[str]) -> Exposure:
    base = _base_name(source)
    stem = _stem(base)
    if recipe.name == "rows":
        names = {
            "levelled": f"{stem}_rowbgsub.fits",
            "segmentation": f"detections_segm_{stem}.fits",
            "masked": f"{stem}_masked.fits",
            "background": f"{stem}_background.fits",
        }
    else:
        names = {"levelled": f"{stem}.bkg_subtracted.fits", "background": f"{stem}.bkg_background.fits"}
    folder = output.rstrip("/") if _REMOTE_MARK in output else str(Path(output).resolve())
    outputs = {kind: f"{folder}/{name}" for kind, name in names.items() if kind == "levelled" or kind in keep}
    return Exposure(
        name=stem, source=source, recipe=recipe, outputs=outputs, layout=layout, identity=_identity(source, base)
    )


def _identity(source: str, base: str) -> dict[str, Any]:
    """Name, size and time of change; only the name where the file cannot be looked at (it fails when it is read)."""
    try:
        if _REMOTE_MARK not in source:
            stat = Path(source).stat()
            return {"name": base, "size": stat.st_size, "changed": stat.st_mtime_ns}
        files, path = file_system(source)
        info = files.info(path)
    except (OSError, ValueError):
        return {"name": base}
    changed = info.get("ETag") or info.get("LastModified") or info.get("mtime")
    return {"name": base, "size": info.get("size"), "changed": str(changed)}


def _base_name(source: str) -> str:
    return source.rstrip("/").rsplit("/", 1)[-1]


def _stem(base: str) -> str:
    name = base[: -len(".gz")] if base.lower().endswith(".gz") else base
    return name.rsplit(".", 1)[0] if "." in name else name


def _refuse_collisions(exposures: Sequence[Exposure]) -> None:
    by_name: dict[str, list[str]] = defaultdict(list)
    for exposure in exposures:
        by_name[exposure.name].append(exposure.source)
    for name, sources in by_name.items():
        if len(sources) > 1:
            raise PlanError(
                f"{' and '.join(sources)} would write the same outputs ({name}...); run them into different folders"
            )
    written = {path for exposure in exposures for path in exposure.outputs.values()}
    for exposure in exposures:
        if exposure.source in written:
            raise PlanError(f"{exposure.source}: would be overwritten by an output; choose another output folder")


