"""How long one frame takes on one core, side by side with what a user would use instead; writes speed.md."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from astropy.io import fits
from racing import COMPARED, ENVIRONMENT, Command, Contender, both, importable, race, table, verdict, versus

KINDS = ("flat", "sparse", "extended", "crowded")
# Seconds, of a whole command that levels one exposure.
START_LIMIT = 1.5
JWST_PYTHON = "SKYLEVEL_BENCH_JWST_PYTHON"


@dataclass(frozen=True)
class Bench:
    """Where the inputs are, how many rounds are run, and what of the processor NumPy does without."""

    folder: Path
    quick: bool
    without: str = ""

    def contender(self, modules: str, function: str, *arguments: object) -> Contender:
        return Contender(modules, function, *arguments, without=self.without)

    def rounds(self, count: int) -> int:
        return max(2, count // 3) if self.quick else count

    def path(self, name: str) -> str:
        return str(self.folder / name)


def report(bench: Bench) -> str:
    sections: list[Callable[[Bench], str]] = [rows, channels, without_avx512, cal_file, raw_file, imports, one_exposure]
    longer: list[Callable[[Bench], str]] = [sizes, chunks, pipeline, workers]
    texts = []
    for section in sections + ([] if bench.quick else longer):
        began = time.monotonic()
        texts.append(section(bench))
        print(f"speed: {section.__name__} took {time.monotonic() - began:.0f} s", flush=True)
    if bench.quick:
        texts.append("A quick pass leaves out: cost with size, memory per tile, the JWST pipeline, Dask workers.")
    return "\n\n".join(texts)


def rows(bench: Bench) -> str:
    lines, profile = _rows(bench, 7)
    bottleneck = "installed" if importable("bottleneck") else "not installed"
    return f"""## Rows, 2048 x 2048 float32, memory to memory

`level_rows` on a frame in memory. The photutils calls are those of the notebook without its two loops over pixels and
without deblending; the notebook is with both. bottleneck, which photutils uses where it finds it, is {bottleneck}.

{table(COMPARED, lines)}

Where the time goes (sparse): {profile}.

{_meshes_alone(bench)}

What limits it now: no step dominates. The boxes and the rows are sorted, the image is smoothed and its NaN pixels once
more for their weight, and clipping sums what each round leaves: in a crowd, deeper and for more rounds, and more pixels
are joined to sources. What the next factor would take: one compiled pass for smoothing, threshold and connected pixels
in place of a dozen of NumPy's; sorting stays."""


def _rows(bench: Bench, rounds: int) -> tuple[list[list[str]], str]:
    """Lines of all scenes against photutils and of two against the notebook; and where the time goes."""
    lines, profile = [], ""
    for kind in KINDS:
        path = bench.path(f"{kind}.npy")
        with (
            bench.contender("contenders.kernels", "rows", path) as ours,
            bench.contender("contenders.references", "rows_photutils", path) as theirs,
        ):
            mine, plain = race([ours, theirs], bench.rounds(rounds))
            profile = ours.profile() if kind == "sparse" else profile
            lines.append(versus(kind, mine, "photutils calls", plain, 0.12))
    return lines + [_rows_notebook(bench, kind) for kind in ("sparse", "crowded")], profile


def _rows_notebook(bench: Bench, kind: str) -> list[str]:
    path = bench.path(f"{kind}.npy")
    with (
        bench.contender("contenders.kernels", "rows", path) as ours,
        bench.contender("contenders.references", "rows_notebook", path) as theirs,
    ):
        mine, notebook = race([ours, theirs], 1 if bench.quick else 2, slow=[theirs])
        return versus(kind, mine, "the whole notebook", notebook, 1 / 40, "<= 1/40 = 0.025")


def _meshes_alone(bench: Bench) -> str:
    path = bench.path("sparse.npy")
    with ExitStack() as stack:
        modules = ("contenders.kernels", "contenders.references", "contenders.peers")
        contenders = [stack.enter_context(Contender(module, "rows_mesh", path)) for module in modules]
        ours, photutils, sep = race(contenders, bench.rounds(9))
    lines = [
        versus("background mesh alone", ours, "photutils Background2D", photutils, None),
        versus("background mesh alone", ours, "sep.Background (its own clipping)", sep, None),
    ]
    return table(COMPARED, lines)


