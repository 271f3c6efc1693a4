"""The settings of the two jobs: `Rows` and `Channels`, frozen and checked when they are made.

A recipe with no argument is the method of its notebook. Everything that shows settings to a person (the command
line's help, ``skylevel config``, the store's provenance) is generated from the fields below.
"""

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypedDict, Unpack

from skylevel.errors import SettingsError, short
from skylevel.files import cause, digest
from skylevel.html import table
from skylevel.version import __version__

# Keyword, value and comment of a FITS header.
Card = tuple[str, str | int | float | bool | None, str]

# The factors under which the notebook's author found white-light images smoothest.
NOTEBOOK_NORMS = {"R": 1.34, "G": 1.0, "B": 1.25}

# What a setting decides, and so what is done again where it changes: the source mask, what is measured given that, what
# a group of exposures knows together, the levelled image given those, or another product alone.
Decides = Literal["mask", "measurement", "group", "levelled", "product"]

ROWS_NOTEBOOK = "notebook: JWST NIRCam row-by-row background subtraction (Hsieh 2024)"
STREAMS = "own: rows as time streams beside sky and large sources"
PHOTUTILS_DEFAULT = "photutils Background2D's default, as in the notebook"
CHANNELS_NOTEBOOK = "notebook: Background subtraction of camera raw frames"
SMOOTH_SCENES = "tuned on scenes of known truth, benchmarks/night_scenes.py"


class Allowed(TypedDict, total=False):
    """What a setting may be: a number from `low` to `high`, above `above`, or odd; one of `choices`."""

    low: float
    high: float
    above: float
    odd: bool
    choices: tuple[str, ...]


# Between a mask's path and the digest of its content.
_DIGEST_MARK, _DIGEST_LENGTH = "#sha256:", 32
# A mask of the largest mosaics there are, in double precision, has half of it.
_MOST_MASK_BYTES = 4 << 30

# Images are computed in single precision, which ends at 3e38.
_LARGEST = 1e30

_ANYTHING: Allowed = {"low": -math.inf, "high": math.inf, "above": -math.inf, "odd": False, "choices": ()}


