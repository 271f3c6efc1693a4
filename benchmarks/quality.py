"""How far levelled exposures are from the truth, one exposure at a time and in groups that share a sky.

python benchmarks/quality.py [--seeds 1 2 3] [--groups 1 2] [--kinds flat sparse ...] [--stress]

Rms in 1e-3 of the data's unit, a constant removed: `amp` of the medians of levelled less clean, for each row and
amplifier; `bias` is the median error on sources less that off them. Seeds below 100 were used for tuning.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from nircam_scenes import BORDER, KINDS, N_AMPLIFIERS, SIZE, Exposure, make_exposure, make_group
from threadpoolctl import threadpool_limits

from skylevel.kernels.amplifiers import amplifier_layout
from skylevel.kernels.best_rows import measure_streams, subtract_levels
from skylevel.kernels.group_rows import combine_group, relevel

LAYOUT = amplifier_layout(SIZE, n_outputs=N_AMPLIFIERS, fast_axis=-1, slow_axis=2)
STRESS = {
    "sky twice as steep": {"steepness": 2.0},
    "stripes halved": {"stripes": 0.5},
    "no stripes": {"stripes": 0.0},
    "f^-0.6": {"exponent": 0.6},
    "f^-1.4": {"exponent": 1.4},
}


class Score(NamedTuple):
    """Errors of one exposure in 1e-3 of the unit; `before` is `amp` of the exposure as it was."""

    amp: float
    bias: float
    before: float
    seconds: float


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


def score(exposure: Exposure, level: np.ndarray, seconds: float) -> Score:
    amp, bias = stripe_errors(subtract_levels(exposure.image, level, amplifiers=LAYOUT), exposure)
    return Score(amp, bias, stripe_errors(exposure.image, exposure)[0], seconds)


def score_alone(exposure: Exposure) -> Score:
    start = time.process_time()
    measured = measure_streams(exposure.image, exposure.bad, amplifiers=LAYOUT)
    return score(exposure, measured.level, time.process_time() - start)


def score_group(exposures: Iterable[Exposure]) -> list[Score]:
    """Level a group with the sky that it shares; seconds are the group step's, for each exposure."""
    exposures = list(exposures)
    measured = [measure_streams(e.image, e.bad, amplifiers=LAYOUT) for e in exposures]
    start = time.process_time()
    group = combine_group(measured, shape=(SIZE, SIZE), amplifiers=LAYOUT)
    levels = [
        relevel(m, group, shape=(SIZE, SIZE), amplifiers=LAYOUT) if group and group.member[k] else m.level
        for k, m in enumerate(measured)
    ]
    seconds = (time.process_time() - start) / len(exposures)
    return [score(e, level, seconds) for e, level in zip(exposures, levels, strict=True)]


def report(name: str, scores: Sequence[Score]) -> None:
    amp, bias, before, seconds = np.array(scores).T
    print(
        f"| {name} | {before.mean():.1f} | {amp.mean():.2f} ({amp.min():.1f}-{amp.max():.1f}) | {bias.mean():.2f} | "
        f"{np.abs(bias).mean():.2f} | {(amp > before).sum()} of {amp.size} | {seconds.mean():.2f} |",
        flush=True,
    )


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    ask.add_argument("--groups", type=int, nargs="*", default=[1, 2], help="seeds of skies that eight exposures share")
    ask.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    ask.add_argument("--stress", action="store_true", help="steeper skies, weaker stripes, other spectra")
    asked = ask.parse_args()
    print(
        "| scene | uncorrected | amp (range) | bias | mean size of bias | worse | CPU s |", "|---" * 7 + "|", sep="\n"
    )
    with threadpool_limits(1):
        for kind in asked.kinds:
            report(f"{kind}, `best`", [score_alone(make_exposure(kind, seed)) for seed in asked.seeds])
            for name, changes in STRESS.items() if asked.stress else ():
                report(f"{kind}, {name}", [score_alone(make_exposure(kind, s, **changes)) for s in asked.seeds])
        for kind in (k for k in asked.kinds if k != "nebula"):
            for seed in asked.groups:
                report(f"{kind}, group {seed}, `program`", score_group(make_group(kind, seed)))


if __name__ == "__main__":
    main()