def channels(bench: Bench) -> str:
    lines, peaks, profile = _channels(bench)
    kept = "met" if peaks[0] < 600 else "**missed**"
    return f"""## Channels, 24 MP (4000 x 6000, RGGB), memory to memory

`level_channels` on a mosaic in memory, against the notebook's calls of astropy and photutils. The mosaic holds no pixel
of value 0; another one holds 100, as cameras' dead pixels may be.

{table(COMPARED, lines)}

Peak memory above the input, the result of 96 MB in it: filled {peaks[0]:.0f} MB (limit: below 600 MB: {kept}), planes
{peaks[1]:.0f} MB; the notebook's calls {peaks[2]:.0f} MB.

Where the time goes (filled): {profile}.

What limits it now: sorting three filled channels in float64, 72 million values; then the taps of the fill, and the
sums of the clipping rounds. The columns near a pixel of value 0 are filled twice. What the next factor would
take: not sorting what the fill invented, which is what "planes" does; for the notebook's own numbers, a selection in
place of the sort, in compiled code, or a sort in float32.

{_planes_and_sep(bench, bench.path("mosaic24.npy"))}"""


def _channels(bench: Bench) -> tuple[list[list[str]], list[float], str]:
    """Lines of both methods against one or two runs of the notebook, which is slow; peaks; where the time goes."""
    path, kernels = bench.path("mosaic24.npy"), "contenders.kernels"
    with ExitStack() as stack:
        calls = (
            (kernels, "channels", path, "filled"),
            (kernels, "channels", bench.path("dead24.npy"), "filled"),
            (kernels, "channels", path, "planes"),
            ("contenders.references", "channels_notebook", path),
        )
        contenders = [stack.enter_context(bench.contender(*call)) for call in calls]
        filled, _, planes, notebook = contenders
        times = race(contenders, 1 if bench.quick else 2, slow=[notebook])
        peaks = [contender.peak()["mb"] for contender in (filled, planes, notebook)]
        profile = filled.profile()
    names = ("filled", "filled, 100 pixels of value 0", "planes")
    bounds = ((1 / 14, "<= 1/14 = 0.071"), (1 / 14, "<= 1/14 = 0.071"), (1 / 40, "<= 1/40 = 0.025"))
    lines = [
        versus(name, mine, "the notebook's calls", times[-1], *bound)
        for name, mine, bound in zip(names, times[:-1], bounds, strict=True)
    ]
    return lines, peaks, profile


def _planes_and_sep(bench: Bench, path: str) -> str:
    calls = (
        ("contenders.kernels", "channels", path, "planes"),
        ("contenders.kernels", "channels_mesh", path, "planes"),
        ("contenders.peers", "planes", path),
        ("contenders.peers", "planes_mesh", path),
    )
    with ExitStack() as stack:
        contenders = [stack.enter_context(Contender(*call)) for call in calls]
        ours, ours_mesh, theirs, theirs_mesh = race(contenders, bench.rounds(9))
        profile, profile_mesh = contenders[0].profile(), contenders[1].profile()
    whole, less = "mosaic to levelled mosaic", "less CPU"
    lines = [
        versus("background alone", ours_mesh, "sep.Background, planes ready", theirs_mesh, 1.0, less),
        versus(whole, ours, "sep, mosaic to levelled mosaic", theirs, 1.0, less),
        versus(whole, ours, "sep.Background, planes ready", theirs_mesh, 1.0, less + ", unlike for unlike"),
    ]
    return f"""### Method "planes" and sep

sep measures four planes (both greens apart) with bw = bh = 50, float32; it clips and estimates in its own way.
"Planes ready" leaves out taking the mosaic apart; the last row holds all of our work against that part of sep's.

{table(COMPARED, lines)}

Where the time goes: {profile}.
The background alone: {profile_mesh}.

What limits it now: the sums of the clipping rounds and sorting, each a good part, then the surfaces and writing the
result at every other pixel. What the next factor would take: sums of squares as products of rows with themselves,
without writing the squares first; then a compiled clipping round."""