def about(doc: str, *, source: str, decides: Decides, unit: str = "", **allowed: Unpack[Allowed]) -> dict[str, Any]:
    """Return the metadata of a recipe's field: what it means, what it may be, and what it decides."""
    return {"doc": doc, "source": source, "decides": decides, "unit": unit, **_ANYTHING, **allowed}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What `Rows` and `Channels` share: checking, canonical form, and changes by name.

    Raises
    ------
    SettingsError
        A value is of the wrong type or outside what its field allows.
    """

    name: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __post_init__(self) -> None:
        for setting in fields(self):
            object.__setattr__(self, setting.name, _checked(self.name, setting, getattr(self, setting.name)))

    @classmethod
    def preset(cls, name: str) -> Self:
        """Return the recipe under a well-known name; ``"notebook"`` is the default settings."""
        if name not in cls.presets:
            known = ", ".join(cls.presets) + nearest(name, list(cls.presets))
            raise SettingsError(f"{cls.name}: unknown preset {name!r}; known: {known}")
        return cls(**cls.presets[name])

    @classmethod
    def or_default(cls, recipe: Self | None) -> Self:
        """Return a recipe that was given, or the default settings where none was."""
        if recipe is None:
            return cls()
        if not isinstance(recipe, cls):
            given = type(recipe).__name__ if isinstance(recipe, Recipe) else repr(recipe)
            raise SettingsError(f"recipe = {given}: needs {cls.__name__}() or {cls.__name__}.preset('best')")
        return recipe

    def replace(self, settings: Mapping[str, Any]) -> Self:
        """Return a copy with some settings changed; a dotted name (``norms.R``) reaches into a mapping."""
        values = self.to_dict()
        for dotted, value in settings.items():
            _assign(self.name, values, dotted, value)
        return type(self)(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, in field order, ready for JSON or TOML."""
        return dataclasses.asdict(self)

    def settings_of(self, *decided: Decides) -> dict[str, Any]:
        """Return the settings alone that decide some results: whether a stored one still holds."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["decides"] in decided}

    def provenance(self) -> dict[str, str]:
        """Return attributes of what was levelled with it: version, name, hash and settings."""
        settings = ", ".join(f"{name}={value}" for name, value in self.to_dict().items())
        return {
            "skylevel_version": __version__, "skylevel_recipe": self.name, "skylevel_hash": self.hash,
            "skylevel_settings": settings,
        }  # fmt: skip

    def _repr_html_(self) -> str:
        """Return a table of the settings for a notebook."""
        rows = [(f.name, getattr(self, f.name), f.metadata["unit"], f.metadata["doc"]) for f in fields(self)]
        return table(f"{type(self).__name__}: settings", ("setting", "value", "unit", "meaning"), rows)

    @property
    def hash(self) -> str:
        """SHA-256 (64 hex digits) of the canonical JSON of the recipe's name and settings."""
        return canonical_hash({"recipe": self.name, "settings": self.to_dict()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(Recipe):
    """Settings of the row job: the level of each detector row is subtracted.

    With no argument, the method of the NIRCam notebook.
    """

    name: ClassVar[str] = "rows"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "notebook": {},
        "best": {"method": "streams", "dq_flags": 1},
        "program": {"method": "streams", "dq_flags": 1, "together": True},
    }

    method: str = field(default="median", metadata=about(
        "\"median\": from each row the median of its source-free pixels, sky and all, as in the notebook. \"streams\": "
        "the stripes alone, of each row and amplifier, solved together with a smooth sky and large sources; the sky "
        "stays.",
        choices=("median", "streams"), decides="mask", source=ROWS_NOTEBOOK))
    box_size: int = field(default=50, metadata=about(
        "Side of the boxes in which the background is measured.",
        unit="pixel", low=1, decides="mask", source=ROWS_NOTEBOOK))
    filter_size: int = field(default=3, metadata=about(
        "Side of the median filter over the mesh of boxes; 1 is no filter.",
        unit="box", low=1, odd=True, decides="mask", source=ROWS_NOTEBOOK))
    sigma_clip: float = field(default=3.0, metadata=about(
        "Pixels further than this from their box's median (method \"median\", at most 10 rounds) or from their "
        "surroundings (\"streams\") are clipped.",
        unit="standard deviation", above=0.0, decides="mask", source=PHOTUTILS_DEFAULT))
    threshold: float = field(default=2.0, metadata=about(
        "A source stands this far above the background.",
        unit="background rms", decides="mask", source=ROWS_NOTEBOOK))
    kernel_fwhm: float = field(default=3.0, metadata=about(
        "Full width at half maximum of the Gaussian that smooths the image before detection.",
        unit="pixel", low=0.1, high=1000.0, decides="mask", source=ROWS_NOTEBOOK))
    kernel_size: int = field(default=3, metadata=about(
        "Side of that Gaussian's kernel.",
        unit="pixel", low=1, high=1001, odd=True, decides="mask", source=ROWS_NOTEBOOK))
    n_pixels: int = field(default=5, metadata=about(
        "A source has at least this many connected pixels (edges and corners connect).",
        unit="pixel", low=1, decides="mask", source=ROWS_NOTEBOOK))
    exclude_percentile: float = field(default=10.0, metadata=about(
        "A box with more than this percentage of masked or clipped pixels is left out. Where that leaves no box, "
        "it is relaxed through 10, 20, 40, 80, 100 until one is left.",
        unit="percent", low=0.0, high=100.0, decides="mask", source=PHOTUTILS_DEFAULT))
    positive_only: bool = field(default=True, metadata=about(
        "Only pixels above 0 enter a row's median.",
        decides="measurement", source=ROWS_NOTEBOOK))
    axis: str = field(default="auto", metadata=about(
        "Direction of the stripes: from the header's FASTAXIS (rows when unknown), or as said.",
        choices=("auto", "rows", "columns"), decides="measurement",
        source="rows in the notebook; FASTAXIS of JWST headers"))
    dq_flags: int = field(default=0, metadata=about(
        "Pixels with any of these DQ flags do not count: the sum of their values, 1 is DO_NOT_USE; 0: flags are not "
        "looked at.",
        low=0, high=2.0**32 - 1, decides="mask", source="0 in the notebook; flags of the JWST pipeline"))
    mask: str = field(default="", metadata=about(
        "File of a mask of your own: FITS, where pixels that are not 0 do not count; or DS9 regions (.reg), in "
        "pixels or on the sky, with the package regions. Workers read it under the same path; its content is "
        "part of what decides whether something is done again.",
        decides="mask", source="none in the notebook"))
    source_threshold: float = field(default=3.5, metadata=about(
        "Method \"streams\": sources stand this far out of the smoothed image, at scales of 2, 8 and 16 pixels.",
        unit="standard deviation", above=0.0, decides="mask", source=STREAMS))
    sky_degree: int = field(default=3, metadata=about(
        "Method \"streams\": degree of the sky's polynomial.",
        low=0, high=8, decides="measurement", source=STREAMS))
    sky_steepness: float = field(default=0.015, metadata=about(
        "Method \"streams\": the gradient that is expected of a sky, as a part of its level; how steep this one is, is "
        "read from the data.",
        low=1e-6, high=10.0, decides="measurement", source=STREAMS))
    large_source_threshold: float = field(default=2.5, metadata=about(
        "Method \"streams\": a large source's blocks of 64 pixels stand this far above sky and stripes.",
        unit="standard deviation", above=0.0, decides="measurement", source=STREAMS))
    large_source_spacing: int = field(default=128, metadata=about(
        "Method \"streams\": distance of the splines that describe large sources.",
        unit="pixel", low=64, decides="measurement", source=STREAMS))
    noise_exponent: float = field(default=1.0, metadata=about(
        "Method \"streams\": the stripes' power is expected to fall as frequency to minus this.",
        low=0.4, high=1.8, decides="measurement", source="spacetelescope/jwst#7262; read from the data"))
    noise_exponent_rms: float = field(default=0.2, metadata=about(
        "Method \"streams\": by how much that exponent may differ.",
        low=1e-3, high=10.0, decides="measurement", source=STREAMS))
    stripe_gate: float = field(default=2.0, metadata=about(
        "Method \"streams\": stripes below this are taken for none, and a frame without stripes is left alone.",
        unit="standard error", low=0.0, decides="measurement", source=STREAMS))
    misfit_limit: float = field(default=2.0, metadata=about(
        "Method \"streams\": where blocks of 64 pixels scatter more than this about sky and large sources, as in a "
        "nebula, these are not believed, and only what changes from row to row is taken off, with the steps between "
        "amplifiers.",
        unit="standard deviation", above=0.0, decides="measurement", source=STREAMS))
    columns: bool = field(default=False, metadata=about(
        "Method \"streams\": after the rows, columns lose what sets them off from those around them, where that is "
        "more than noise by the gate.",
        decides="measurement", source="the default of no tool: NIRCam's columns carry little"))
    together: bool = field(default=False, metadata=about(
        "Method \"streams\": exposures of one detector, filter and time span share a sky's shape, and are levelled "
        "with it; one that disagrees, or is alone, is levelled by itself.",
        decides="group", source=STREAMS))
    group_days: float = field(default=10.0, metadata=about(
        "Length of the time spans within which exposures share a sky; they are counted from MJD 0.",
        unit="day", low=1e-3, high=1e6, decides="group", source=STREAMS))
    n_levels: int = field(default=32, metadata=about(
        "Levels of deblending; only the segmentation product is deblended.",
        low=1, decides="product", source=ROWS_NOTEBOOK))
    contrast: float = field(default=0.001, metadata=about(
        "Fraction of a source's flux that makes a peak its own object in the segmentation product.",
        low=0.0, high=1.0, decides="product", source=ROWS_NOTEBOOK))  # fmt: skip


    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        object.__setattr__(self, "mask", _pinned(self.mask))


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels(Recipe):
    """Settings of the channel job: a smooth background is subtracted from each colour of a camera raw frame.

    With no argument, the method of the night-sky notebook; the preset "best" keeps galaxies and nebulae out of the
    background, "program" takes a night's frames together as well.
    """

    name: ClassVar[str] = "channels"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "notebook": {},
        "planes": {"method": "planes"},
        "best": {"method": "smooth", "box_size": 48},
        "program": {"method": "smooth", "box_size": 48, "together": True},
    }

    box_size: int = field(default=100, metadata=about(
        "Side of the boxes in which the background is measured, on the mosaic.",
        unit="pixel", low=1, decides="measurement", source=CHANNELS_NOTEBOOK))
    filter_size: int = field(default=11, metadata=about(
        "Side of the median filter over the mesh of boxes; 1 is no filter.",
        unit="box", low=1, odd=True, decides="measurement", source=CHANNELS_NOTEBOOK))
    sigma_clip: float = field(default=5.0, metadata=about(
        "Pixels further than this from their box's median are clipped (at most 5 rounds).",
        unit="standard deviation", above=0.0, decides="measurement", source=CHANNELS_NOTEBOOK))
    exclude_percentile: float = field(default=10.0, metadata=about(
        "A box with more than this percentage of masked or clipped pixels is left out. Where that leaves no box, "
        "it is relaxed through 10, 20, 40, 80, 100 until one is left.",
        unit="percent", low=0.0, high=100.0, decides="measurement", source=PHOTUTILS_DEFAULT))
    kernel_stddev: float = field(default=1.0, metadata=about(
        "Standard deviation of the Gaussian that fills a colour's gaps (method \"filled\").",
        unit="pixel", low=0.15, high=100.0, decides="measurement", source=CHANNELS_NOTEBOOK))
    estimator: str = field(default="mode", metadata=about(
        "A box's background: its mode (3 median - 2 mean), median or mean, after clipping.",
        choices=("mode", "median", "mean"), decides="measurement", source=CHANNELS_NOTEBOOK))
    norms: Mapping[str, float] = field(default_factory=lambda: dict(NOTEBOOK_NORMS), hash=False, metadata=about(
        "Factor on each colour after its background is subtracted; 1 for a colour not named.",
        above=0.0, decides="levelled", source=CHANNELS_NOTEBOOK))
    method: str = field(default="filled", metadata=about(
        "\"filled\": each colour's gaps are filled before its boxes are measured, as in the notebook. "
        "\"planes\": each colour's own pixels alone are measured; faster, and without the pull toward 0 that filling "
        "gives the frame's edge. \"smooth\": so they are, and one smooth surface is fitted through the boxes' medians, "
        "with boxes left out that hold light above it: galaxies and nebulae stay. It takes box_size, degree, stiffness "
        "and rejection; filter_size, sigma_clip, exclude_percentile, kernel_stddev and estimator are the others'.",
        choices=("filled", "planes", "smooth"), decides="measurement", source=CHANNELS_NOTEBOOK))
    degree: int = field(default=10, metadata=about(
        "Degree of the surface in x and y together (method \"smooth\"): what changes within about a tenth of the frame "
        "is not the sky's.",
        low=0, high=20, decides="measurement", source=SMOOTH_SCENES))
    stiffness: float = field(default=1.0, metadata=about(
        "How strongly the surface is held to be as smooth as most of the frame shows it (method \"smooth\"): 0 leaves "
        "it free up to its degree, 2 allows half as much of its finer parts.",
        low=0.0, decides="measurement", source=SMOOTH_SCENES))
    rejection: float = field(default=3.0, metadata=about(
        "A box this far above the surface, alone or with its neighbours, counts half, and further ones soon nothing "
        "(method \"smooth\").",
        unit="standard deviation", above=0.0, decides="measurement", source=SMOOTH_SCENES))
    black_level: float = field(default=0.0, metadata=about(
        "What a pixel without light reads, where the file does not tell: raws do, FITS does not. Division and a "
        "night's vignetting need it (method \"smooth\").",
        unit="ADU", low=0.0, decides="measurement", source="the camera's, as LibRaw tells it"))
    together: bool = field(default=False, metadata=about(
        "Frames of one camera, lens setting, exposure time and night are solved together (method \"smooth\"): the "
        "vignetting they share, and a gradient of each frame's own.",
        decides="group", source=SMOOTH_SCENES))
    disagreement: float = field(default=0.15, metadata=about(
        "A frame is left to itself if the night's mean and a smooth difference of its own fail to describe more than "
        "this share of its boxes: clouds, trees, another lens.",
        low=0.0, high=1.0, decides="group", source=SMOOTH_SCENES))
    correction: str = field(default="subtract", metadata=about(
        "\"subtract\": a colour's background is taken off. \"divide\": what is left is then divided by the share of "
        "light that came there, the night's vignetting, or of a frame alone its own background, 1 at its brightest "
        "(method \"smooth\"): stars are as bright in the corners.",
        choices=("subtract", "divide"), decides="levelled", source=SMOOTH_SCENES))
    pedestal: float = field(default=0.0, metadata=about(
        "Added to every pixel last, for programs that cut off negative values.",
        unit="ADU", decides="levelled", source="0 in the notebook"))  # fmt: skip


