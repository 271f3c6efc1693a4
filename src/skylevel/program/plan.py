"""From inputs to exposures: what to run, under which recipe, to which output."""

import glob
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

from skylevel.errors import PlanError, SkylevelError, StoreError
from skylevel.io.frame import FITS_SUFFIXES, peek_frame
from skylevel.io.nodes import Place
from skylevel.io.records import FORMAT
from skylevel.io.remote import file_system, is_remote
from skylevel.io.store import ProgramStore
from skylevel.jobs import JOBS, Facts, Job, job_for, job_of
from skylevel.recipes import RECIPES, Recipe, canonical_hash, recipe_named
from skylevel.version import __version__

STORE_NAME = "program.zarr"

RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
LAYOUTS = ("full", "primary")

# Headers on a network are looked at by so many at once.
_REMOTE_PEEKS = 16

# What is to be done with an input: a recipe, or several among which its kind decides; by name, or with settings.
RecipeChoice = str | Recipe | Iterable[Recipe]

# Our own outputs, which a folder or a glob does not take in again.
_OUTPUT_ENDINGS = ("_rowbgsub.fits", "_masked.fits", "_background.fits", ".bkg_subtracted.fits", ".bkg_background.fits")
_OUTPUT_STARTS = ("detections_segm_",)


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
    facts : Facts, optional
        What its header tells; None where it could not be read: it fails when it is run.
    place : Place, optional
        In the store, once there is room for it.
    """

    name: str
    source: str
    recipe: Recipe
    outputs: Mapping[str, str]
    layout: str
    identity: Mapping[str, Any]
    facts: Facts | None = None
    place: Place | None = None

    @property
    def job(self) -> Job:
        """What is done with it."""
        return job_of(self.recipe)

    @property
    def key(self) -> str:
        """Decides whether a stored measurement still holds: SHA-256 of file, recipe and format."""
        settings = self.recipe.settings_of("mask", "measurement")
        return canonical_hash([dict(self.identity), self.recipe.name, settings, FORMAT])

    @property
    def mask_key(self) -> str:
        """Decides whether a stored source mask still holds, whatever else of the recipe changed."""
        return canonical_hash([dict(self.identity), self.recipe.name, self.recipe.settings_of("mask"), FORMAT])

    def export_key(self, group_key: str | None = None) -> str:
        """Return what decides whether an output on disk is the one asked for; `group_key` is its group's, if any."""
        of_group = [] if group_key is None else [group_key]
        return canonical_hash([self.key, self.recipe.to_dict(), self.layout, sorted(self.outputs), *of_group])

    @property
    def group(self) -> tuple[str, str] | None:
        """Node and name of the group with which it is combined; None where it is alone, or its header was not read."""
        name = self.job.group(self.recipe, self.facts) if self.facts else None
        if name is None or self.place is None:
            return None
        # What was measured otherwise is not combined.
        return self.place.node, f"{name}-{canonical_hash(self.recipe.settings_of('mask', 'measurement'))[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the store's index; the recipe stands apart, once for all who share it."""
        return {
            "name": self.name, "source": self.source, "outputs": dict(self.outputs), "layout": self.layout,
            "identity": dict(self.identity), "facts": self.facts and list(self.facts),
            "place": self.place and list(self.place),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], recipe: Recipe) -> Self:
        """Return the inverse of `to_dict`.

        Raises
        ------
        KeyError, TypeError, ValueError
            The values are of another form.
        """
        for key in ("name", "source", "layout"):
            if not isinstance(values[key], str):
                raise TypeError(f"{key} is {values[key]!r}")
        rest = {key: values[key] for key in ("name", "source", "outputs", "layout", "identity")}
        facts, place = values["facts"], values["place"]
        return cls(
            recipe=recipe, facts=facts and _facts(*facts), place=place and Place(str(place[0]), int(place[1])), **rest
        )


def _facts(kind: str, shape: Sequence[int], attributes: Mapping[str, Any]) -> Facts:
    return Facts(str(kind), (int(shape[0]), int(shape[1])), dict(attributes))


