"""From inputs to exposures: what to run, under which recipe, to which output."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

from skylevel.errors import PlanError, SkylevelError, StoreError, UnsupportedFrameError
from skylevel.io.frame import FITS_SUFFIXES, peek_frame
from skylevel.io.names import is_safe_component, printable, safe_component
from skylevel.io.nodes import MOST_PLACES, Place
from skylevel.io.records import FORMAT
from skylevel.io.remote import file_system
from skylevel.io.store import ProgramStore
from skylevel.io.urls import is_remote, url_name, without_secrets
from skylevel.jobs import JOBS, Facts, Job, job_for, job_of
from skylevel.program.inputs import Input, expand_inputs
from skylevel.recipes import RECIPES, Recipe, canonical_hash, recipe_named
from skylevel.version import __version__

STORE_NAME = "program.zarr"

LAYOUTS = ("full", "primary")

# Of the 255 bytes that a file's name may have, what those of the outputs leave.
_MOST_NAME_BYTES = 200

# Along an axis and in all: more than any detector has, or any mosaic that a disk holds.
_LONGEST_AXIS = 1 << 20
_MOST_PIXELS = 1 << 36

# Headers on a network are looked at by so many at once.
_REMOTE_PEEKS = 16

# What is to be done with an input: a recipe, or several among which its kind decides; by name, or with settings.
RecipeChoice = str | Recipe | Iterable[Recipe]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """One file to level, and everything its tasks must know.

    Attributes
    ----------
    name : str
        The file's name without its suffix, made safe; unique in a program.
    source : str
        Absolute path or URL, without what is its server's alone.
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
    again : bool
        Levelled though its header says that it was levelled before.
    access : str
        What it is read by: a URL with all that was given, which is kept nowhere; empty where that is `source`.
    trouble : str
        Why it will fail, as far as its header shows.
    """

    name: str
    source: str
    recipe: Recipe
    outputs: Mapping[str, str]
    layout: str
    identity: Mapping[str, Any]
    facts: Facts | None = None
    place: Place | None = None
    again: bool = False
    access: str = field(default="", repr=False, compare=False)
    trouble: str = field(default="", compare=False)

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
        # What was measured otherwise, or is to be combined otherwise, is not combined.
        settings = self.recipe.settings_of("mask", "measurement", "group")
        return self.place.node, f"{name}-{canonical_hash(settings)[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the store's index; the recipe stands apart, once for all who share it."""
        return {
            "name": self.name, "source": self.source, "outputs": dict(self.outputs), "layout": self.layout,
            "identity": dict(self.identity), "facts": self.facts and list(self.facts),
            "place": self.place and list(self.place), "again": self.again,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], recipe: Recipe) -> Self:
        """Return the inverse of `to_dict`.

        Raises
        ------
        KeyError, TypeError, ValueError
            The values are of another form.
        """
        name, source, layout = values["name"], values["source"], values["layout"]
        if not is_safe_component(name):
            raise ValueError(f"{name!r} is no name of an exposure")
        if not isinstance(source, str) or not (is_remote(source) or source.startswith(os.sep)):
            raise ValueError(f"{source!r} is no path or URL")
        if layout not in LAYOUTS:
            raise ValueError(f"{layout!r} is no layout")
        facts, place = values["facts"], values["place"]
        return cls(
            name=name,
            source=source,
            recipe=recipe,
            outputs=dict(values["outputs"]),
            layout=layout,
            identity=dict(values["identity"]),
            facts=facts and _facts(*facts),
            place=place and _place(*place),
            again=values.get("again") is True,
        )


def _facts(kind: str, shape: Sequence[int], attributes: Mapping[str, Any]) -> Facts:
    """Return facts of which every value is of a kind that a header can tell."""
    ny, nx = (int(n) for n in shape)
    is_possible = min(ny, nx) > 0 and max(ny, nx) <= _LONGEST_AXIS and ny * nx <= _MOST_PIXELS
    if not (isinstance(kind, str) and is_possible):
        raise ValueError(f"{kind!r} of {ny} x {nx} pixels is no frame")
    for value in attributes.values():
        if not all(isinstance(one, str | int | float) for one in (value if isinstance(value, list) else [value])):
            raise TypeError(f"{value!r} is no fact of a header")
    return Facts(kind, (ny, nx), dict(attributes))


def _place(node: str, index: int) -> Place:
    """Return a place that is in the store."""
    if not isinstance(node, str) or not isinstance(index, int) or not 0 <= index < MOST_PLACES:
        raise TypeError(f"{node!r} {index!r} is no place")
    if not all(map(is_safe_component, node.split("/"))):
        raise ValueError(f"{node!r} leads out of the store")
    return Place(node, index)