RECIPES: dict[str, type[Recipe]] = {cls.name: cls for cls in (Rows, Channels)}


def cards_of(attributes: Mapping[str, Any]) -> tuple[list[Card], list[str]]:
    """Return FITS cards and HISTORY lines that say what `Recipe.provenance` does."""
    version, name = attributes.get("skylevel_version", __version__), attributes.get("skylevel_recipe", "")
    cards: list[Card] = [
        ("SKYLEVEL", str(version), "version of skylevel that levelled this"),
        ("SKYRECIP", str(name), "recipe of skylevel"),
        ("SKYHASH", str(attributes.get("skylevel_hash", ""))[:16], "its hash: SHA-256, first 16 digits"),
    ]
    return cards, [f"skylevel {version} {name}: {attributes.get('skylevel_settings', '')}"]


def split_mask(reference: str) -> tuple[str, str]:
    """Return the path of a mask and the digest of its content, from what `Rows.mask` holds."""
    path, mark, digest = reference.rpartition(_DIGEST_MARK)
    return (path, digest) if mark else (reference, "")


def _pinned(mask: str) -> str:
    """Return a mask's absolute path with the digest of its content, which so is part of every key."""
    if not mask or _DIGEST_MARK in mask:
        return mask
    try:
        path = Path(mask).expanduser().absolute()
        return f"{path}{_DIGEST_MARK}{mask_digest(path)}"
    except (OSError, ValueError, RuntimeError) as error:
        raise SettingsError(f"rows.mask = {mask!r}: cannot be read: {cause(error)}") from error