def without_avx512(bench: Bench) -> str:
    title = "## The same without AVX-512\n\n"
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    without = " ".join(name for name in found if name.startswith(("AVX512", "X86_V4")))
    if not without:
        return title + "This machine's processor has no AVX-512: all of this page was measured without."
    older = replace(bench, without=without)
    path = bench.path("mosaic24.npy")
    with (
        older.contender("contenders.kernels", "channels", path, "planes") as planes,
        older.contender("contenders.peers", "planes", path) as sep,
    ):
        ours, theirs = race([planes, sep], bench.rounds(9))
    lines = [
        *_rows(older, 5)[0], *_channels(older)[0],
        versus("planes, mosaic to levelled mosaic", ours, "sep, the same", theirs, 1.0, "less CPU"),
    ]  # fmt: skip
    return f"""{title}Most laptops have no AVX-512, with which NumPy sorts where there is. Here it is told to do without
(`NPY_DISABLE_CPU_FEATURES="{without}"`), on both sides. The levelled images of both modes are
{_agreement(bench, older)}.

{table(COMPARED, lines)}

What decides here is `ndarray.sort`. AVX-512 is no gain everywhere: some processors (Zen 4) execute what NumPy's sorts
of 32 and 64 bits are made of slowly, and are faster without. Integers of 16 bits are sorted by radix where that is
faster, and float64 by keys of 16 bits, which skylevel tries once in each process. The workers of a local run do without
AVX-512 on such a processor: there the numbers of this section hold for `skylevel run`, whatever the page says above."""


def _agreement(bench: Bench, older: Bench) -> str:
    """Whether levelled images have the same bits in both modes, in words."""
    calls = (
        ("rows", bench.path("crowded.npy")),
        *(("channels", bench.path("mosaic24.npy"), method) for method in ("filled", "planes")),
    )
    digests = []
    for mode in (bench, older):
        with ExitStack() as stack:
            contenders = [stack.enter_context(mode.contender("contenders.kernels", "digest", *call)) for call in calls]
            digests.append([contender.run()["digest"] for contender in contenders])
    return "the same, bit for bit" if digests[0] == digests[1] else "**not the same**"


def cal_file(bench: Bench) -> str:
    path = next(str(p) for p in sorted(bench.folder.glob("program/*nrcb1_cal.fits")))
    copy = bench.folder / "copy.fits"
    with ExitStack() as stack:
        enter = stack.enter_context
        levelled = enter(Contender("contenders.files", "levelled", path, bench.path("out-cal")))
        kernel = enter(Contender("contenders.files", "kernel", path))
        cp = enter(Command("cp", path, copy, clean=copy.unlink))
        ours, in_memory, copying = race([levelled, kernel, cp], bench.rounds(9))
        profile, peak = levelled.profile(), levelled.peak()["mb"]
    size = Path(path).stat().st_size / 1e6
    bound = in_memory + 5 * copying
    lines = [
        versus("file to store and FITS", ours, "kernel + 5 x cp", bound, 1.0),
        ["of which the kernel", both(in_memory), "", "", "", ""],
        ["one `cp` of the file", both(copying), "", "", "", ""],
    ]
    return f"""## One {size:.0f} MB `_cal` file to the store and to full-layout FITS

`measure` and `export` in one process; warm cache; outputs removed after each round.

{table(COMPARED, lines)}

Peak memory above a prepared process: {peak:.0f} MB.

Where the time goes: {profile}.

`lock.acquire` is waiting for Zarr's own thread. What limits it now: beside the kernel, reading and storing are a copy's
worth each, and Zarr's group costs some milliseconds of its own. HDUs that are copied are summed on the way, which is
less than 1 % of the time. What the next factor would take: a mask stored as bits without xarray's and Zarr's
bookkeeping."""