def make_plan(
    inputs: Iterable[str],
    output: str,
    *,
    recipe: RecipeChoice = "auto",
    layout: str = "full",
    keep: Sequence[str] = (),
    recursive: bool = False,
    again: bool = False,
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
    recursive : bool
        Look into the folders of folders.
    again : bool
        Level also what was levelled before.

    Returns
    -------
    list of Exposure
        Without places. What an earlier plan into `output` knows keeps its name, and its header is not read again.

    Raises
    ------
    PlanError
        Nothing matched an input; two inputs would write the same output, or an input would be overwritten.
    """
    _require_known("layout", [layout], LAYOUTS)
    _require_known("product to keep", keep, _further_products())
    only, settings = _choice(recipe)
    by_source = {found.source: found for found in expand_inputs(inputs, recursive=recursive)}
    found = sorted(by_source.values(), key=lambda one: (url_name(one.source), one.source))
    earlier = _earlier(output)
    names = _kept_names(_names(found), {e.source: e.name for e in earlier})
    identities = {one.source: _identity(one) for one in found}
    known = {(e.source, canonical_hash(e.identity)): e.facts for e in earlier if e.facts}
    told = _peek_all(found, identities, known)
    folder = output.rstrip("/") if is_remote(output) else str(Path(output).resolve())
    exposures = []
    for one in found:
        facts, trouble = told[one.source]
        chosen = settings[only or _recipe_for(one.source, facts)]
        exposures.append(
            Exposure(
                name=names[one.source],
                source=one.source,
                recipe=chosen,
                outputs=_outputs(chosen, names[one.source], folder, keep),
                layout=layout,
                identity=identities[one.source],
                facts=facts,
                again=again,
                access=one.access if one.access != one.source else "",
                trouble=trouble or ("" if again else _levelled_before(one.source, facts)),
            )
        )
    _refuse_collisions(exposures, folder)
    return exposures


def _levelled_before(source: str, facts: Facts | None) -> str:
    tool = facts.attributes.get("levelled_by") if facts else None
    return f"{source}: was levelled before, by {tool}; --again (again=True) levels it once more" if tool else ""


def require_unlevelled(exposure: Exposure, facts: Mapping[str, Any]) -> None:
    """Refuse an exposure that was levelled before, unless that is asked for.

    Raises
    ------
    UnsupportedFrameError
        With the tool that levelled it.
    """
    tool = _levelled_before(exposure.source, Facts("", (0, 0), facts))
    if tool and not exposure.again:
        raise UnsupportedFrameError(tool)


def _names(found: Sequence[Input]) -> dict[str, str]:
    """Return a name for each source: its file's without the suffix, where no other has that.

    Else with the folders below the one named, and where that is not enough with the suffix.
    """
    files = {one.source: url_name(one.source) for one in found}
    stems = {source: _stem(file) for source, file in files.items()}
    # Some file systems take names for the same that differ in case alone.
    count = Counter(stem.casefold() for stem in stems.values())
    below = {one.source: one.folder if count[stems[one.source].casefold()] > 1 else () for one in found}
    names = {source: "-".join([*below[source], stem]) for source, stem in stems.items()}
    count = Counter(names.values())
    whole = {source: "-".join([*below[source], file]) for source, file in files.items()}
    chosen = {source: name if count[name] == 1 else whole[source] for source, name in names.items()}
    return {source: safe_component(name, limit=_MOST_NAME_BYTES) for source, name in chosen.items()}


def _kept_names(names: dict[str, str], earlier: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each source: the one it had before, unless another has that now.

    What is done under a name would be forgotten, and done again under the other.
    """
    count = Counter(name.casefold() for name in names.values())
    single = [source for source, name in names.items() if count[name.casefold()] == 1]
    return names | {s: earlier[s] for s in single if s in earlier and not count[earlier[s].casefold()]}


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


def _earlier(output: str) -> list[Exposure]:
    """Return the plan of an earlier run into an output; none where there is none."""
    # What cannot be read there is said when the run begins.
    with suppress(Exception):
        return read_plan(ProgramStore(store_url(output)))
    return []


def _peek_all(
    found: Sequence[Input],
    identities: Mapping[str, Mapping[str, Any]],
    known: Mapping[tuple[str, str], Facts],
) -> dict[str, tuple[Facts | None, str]]:
    """Return what each file's header tells, by source; None where it cannot be read, and why."""
    keys = {one.source: (one.source, canonical_hash(identities[one.source])) for one in found}
    told = {s: (known[key], "") for s, key in keys.items() if key in known and "changed" in identities[s]}
    unknown = [one for one in found if one.source not in told]
    # A disk is read no faster by many at once.
    remote = any(is_remote(one.source) for one in unknown)
    with ThreadPoolExecutor(_REMOTE_PEEKS) as pool:
        peeks = list((pool.map if remote else map)(_peek, unknown))
    return told | {one.source: peek for one, peek in zip(unknown, peeks, strict=True)}


def _peek(one: Input) -> tuple[Facts | None, str]:
    # Whatever is wrong with a header is the exposure's own failure, when it is run.
    try:
        shape, attributes = peek_frame(one.access)
        return _facts(attributes.pop("kind"), shape, attributes), ""
    except SkylevelError as error:
        return None, str(error)
    except Exception as error:
        return None, f"{one.source}: {without_secrets(str(error), one.access) or type(error).__name__}"


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
            recipe = recipes[_index(values["recipe"])]
            outputs = _outputs_named(values["name"], values["outputs"], recipe, folder)
            exposures.append(Exposure.from_dict({**values, "outputs": outputs}, recipe))
        _require_distinct(exposures)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RecursionError, SkylevelError) as error:
        cause = printable(f"{type(error).__name__}: {error}", limit=200)
        raise StoreError(f"{store.name}: its plan.json is damaged: {cause}; run the program again") from error
    return exposures