def mask_digest(path: Path) -> str:
    """Return the digest of a mask's content, as `Rows.mask` holds it.

    Raises
    ------
    OSError, ValueError
        It cannot be read, or is no regular file of a size that a mask can have.
    """
    return digest(path, _MOST_MASK_BYTES)[:_DIGEST_LENGTH]


def canonical_hash(value: Any) -> str:
    """Return the SHA-256 (64 hex digits) of the canonical JSON of plain values: the same on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def recipe_named(name: str) -> type[Recipe]:
    """Return the recipe class under its name.

    Raises
    ------
    SettingsError
        There is no recipe of that name.
    """
    if name not in RECIPES:
        raise SettingsError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}{nearest(name, list(RECIPES))}")
    return RECIPES[name]


def nearest(name: str, known: list[str]) -> str:
    """Return what ends a message on an unknown name: the known one that may be meant; empty where there is none."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _assign(recipe: str, values: dict[str, Any], dotted: str, value: Any) -> None:
    key, _, inner = dotted.partition(".")
    if key not in values:
        raise SettingsError(
            f"{recipe}: unknown setting {key!r}{nearest(key, list(values))}; known: {', '.join(values)}"
        )
    if not inner:
        values[key] = value
    elif isinstance(values[key], dict):
        values[key][inner] = value
    else:
        raise SettingsError(f"{recipe}: {key} is a single value, so {dotted!r} names nothing")