def raw_file(bench: Bench) -> str:
    path = bench.path("mosaic24.dng")
    with ExitStack() as stack:
        enter = stack.enter_context
        levelled = enter(Contender("contenders.files", "levelled", path, bench.path("out-raw")))
        kernel = enter(Contender("contenders.files", "kernel", path))
        least = enter(Contender("contenders.files", "unpack_and_write", path, bench.path("least.fits")))
        ours, in_memory, around = race([levelled, kernel, least], bench.rounds(5))
        profile, peak = levelled.profile(), levelled.peak()["mb"]
    bound = in_memory + 1.3 * around
    lines = [
        versus("file to store and FITS", ours, "kernel + 1.3 x (unpack + write)", bound, 1.0),
        ["of which the kernel", both(in_memory), "", "", "", ""],
        ["rawpy unpacks, astropy writes float32", both(around), "", "", "", ""],
    ]
    return f"""## One 24 MP raw (uncompressed DNG) to the store and to FITS

Method "filled". A camera's compressed raw takes LibRaw longer, on both sides alike.

{table(COMPARED, lines)}

Peak memory above a prepared process: {peak:.0f} MB.

Where the time goes: {profile}.

What limits it now: the kernel. What the next factor would take: method "planes" (above)."""


def imports(bench: Bench) -> str:
    python, skylevel = sys.executable, Path(sys.executable).with_name("skylevel")
    commands = {
        "`import skylevel`": (python, "-c", "import skylevel"),
        "`skylevel --help`": (skylevel, "--help"),
        "`import xarray`": (python, "-c", "import xarray"),
        "`import skylevel.level`": (python, "-c", "import skylevel.level"),
        "`import photutils.segmentation`": (python, "-c", "import photutils.segmentation"),
        "Python alone": (python, "-c", "pass"),
    }
    times = dict(zip(commands, race([Command(*c) for c in commands.values()], bench.rounds(5)), strict=True))
    xarray = times["`import xarray`"]
    lines = [
        versus(name, times[name], "`import xarray`", xarray, 1.0 if name in list(commands)[:2] else None)
        for name in commands
        if name != "`import xarray`"
    ]
    return f"""## Starting: fresh processes

{table(COMPARED, lines)}

`skylevel --help` imports of the heavy packages: {_imported_by_help() or "none"} (limit: neither xarray nor astropy).

What limits it now: `--help` is Python, click and rich; `import skylevel` reads its own version from the installed
metadata. A worker pays for `import skylevel.level` once, when its first task comes; photutils.segmentation, which only
the segmentation product imports, takes longer than all that. What the next factor
would take: rich on first use."""


def one_exposure(bench: Bench) -> str:
    """The whole command, from its start to its end, on two cores."""
    whole = next(bench.folder.glob("program/*nrcb1_cal.fits"))
    small, output = bench.folder / "small_cal.fits", bench.folder / "one"
    _cut_out(whole, small, 256)
    skylevel = Path(sys.executable).with_name("skylevel")

    def run(path: Path, *options: str) -> Command:
        clean = partial(shutil.rmtree, output)
        return Command(skylevel, "run", path, "--output", output, "--quiet", *options, clean=clean)

    plain = Command(sys.executable, "-c", "import numpy, astropy.io.fits")
    runs = {
        "256 x 256 pixels": run(small),
        "2048 x 2048 pixels": run(whole),
        "the same, `--no-report`": run(whole, "--no-report"),
        "the same, `--partition 1/1`, without a worker": run(whole, "--partition", "1/1"),
    }
    base, *times = race([plain, *runs.values()], bench.rounds(9))
    lines = []
    for what, found in zip(runs, times, strict=True):
        met = "met" if found.wall <= START_LIMIT else "**missed**"
        limit, met = (f"<= {START_LIMIT} s", met) if what.endswith("pixels") else ("none", "")
        times_more = f"CPU {found.cpu / base.cpu:.1f}, wall {found.wall / base.wall:.1f}"
        lines.append([what, both(found), limit, met, times_more])
    header = ("`skylevel run` of one exposure", "CPU / wall", "limit on wall", "", "times the imports")
    return f"""## One exposure, the whole command

From the start of the process to its end, its report and the output's check included, where nothing was done before.
`python -c "import numpy, astropy.io.fits"` takes {both(base)}. The limit is for two quiet cores: where CPU time is much
less than wall time on one process, others had the cores (the load is told above).

{table(header, lines)}

What limits it now: nearly all of it is importing, xarray with pandas, astropy's FITS with its units and Zarr in the
command, SciPy's search for neighbours in its worker. What the next factor would take: a server that stays."""


