"""How far levelled exposures are from the truth, one exposure at a time and in groups that share a sky.

python benchmarks/quality.py [--seeds 1 2 3] [--groups 1 2] [--kinds flat sparse ...] [--stress] [--peers]

Rms in 1e-3 of the data's unit, a constant removed: `amp` of the medians of levelled less clean, for each row and
amplifier; `bias` is the median error on sources less that off them. Seeds below 100 were used for tuning.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from nircam_bound import least_errors
from nircam_scenes import BORDER, KINDS, N_AMPLIFIERS, SIZE, Exposure, make_exposure, make_group
from racing import HERE, importable, table
from threadpoolctl import threadpool_limits

from skylevel import Rows, level_rows
from skylevel.jobs import JOBS
from skylevel.level import estimate_rows, subtract_rows

JWST_PYTHON = "SKYLEVEL_BENCH_JWST_PYTHON"
STRESS: Mapping[str, Mapping[str, float]] = {
    "sky twice as steep": {"steepness": 2.0},
    "stripes halved": {"stripes": 0.5},
    "f^-0.6": {"exponent": 0.6},
    "f^-1.4": {"exponent": 1.4},
}
NO_STRIPES = {"stripes": 0.0}
UNCORRECTED, DEFAULT, BEST, PROGRAM = "uncorrected", "skylevel, default", "skylevel, `best`", "skylevel, `program`"
LEAST = "the best linear method"
# Kinds of scene whose sky is one that `nircam_bound` knows of.
_WITH_SKY = ("sparse", "crowded", "extended")
# What `best` and `program` were built to reach: amp, and the mean size of bias.
BEST_LIMITS = {"flat": (1.6,), "sparse": (2.2,), "crowded": (2.8,), "extended": (2.8, 1.5), "nebula": (6.4,)}
PROGRAM_LIMITS = {"flat": (1.5,), "sparse": (1.5,), "crowded": (1.8,), "extended": (2.1, 1.2)}
HIGHEST_OF_GROUP = 3.5
# What may be added to a frame without stripes, over the white noise of a row and amplifier.
ADDED_LIMIT = 0.1
# On the page: exposures, groups and exposures under stress, none of which was ever looked at while tuning.
SEEDS, GROUPS, STRESS_SEEDS = (3001, 3002, 3003), (3011, 3021), (3031,)
# As a mean over three is a matter of luck: more of them, without other tools.
MORE_SEEDS, MORE_GROUPS = tuple(range(3101, 3113)), tuple(range(3151, 3155))
PICTURED = ("extended", 3001)
PICTURE = HERE / "quality_rows.png"


class Score(NamedTuple):
    """Errors of one exposure in 1e-3 of the unit; `before` is `amp` of the exposure as it was."""

    amp: float
    bias: float
    before: float
    seconds: float


def frame_of(exposure: Exposure) -> xr.Dataset:
    """An exposure as `skylevel.open_frame` gives one of NIRCam."""
    planes = {"sci": exposure.image, "dq": exposure.bad.astype(np.uint32)}
    header = {"instrument": "NIRCAM", "n_outputs": N_AMPLIFIERS, "fast_axis": -1, "slow_axis": 2}
    return xr.Dataset({name: (("y", "x"), plane) for name, plane in planes.items()}, attrs=header)


def stripe_errors(levelled: np.ndarray, truth: Exposure) -> tuple[float, float]:
    """Return `amp` and `bias` of a levelled exposure."""
    rest = (levelled - truth.clean)[BORDER:-BORDER].astype(np.float64)
    rest[:, :BORDER] = rest[:, -BORDER:] = np.nan
    rest -= np.nanmedian(rest)
    rows = np.nanmedian(rest.reshape(len(rest), N_AMPLIFIERS, -1), axis=2)
    on, off = _on_and_off(truth.sources[BORDER:-BORDER])
    return 1e3 * float(np.sqrt(np.mean(rows**2))), 1e3 * float(np.nanmedian(rest[on]) - np.nanmedian(rest[off]))


def _on_and_off(light: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels on sources and off them; in a nebula the brightest tenth and the faintest third."""
    on, off = light > 0.1, light < 0.005
    if off.mean() < 0.01:
        return light > np.percentile(light, 90), light < np.percentile(light, 30)
    return on, off