def _checked(recipe: str, setting: dataclasses.Field[Any], value: Any) -> Any:
    """Return the value as its field's type; text (from the command line) is converted."""
    label = f"{recipe}.{setting.name}"
    if setting.name == "norms":
        if not isinstance(value, Mapping):
            raise SettingsError(f"{label} = {_shown(value)}: needs a factor by colour, such as {{R = 1.34}}")
        return {str(k): _number(f"{label}.{k}", setting.metadata, v) for k, v in value.items()}
    if setting.type is bool:
        return _boolean(label, value)
    if setting.type is str:
        choices = setting.metadata["choices"]
        return _choice(label, choices, value) if choices else _text(label, value)
    number = _number(label, setting.metadata, value)
    if setting.type is float:
        return number
    if number != int(number):
        raise SettingsError(f"{label} = {_shown(value)}: needs a whole number")
    return int(number)


def _number(label: str, rule: Mapping[str, Any], value: Any) -> float:
    try:
        # Adding 0 turns -0 into 0, which equals it and must have the same hash.
        number = math.nan if isinstance(value, bool) else float(value) + 0.0
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise SettingsError(f"{label} = {_shown(value)}: needs a number")
    if abs(number) > _LARGEST:
        raise SettingsError(f"{label} = {_shown(value)}: needs a number from {-_LARGEST:g} to {_LARGEST:g}")
    if not (rule["low"] <= number <= rule["high"] and number > rule["above"]):
        raise SettingsError(f"{label} = {_shown(value)}: {_range(rule)}")
    if rule["odd"] and number % 2 != 1:
        raise SettingsError(f"{label} = {_shown(value)}: needs an odd whole number")
    return number


def _shown(value: Any) -> str:
    """Return a value for a message: on one short line, whatever was given."""
    try:
        return short(repr(value))
    except (ValueError, RecursionError):
        # A number of more digits than Python writes, tables in tables in tables.
        return f"({type(value).__name__})"


def _range(rule: Mapping[str, Any]) -> str:
    if math.isfinite(rule["above"]):
        most = f", at most {rule['high']:g}" if math.isfinite(rule["high"]) else ""
        return f"needs a value above {rule['above']:g}{most}"
    if math.isfinite(rule["high"]):
        return f"needs a value from {rule['low']:g} to {rule['high']:g}"
    return f"needs a value of at least {rule['low']:g}"


def _boolean(label: str, value: Any) -> bool:
    known = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise SettingsError(f"{label} = {_shown(value)}: needs true or false")


def _text(label: str, value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise SettingsError(f"{label} = {_shown(value)}: needs text")
    return value


def _choice(label: str, choices: tuple[str, ...], value: Any) -> str:
    if value not in choices:
        near = nearest(str(value), list(choices))
        raise SettingsError(f"{label} = {_shown(value)}: needs one of {', '.join(choices)}{near}")
    return str(value)