def _index(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no recipe's index")
    return value


def _outputs_named(name: str, files: Mapping[str, Any], recipe: Recipe, folder: str) -> dict[str, str]:
    """Return the outputs of an exposure, which are those that its name gives and no other file."""
    outputs = _outputs(recipe, name, folder, list(files))
    named = {kind: url.rsplit("/", 1)[-1] for kind, url in outputs.items()}
    if named != dict(files):
        raise ValueError(f"{files!r} are not the outputs of {name!r}")
    return outputs


def _require_distinct(exposures: Sequence[Exposure]) -> None:
    """Refuse a plan in which two share a name or a place."""
    for what in ([exposure.name for exposure in exposures], [exposure.place for exposure in exposures]):
        shared = [one for one, count in Counter(what).items() if one is not None and count > 1]
        if shared:
            raise ValueError(f"two exposures have {shared[0]!r}")


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


def _identity(one: Input) -> dict[str, Any]:
    """Name, size and time of change; only the name where the file cannot be looked at (it fails when it is read)."""
    base = url_name(one.source)
    try:
        if not is_remote(one.source):
            stat = Path(one.source).stat()
            return {"name": base, "size": stat.st_size, "changed": stat.st_mtime_ns}
        files, path = file_system(one.access)
        info = files.info(path)
    except Exception:
        # Each protocol has errors of its own.
        return {"name": base}
    changed = info.get("ETag") or info.get("LastModified") or info.get("mtime")
    return {"name": base, "size": info.get("size"), "changed": str(changed)}


def _stem(base: str) -> str:
    """Return a file's name without its suffix; with it, where that is all there is."""
    name = base[: -len(".gz")] if base.lower().endswith((".gz", ".fz")) else base
    stem = name.rsplit(".", 1)[0]
    return stem if stem.strip(".") else base


def _refuse_collisions(exposures: Sequence[Exposure], folder: str) -> None:
    by_name: dict[str, list[str]] = defaultdict(list)
    spelling = spelling_in(folder)
    for exposure in exposures:
        by_name[spelling(exposure.name)].append(exposure.source)
    for name, sources in by_name.items():
        if len(sources) > 1:
            raise PlanError(
                f"{' and '.join(sources)} would write the same outputs ({name}...); run them into different folders"
            )
    written = {path for exposure in exposures for path in exposure.outputs.values()}
    for exposure in exposures:
        if exposure.source in written:
            raise PlanError(f"{exposure.source}: would be overwritten by an output; choose another output folder")


def spelling_in(folder: str) -> Callable[[str], str]:
    """Return what gives names one spelling that are one file in a folder, or where that will be."""
    return str.casefold if not is_remote(folder) and _ignores_case(Path(folder)) else str


def _ignores_case(folder: Path) -> bool:
    """Return whether names that differ in case alone are one file in a folder, or where that will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    other = folder.with_name(folder.name.swapcase()) if folder.name else folder
    return other.name != folder.name and other.exists() and other.samefile(folder)
