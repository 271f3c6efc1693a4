"""What each command imports: nothing before it is needed, as importing takes longer than to level an exposure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from programs import write_exposure

# Slow to import, each for something that these commands do not do.
NEVER = {
    "distributed", "dask.array", "astropy.wcs", "astropy.coordinates", "astropy.nddata", "astropy.table",
    "astropy.time", "photutils", "matplotlib", "skimage", "bokeh", "regions", "pandas.io.formats.style",
    "scipy.ndimage",
}  # fmt: skip
# In a run, for its worker alone.
OF_WORKERS = {"scipy.spatial", "scipy.sparse", "scipy.linalg"}
# For a look at the command line.
OF_WORK = {"numpy", "scipy", "xarray", "astropy", "dask", "zarr", "rawpy", "PIL", "jinja2", "pandas", "multiprocessing"}

CODE = """
import json, sys
sys.argv = ["skylevel", *sys.argv[1:]]
from skylevel.cli import run_command
status = run_command()
print("\\n" + json.dumps([status, *sys.modules]))
"""


def imported(*arguments: object, code: str = CODE) -> set[str]:
    """The modules that a command has imported when it ends well."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    status, *modules = json.loads(done.stdout.splitlines()[-1])
    assert status == 0, done.stderr
    assert "skylevel" in modules
    return set(modules)


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("run", "--help"), ("config", "rows")])
def test_of_help_and_settings(arguments: tuple[str, ...]) -> None:
    assert not imported(*arguments) & (NEVER | OF_WORKERS | OF_WORK)


def test_of_the_package() -> None:
    code = "import json, skylevel, sys; dir(skylevel); print(json.dumps([0, *sys.modules]))"
    assert not imported(code=code) & (NEVER | OF_WORKERS | OF_WORK)


@pytest.mark.slow
def test_of_commands_that_need_no_cluster(tmp_path: Path) -> None:
    run = ("run", write_exposure(tmp_path / "e00.fits"), "--output", tmp_path / "out")
    for command in ((*run, "--dry-run"), run, run, ("status", tmp_path / "out")):
        assert not imported(*command) & (NEVER | OF_WORKERS), command
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.slow
def test_of_a_worker_of_ones_own() -> None:
    code = "import json, sys; import skylevel.program.tasks as t; t.get_ready(); print(json.dumps([0, *sys.modules]))"
    loaded = imported(code=code)
    assert loaded >= OF_WORKERS
    assert not loaded & (NEVER - {"dask.array"})