def score(exposure: Exposure, levelled: np.ndarray, seconds: float) -> Score:
    return Score(*stripe_errors(levelled, exposure), stripe_errors(exposure.image, exposure)[0], seconds)


def ours(exposure: Exposure, preset: str) -> tuple[np.ndarray, float]:
    frame, recipe = frame_of(exposure), Rows.preset(preset)
    start = time.process_time()
    levelled = level_rows(frame, recipe)["sci"].to_numpy()
    return levelled, time.process_time() - start


def by_hand(exposure: Exposure, measured: Callable[..., tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, float]:
    """What a library's background and sources are used for by hand: medians of rows and amplifiers of what is left."""
    bad = exposure.bad | np.isnan(exposure.image)
    start = time.process_time()
    background, mask = measured(np.where(bad, np.float32(0), exposure.image), bad)
    rest = np.where(mask | bad, np.nan, exposure.image - background).reshape(SIZE, N_AMPLIFIERS, -1)
    with warnings.catch_warnings():
        # Rows of the border have no pixel.
        warnings.simplefilter("ignore", RuntimeWarning)
        levels = np.nan_to_num(np.nanmedian(rest, axis=2))
    levelled = exposure.image - np.repeat(levels, SIZE // N_AMPLIFIERS, axis=1).astype(np.float32)
    return levelled, time.process_time() - start


def with_photutils(image: np.ndarray, bad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from photutils.background import Background2D
    from photutils.segmentation import detect_sources

    found = Background2D(image, 64, filter_size=3, mask=bad, exclude_percentile=50)
    sources = detect_sources(image - found.background, 2 * found.background_rms, n_pixels=5, mask=bad)
    return found.background, np.zeros(bad.shape, bool) if sources is None else sources.data > 0


def with_sep(image: np.ndarray, bad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import sep

    sep.set_extract_pixstack(SIZE * SIZE)
    found = sep.Background(image, mask=bad, bw=64, bh=64)
    rest = image - found.back()
    labels = sep.extract(rest, 2.0, err=found.globalrms, mask=bad, segmentation_map=True, deblend_cont=1.0)[1]
    return found.back(), labels > 0


def peers_of(exposure: Exposure) -> dict[str, tuple[np.ndarray, float]]:
    """What other tools make of an exposure; those that are not installed are left out."""
    found = {"photutils: background, mask, medians": by_hand(exposure, with_photutils)}
    if importable("sep"):
        found["sep: background, mask, medians"] = by_hand(exposure, with_sep)
    return found | _by_jwst(exposure)


def jwst_python() -> str:
    """The Python that has the package jwst; empty where none is named or has it."""
    return os.environ.get(JWST_PYTHON) or (sys.executable if importable("jwst") else "")


def _by_jwst(exposure: Exposure) -> dict[str, tuple[np.ndarray, float]]:
    if not jwst_python():
        return {}
    with tempfile.TemporaryDirectory(prefix="skylevel-jwst-") as folder:
        np.save(f"{folder}/image.npy", exposure.image)
        np.save(f"{folder}/bad.npy", exposure.bad)
        script = [jwst_python(), str(HERE / "contenders" / "pipeline.py"), folder]
        seconds = json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        return {f"JWST pipeline: {name}": (np.load(f"{folder}/{name}.npy"), took) for name, took in seconds.items()}


def score_alone(kind: str, seed: int, changes: Mapping[str, float], *, peers: bool) -> dict[str, Score]:
    """Scores of an exposure by each tool; under stress by `best` alone."""
    exposure = make_exposure(kind, seed, **changes)
    found = {BEST: ours(exposure, "best")}
    if not changes:
        found = {UNCORRECTED: (exposure.image, 0.0), DEFAULT: ours(exposure, "notebook"), **found}
    if peers:
        found |= peers_of(exposure)
    scores = {name: score(exposure, *levelled) for name, levelled in found.items()}
    if not changes and kind in _WITH_SKY:
        scores[LEAST] = Score(*least_errors([exposure], seed), 0.0, scores[BEST].before, 0.0)
    return scores


def score_group(kind: str, seed: int) -> dict[str, list[Score]]:
    """Scores of a group's exposures alone and together; together the seconds are the group step's, an exposure."""
    recipe, exposures, scores = Rows.preset("program"), list(make_group(kind, seed)), defaultdict(list)
    frames = list(map(frame_of, exposures))
    estimates = [estimate_rows(frame, recipe) for frame in frames]
    start = time.process_time()
    group = JOBS["rows"].combine(xr.concat(estimates, "exposure"), recipe)
    combining = (time.process_time() - start) / len(estimates)
    for k, (exposure, frame) in enumerate(zip(exposures, frames, strict=True)):
        scores[BEST].append(score(exposure, subtract_rows(frame, estimates[k], recipe).to_numpy(), 0.0))
        start = time.process_time()
        levelled = subtract_rows(frame, estimates[k], recipe, group.isel(member=k)).to_numpy()
        scores[PROGRAM].append(score(exposure, levelled, combining + time.process_time() - start))
    if kind in _WITH_SKY:
        scores[LEAST] = [Score(least, 0.0, 0.0, 0.0) for least in least_errors(exposures, seed)]
    return dict(scores)


def _in_one_thread(function: Callable[..., object], *args: object) -> object:
    with threadpool_limits(1):
        return function(*args)


class Measured(NamedTuple):
    """Scores by kind and tool; by kind and stress; and by kind and group."""

    alone: dict[str, dict[str, list[Score]]]
    stress: dict[str, dict[str, list[Score]]]
    groups: dict[str, dict[int, dict[str, list[Score]]]]


def measure(
    kinds: Sequence[str], seeds: Sequence[int], groups: Sequence[int], stress: Sequence[int], *, peers: bool
) -> Measured:
    """Score everything, on as many processes as there are cores."""
    found = Measured(defaultdict(lambda: defaultdict(list)), defaultdict(lambda: defaultdict(list)), defaultdict(dict))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        submit = partial(pool.submit, _in_one_thread)
        of_groups = {(k, g): submit(score_group, k, g) for k in kinds if k != "nebula" for g in groups}
        alone = {(k, s): submit(partial(score_alone, peers=peers), k, s, {}) for k in kinds for s in seeds}
        stressed = {
            (k, name, s): submit(partial(score_alone, peers=False), k, s, changes)
            for k in kinds
            for name, changes in {**STRESS, "no stripes": NO_STRIPES}.items()
            for s in stress
        }
        for (kind, seed), future in of_groups.items():
            found.groups[kind][seed] = future.result()
        for (kind, _), future in alone.items():
            for name, one in future.result().items():
                found.alone[kind][name].append(one)
        for (kind, name, _), future in stressed.items():
            found.stress[kind][name].append(future.result()[BEST])
    return found


def shown(scores: Sequence[Score], limits: Sequence[float] = (), highest: float = np.inf) -> str:
    """Mean and range of amp, mean bias and mean size of bias; a limit that is missed in bold."""
    if not scores:
        return ""
    amp, bias, *_ = np.array(scores).T
    missed = limits and (amp.mean() > limits[0] or amp.max() > highest)
    mean = f"**{amp.mean():.2f}**" if missed else f"{amp.mean():.2f}"
    size = np.abs(bias).mean()
    sized = f"**{size:.1f}**" if len(limits) > 1 and size > limits[1] else f"{size:.1f}"
    return f"{mean} ({amp.min():.1f}-{amp.max():.1f}); {bias.mean():+.1f}, {sized}"


def least_shown(scores: Mapping[str, Sequence[Score]]) -> str:
    """Mean of the least error, where it is known."""
    return f"{np.mean([one.amp for one in scores[LEAST]]):.2f}" if LEAST in scores else ""


def alone_table(found: Measured) -> str:
    kinds = list(found.alone)
    names = list(dict.fromkeys(name for kind in kinds for name in found.alone[kind] if name != LEAST))
    lines = []
    for name in names:
        of_kind = [shown(found.alone[k].get(name, ()), BEST_LIMITS[k] if name == BEST else ()) for k in kinds]
        every = [one for k in kinds for one in found.alone[k][name]]
        worse = sum(one.amp > one.before for one in every)
        seconds = np.mean([one.seconds for one in every])
        lines.append([name, *of_kind, f"{worse} of {len(every)}", f"{seconds:.2f}"])
    lines.append([f"{LEAST}, slow part", *(least_shown(found.alone[k]) for k in kinds), "", ""])
    lines.append(["asked of `best`", *(", ".join(map(str, BEST_LIMITS[k])) for k in kinds), "0", ""])
    return table(("one exposure", *kinds, "worse than uncorrected", "CPU s"), lines)


def group_table(found: Measured) -> str:
    lines = []
    for kind, groups in found.groups.items():
        for seed, scores in groups.items():
            both = [shown(scores[BEST]), shown(scores[PROGRAM], PROGRAM_LIMITS[kind], HIGHEST_OF_GROUP)]
            seconds = np.mean([one.seconds for one in scores[PROGRAM]])
            asked = ", ".join(map(str, PROGRAM_LIMITS[kind]))
            lines.append([f"{kind}, {seed}", *both, least_shown(scores), asked, f"{seconds:.2f}"])
    head = "eight that share a sky", BEST, PROGRAM, f"{LEAST}, slow part", "asked of `program`", "CPU s an exposure"
    return table(head, lines)


def more_groups_table(found: Measured) -> str:
    """One line for each kind: means over all exposures of its groups, and the range of the groups' own means."""
    lines = []
    for kind, groups in found.groups.items():
        means = {name: [np.mean([one.amp for one in g[name]]) for g in groups.values()] for name in (BEST, PROGRAM)}
        (amp, *bias), asked = PROGRAM_LIMITS[kind], ", ".join(map(str, PROGRAM_LIMITS[kind]))
        size = np.abs([one.bias for g in groups.values() for one in g[PROGRAM]]).mean()
        highest = max(one.amp for g in groups.values() for one in g[PROGRAM])
        least = [np.mean([one.amp for one in g[LEAST]]) for g in groups.values() if LEAST in g]
        cells = [f"{np.mean(m):.2f} ({min(m):.2f}-{max(m):.2f})" for m in means.values()]
        cells[1] = f"**{cells[1]}**" if np.mean(means[PROGRAM]) > amp else cells[1]
        tall = f"**{highest:.2f}**" if highest > HIGHEST_OF_GROUP else f"{highest:.2f}"
        wrong = f"**{size:.1f}**" if bias and size > bias[0] else f"{size:.1f}"
        lines.append([kind, *cells, tall, wrong, f"{np.mean(least):.2f}" if least else "", asked])
    head = f"{len(MORE_GROUPS)} more groups", BEST, PROGRAM, "highest", "size of bias", f"{LEAST}, slow part", "asked"
    return table(head, lines)


def stress_table(found: Measured) -> str:
    lines = []
    for name in STRESS:
        of_kind = [found.stress[k][name] for k in found.stress]
        cells = []
        for scores in of_kind:
            amp, before = (np.array([getattr(one, f) for one in scores]) for f in ("amp", "before"))
            text = f"{amp.mean():.1f} of {before.mean():.1f}"
            cells.append(f"**{text}**" if (amp > before).any() else text)
        lines.append([name, *cells])
    nothing = [np.mean([one.amp for one in found.stress[k]["no stripes"]]) for k in found.stress]
    # White noise of a row and amplifier's mean, in the same unit.
    white = 1e3 * 0.02 / np.sqrt(SIZE / N_AMPLIFIERS)
    added = [n / white for n in nothing]
    texts = (f"**{n:.3f}**" if n > ADDED_LIMIT else f"{n:.3f}" for n in added)
    lines.append(["no stripes: added, over the white noise of a row", *texts])
    return table((BEST, *found.stress), lines)


def draw_residuals(path: Path, kind: str, seed: int) -> None:
    """A picture of what is wrong before and after: levelled less clean."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    exposure = make_exposure(kind, seed)
    images = {"as it was": exposure.image}
    images |= {name: ours(exposure, preset)[0] for name, preset in (("the default", "notebook"), ("best", "best"))}
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), dpi=90, layout="constrained")
    for axis, (name, image) in zip(axes, images.items(), strict=True):
        rest = 1e3 * (image - exposure.clean)[BORDER:-BORDER, BORDER:-BORDER]
        small = rest[: len(rest) // 8 * 8, : rest.shape[1] // 24 * 24].reshape(len(rest) // 8, 8, -1, 24)
        shown_image = np.nanmedian(small, axis=(1, 3))
        drawn = axis.imshow(
            shown_image - np.nanmedian(shown_image), vmin=-25, vmax=25, cmap="RdBu_r", origin="lower",
            extent=(0, SIZE, 0, SIZE), interpolation="nearest",
        )  # fmt: skip
        axis.set(title=f"{name}: {stripe_errors(image, exposure)[0]:.1f}", xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes, label="error, 1e-3 of the unit", shrink=0.9)
    figure.savefig(path)
    plt.close(figure)
    # In colours enough for the eye, it takes a quarter of the room.
    with Image.open(path) as drawn_image:
        drawn_image.convert("RGB").quantize(48).save(path, optimize=True)


def tables(*, quick: bool = False) -> str:
    """The rows' part of the page, in markdown; draws its picture."""
    seeds, groups = (SEEDS[:1], GROUPS[:1]) if quick else (SEEDS, GROUPS)
    found = measure(KINDS, seeds, groups, STRESS_SEEDS, peers=True)
    more = None if quick else measure(KINDS, MORE_SEEDS, MORE_GROUPS, (), peers=False)
    draw_residuals(PICTURE, *PICTURED)
    return text_of(found, seeds, groups, more)


def more_text(more: Measured) -> str:
    """Many exposures and groups by the presets alone."""
    seeds, groups = (f"{some[0]} to {some[-1]}" for some in (MORE_SEEDS, MORE_GROUPS))
    return f"""A mean over three exposures is a matter of luck. Not looked at while tuning either, seeds {seeds} and
groups {groups}:

{alone_table(more)}

{more_groups_table(more)}

"""


def text_of(found: Measured, seeds: Sequence[int], groups: Sequence[int], more: Measured | None) -> str:
    missing = [] if jwst_python() else [f"the JWST pipeline (name a Python that has it in `{JWST_PYTHON}`)"]
    missing += [] if importable("sep") else ["sep"]
    absent = f"\n\nNot installed here, and so not measured: {', '.join(missing)}." if missing else ""
    return f"""## Rows: stripes of NIRCam-like exposures

Scenes of 2048 x 2048 pixels whose truth is known (`nircam_scenes.py`), sky 0.5, white noise 0.02 a pixel. In 1e-3 of
the unit: the rms error of the levels of rows and amplifiers, a constant removed, as mean (range) over exposures; the
bias on sources, mean, and mean of its size. Seeds {", ".join(map(str, seeds))}, groups {", ".join(map(str, groups))}
and, under stress, {", ".join(map(str, STRESS_SEEDS))}: none was looked at while tuning. What misses its limit is
**bold**.

{alone_table(found)}

One exposure cannot tell its slowest stripes from a gradient of the sky along y. What that leaves on these same
exposures to the *best* linear method, one that knows exactly how skies and stripes are drawn and meets no source, is
shown too (`nircam_bound.py`); to it comes what white noise does to single rows, about 1 (as on flat). Over many
draws no linear method does better; on a single one another may have more luck.

The default takes sky and stripes together, as the notebook does: a gradient of the sky counts as its error. The JWST
step refuses NRC_IMAGE for `fft`; its function is called here on the turned image, named NRS1.{absent}

{group_table(found)}

{more_text(more) if more else ""}{stress_table(found)}

![{PICTURED[0]}: error before, by the default, and by best]({PICTURE.name})
"""


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    ask.add_argument("--groups", type=int, nargs="*", default=[1, 2], help="seeds of skies that eight exposures share")
    ask.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    ask.add_argument("--stress", type=int, nargs="*", default=[], help="seeds of steeper skies, weaker stripes ...")
    ask.add_argument("--peers", action="store_true", help="other tools too")
    asked = ask.parse_args()
    found = measure(asked.kinds, asked.seeds, asked.groups, asked.stress, peers=asked.peers)
    tables: Iterable[str] = (
        *([alone_table(found)] if asked.seeds else []),
        *([group_table(found)] if asked.groups else []),
        *([stress_table(found)] if asked.stress else []),
    )
    print(*tables, sep="\n\n")


if __name__ == "__main__":
    main()