def _cut_out(path: Path, target: Path, side: int) -> None:
    """Write the corner of an exposure, with every HDU."""
    with fits.open(path) as hdus:
        cut = [type(h)(h.data[:side, :side], h.header) if h.is_image and h.shape[-2:] != () else h for h in hdus]
        fits.HDUList(cut).writeto(target)


def _imported_by_help() -> str:
    script = """
import sys
sys.argv = ["skylevel", "--help"]
from skylevel.cli import main
try:
    main()
finally:
    heavy = ("xarray", "astropy", "numpy", "scipy", "dask", "distributed", "zarr", "photutils", "rawpy")
    print(", ".join(name for name in heavy if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return done.stderr.strip()


def sizes(bench: Bench) -> str:
    lines = [
        _growth(bench, "rows", ("rows4096.npy", 4096**2), ("rows8192.npy", 8192**2)),
        _growth(bench, "channels, planes", ("mosaic24.npy", 24e6), ("mosaic96.npy", 96e6), "planes"),
        _growth(bench, "channels, filled", ("mosaic24.npy", 24e6), ("mosaic96.npy", 96e6), "filled"),
    ]
    header = (
        "kernel, ns a pixel", "one small", "four small", "one large", "limit", "large over four", "large over one",
    )  # fmt: skip
    return f"""## Cost with size

The large image is the small one four times over, in one piece in memory: 17 and 67 MP for the rows, 24 and 96 MP for
the channels. CPU (of which system) / wall. "Four small" levels the small image four times and keeps the results, so
that both sides write as much memory; "one small" writes a quarter of it, over and over the same.

{table(header, lines)}

Of two rounds at each turn the second counts, as in a program of frames one after the other: a virtual machine may hand
memory that stays free for a second back to its host, and touching {_touched(bench)}.

What limits it now: user time, the kernels' own, is the same for a pixel of any image. Where the large one is dearer, it
is system time, of the first touch of a large result's memory, which the C library takes from the system anew above
32 MiB, and which the host has taken back where a round lasts for seconds. What the next factor would take: a result
that is written strip by strip to its file in place of one large array."""


def _touched(bench: Bench) -> str:
    """What the first touch of 256 MiB costs, in words."""
    costs = []
    for pause in (0, 3):
        with Contender("contenders.memory", "touch", pause) as contender:
            (times,) = race([contender], bench.rounds(3))
        costs.append(1e9 / 2**26 * times.cpu)
    return f"256 MiB costs {costs[0]:.1f} ns a float32 at once and {costs[1]:.1f} ns after a pause of 3 s here"


def _growth(bench: Bench, name: str, small: tuple[str, float], large: tuple[str, float], *method: str) -> list[str]:
    function = name.split(",")[0]
    given = ((small, 1), (small, 4), (large, 1))
    calls = [("contenders.kernels", function, bench.path(file), *method, times) for (file, _), times in given]
    with ExitStack() as stack:
        contenders = [stack.enter_context(Contender(*call)) for call in calls]
        raced = race(contenders, 2, settle=True)
    one, four, whole = (1e9 / (n * times) * t for t, ((_, n), times) in zip(raced, given, strict=True))
    shown = [f"{t.cpu:.1f} ({t.system:.1f}) / {t.wall:.1f}" for t in (one, four, whole)]
    users = [(whole.cpu - whole.system) / (t.cpu - t.system) for t in (four, one)]
    verdicts = [verdict(whole.cpu / t.cpu, whole.wall / t.wall, 1.05) for t in (four, one)]
    ratios = [f"user {user:.3f}; {kept}" for user, kept in zip(users, verdicts, strict=True)]
    return [name, *shown, "<= 1.05", *ratios]


def chunks(bench: Bench) -> str:
    lines = []
    for shape, folder in (("blocks of rows, 100 or 200 x all", "blocks"), ("tiles, 1024 x 1024", "tiles")):
        peaks = []
        for size in (4096, 8192):
            with Contender("contenders.chunked", "levelled", bench.path(f"{folder}{size}.zarr")) as contender:
                times = contender.run()
                peaks.append((contender.peak()["mb"], times))
        growth = peaks[1][0] / peaks[0][0]
        sized = zip(peaks, (67, 268), strict=True)
        shown = [f"{mb:.0f} MB ({mb / image:.1f} of the image), {t['cpu']:.1f} s" for (mb, t), image in sized]
        kept = "met" if growth < 1.1 else "**missed**"
        lines.append([shape, *shown, "the same for both sizes", f"x {growth:.2f}: {kept}"])
    header = ("chunks", "4096 x 4096: peak memory, CPU", "8192 x 8192: peak memory, CPU", "limit", "growth")
    return f"""## Memory per tile of a chunked image