def make_plan(
    inputs: Iterable[str],
    output: str,
    *,
    recipe: RecipeChoice = "auto",
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
    recipe : {"auto", "rows", "channels"}, Recipe or iterable of Recipe
        The recipe of every input; "auto", or several: that which takes the kind of file, with the settings given.
    layout : {"full", "primary"}
    keep : sequence of {"segmentation", "masked", "background"}

    Returns
    -------
    list of Exposure
        Without places. Headers are read, but for those that an earlier plan into `output` knows.

    Raises
    ------
    PlanError
        Nothing matched an input; two inputs would write the same output, or an input would be overwritten.
    """
    _require_known("layout", [layout], LAYOUTS)
    _require_known("product to keep", keep, _further_products())
    only, settings = _choice(recipe)
    sources = sorted(set(expand_inputs(inputs)), key=lambda source: (_base_name(source), source))
    identities = {source: _identity(source, _base_name(source)) for source in sources}
    facts = _peek_all(identities, _known_facts(output))
    folder = output.rstrip("/") if is_remote(output) else str(Path(output).resolve())
    exposures = []
    for source in sources:
        chosen = settings[only or _recipe_for(source, facts[source])]
        stem = _stem(_base_name(source))
        outputs = _outputs(chosen, stem, folder, keep)
        exposures.append(
            Exposure(
                name=stem,
                source=source,
                recipe=chosen,
                outputs=outputs,
                layout=layout,
                identity=identities[source],
                facts=facts[source],
            )
        )
    _refuse_collisions(exposures)
    return exposures


def _further_products() -> list[str]:
    """Return the names of all jobs' products but the main one, in order."""
    return list(dict.fromkeys(p for job in JOBS.values() for p in job.products if p != "levelled"))


def _choice(recipe: RecipeChoice) -> tuple[str | None, dict[str, Recipe]]:
    """Return the name of the only recipe, if there is one, and all recipes by name."""
    settings = {name: cls() for name, cls in RECIPES.items()}
    if isinstance(recipe, str):
        _require_known("recipe", [recipe], ("auto", *RECIPES))
        return (None if recipe == "auto" else recipe), settings
    if isinstance(recipe, Recipe):
        return recipe.name, settings | {recipe.name: recipe}
    return None, settings | {given.name: given for given in recipe}


def _known_facts(output: str) -> dict[tuple[str, str], Facts]:
    """Return what an earlier plan knows of headers, by source and identity; nothing where there is none."""
    # What cannot be read there is said when the run begins.
    with suppress(Exception):
        earlier = read_plan(ProgramStore(store_url(output)))
        return {(e.source, canonical_hash(e.identity)): e.facts for e in earlier if e.facts}
    return {}


def _peek_all(
    identities: Mapping[str, Mapping[str, Any]], known: Mapping[tuple[str, str], Facts]
) -> dict[str, Facts | None]:
    """Return what each file's header tells; None where it cannot be read."""
    found = {s: known.get((s, canonical_hash(i))) if "changed" in i else None for s, i in identities.items()}
    unknown = [source for source, facts in found.items() if facts is None]
    with ThreadPoolExecutor(_REMOTE_PEEKS) as pool:
        found.update(zip(unknown, (pool.map if any(map(is_remote, unknown)) else map)(_peek, unknown), strict=True))
    return found


def _peek(source: str) -> Facts | None:
    # Whatever is wrong with a header is the exposure's own failure, when it is run.
    with suppress(Exception):
        shape, attributes = peek_frame(source)
        return _facts(attributes.pop("kind"), shape, attributes)
    return None


def _outputs(recipe: Recipe, stem: str, folder: str, keep: Sequence[str]) -> dict[str, str]:
    products = job_of(recipe).products
    return {
        name: f"{folder}/{product.file.format(stem=stem)}"
        for name, product in products.items()
        if name == "levelled" or name in keep
    }


def store_url(output: str | PathLike[str]) -> str:
    """Return path or URL of the store of an output folder; absolute, as a worker may run in another folder."""
    folder = fspath(output)
    return f"{folder.rstrip('/') if is_remote(folder) else Path(folder).absolute()}/{STORE_NAME}"


def plan_index(plan: Sequence[Exposure]) -> dict[str, Any]:
    """Return a plan as the store keeps it: its outputs are named by their files, which may move with the store."""
    recipes: dict[str, int] = {}
    exposures = []
    for exposure in plan:
        values = exposure.to_dict()
        values["outputs"] = {kind: url.rsplit("/", 1)[-1] for kind, url in values["outputs"].items()}
        values["recipe"] = recipes.setdefault(exposure.recipe.hash, len(recipes))
        exposures.append(values)
    by_hash = {exposure.recipe.hash: exposure.recipe for exposure in plan}
    settings = [{"recipe": by_hash[key].name, "settings": by_hash[key].to_dict()} for key in recipes]
    return {"format": FORMAT, "skylevel_version": __version__, "recipes": settings, "exposures": exposures}


def read_plan(store: ProgramStore) -> list[Exposure]:
    """Return the plan that a store keeps; its outputs stand beside the store.

    Raises
    ------
    StoreError
        There is none, or it cannot be read.
    """
    folder, plan = store.url.rsplit("/", 1)[0], store.read_plan()
    try:
        recipes = [recipe_named(values["recipe"])(**values["settings"]) for values in plan["recipes"]]
        exposures = []
        for values in plan["exposures"]:
            outputs = {str(kind): f"{folder}/{_own_file(name)}" for kind, name in values["outputs"].items()}
            exposures.append(Exposure.from_dict({**values, "outputs": outputs}, recipes[values["recipe"]]))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, SkylevelError) as error:
        raise StoreError(f"{store.url}: its plan.json is damaged: {error!r}; run the program again") from error
    return exposures


def _own_file(name: Any) -> str:
    """Return the name of an output, which never leads out of its folder."""
    if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no file name")
    return name


def expand_inputs(inputs: Iterable[str]) -> Iterator[str]:
    """Yield the files behind each input, as absolute paths or URLs.

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
        elif is_remote(given):
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
    """Return how many exposures each recipe has."""
    return Counter(exposure.recipe.name for exposure in exposures)


def _require_known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for value in given:
        if value not in known:
            raise PlanError(f"unknown {what} {value!r}; known: {', '.join(known)}")


def _recipe_for(source: str, facts: Facts | None) -> str:
    """Return the recipe for a kind of file; where its header cannot be read, for what it is named as."""
    kind = facts.kind if facts else "jwst" if source.lower().endswith(FITS_SUFFIXES) else "camera"
    job = job_for(kind)
    if job is None:
        raise PlanError(f"{source}: no recipe takes files of the kind {kind!r}")
    return job.recipe.name


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
    yield from expand_inputs(line if is_remote(line) else str(path.parent / line) for line in named)


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


def _identity(source: str, base: str) -> dict[str, Any]:
    """Name, size and time of change; only the name where the file cannot be looked at (it fails when it is read)."""
    try:
        if not is_remote(source):
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
    name = base[: -len(".gz")] if base.lower().endswith((".gz", ".fz")) else base
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