`level_rows` on an image in chunks of about 4 MB, read from Zarr and written to Zarr as one graph, with one thread;
memory above the imports.

{table(header, lines)}

What limits it now: a row's median needs the whole row. Of blocks of rows, a few are held whatever the image's size; of
tiles, the row of tiles that a row crosses, which grows with the image's width but not with its height. What the next
factor would take: medians across tiles by counting in place of sorting, and reading each tile once for every count."""


def pipeline(bench: Bench) -> str:
    python = os.environ.get(JWST_PYTHON) or (sys.executable if importable("jwst") else "")
    title = "## The JWST pipeline's `clean_flicker_noise`, 2048 x 2048\n\n"
    if not python or not shutil.which(python):
        return title + (
            f"Not run: the package jwst is not installed here. Install it in any environment and name that one's "
            f"Python in `{JWST_PYTHON}`."
        )
    path = bench.path("sparse.npy")
    with ExitStack() as stack:
        enter = stack.enter_context
        ours = enter(Contender("contenders.kernels", "rows", path))
        median = enter(Contender("contenders.pipeline", "clean", path, "median", python=python))
        fft = enter(Contender("contenders.pipeline", "clean", path, "fft", python=python))
        mine, by_median, by_fft = race([ours, median, fft], bench.rounds(3))
    show = "from importlib.metadata import version as v; print('jwst', v('jwst') + ', NumPy', v('numpy'))"
    versions = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True).stdout.strip()
    lines = [
        versus("rows", mine, "mask, background, median_clean", by_median, None),
        versus("rows", mine, "mask, background, fft_clean_full_frame", by_fft, None),
    ]
    return f"""{title}Its functions called on an array in the step's order with its default settings, without reference
files or datamodels; {versions}.

{table(COMPARED, lines)}"""


def workers(bench: Bench) -> str:
    kernels = {
        "rows": ("rows", bench.path("sparse.npy")),
        "channels, filled": ("channels", bench.path("mosaic24.npy"), "filled"),
        "channels, planes": ("channels", bench.path("mosaic24.npy"), "planes"),
    }
    lines = [[name, *_in_worker(bench, *call)] for name, call in kernels.items()]
    header = (
        "kernel", "process", "process, memory returned", "Dask worker", "Dask worker, memory returned", "limit",
        "worker over process (CPU)", "what keeping saves in the worker",
    )  # fmt: skip
    return f"""## Inside a Dask worker

The nanny of a worker asks the C library to hand back freed memory at once (`MALLOC_TRIM_THRESHOLD_=65536`);
`skylevel.memory.keep_freed_memory` undoes that for the kernels. "Memory returned" runs without it. CPU / wall.

{table(header, lines)}

What limits it now: with freed memory kept, a worker is a process like any other; what is left is the first touch of
each result's pages."""


def _in_worker(bench: Bench, function: str, *arguments: str) -> list[str]:
    with ExitStack() as stack:
        contenders = [
            stack.enter_context(Contender(modules, name, *given))
            for modules, name, given in (
                ("contenders.kernels", function, arguments),
                ("contenders.return_memory,contenders.kernels", function, arguments),
                ("contenders.workers", "keeping", (function, *arguments)),
                ("contenders.workers", "returning", (function, *arguments)),
            )
        ]
        times = race(contenders, bench.rounds(3))
    process, _, worker, returning = times
    ratio = worker.cpu / process.cpu
    saved = 1 - worker.cpu / returning.cpu
    return [*map(both, times), "about 1", f"{ratio:.2f}", f"{100 * saved:.0f} % of the CPU"]
