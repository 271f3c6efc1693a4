"""The files of deploy/slurm on a real SLURM: two nodes of one core, private to this module, on this machine."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml

from execute import execute
from programs import SKYLEVEL, finish, pixels_of, skylevel, start_skylevel, write_exposures

pytestmark = pytest.mark.slow

DEPLOY = Path(__file__).resolve().parents[1] / "deploy" / "slurm"
NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
TOOLS = Path(__file__).resolve().parents[2] / "shared" / "tools"
SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
COUNT = 24

ALIVE = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED"}

# Deblending makes small frames slow enough for a job to be lost in the middle.
SLOWLY = ("--keep", "segmentation")


@dataclass(frozen=True)
class Slurm:
    """A running SLURM, and how to ask it."""

    env: dict[str, str] = field(repr=False)

    def ask(self, *command: str, cwd: Path | None = None) -> str:
        return subprocess.run(
            command, env=self.env, cwd=cwd, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    def submit(self, script: str, *arguments: str, cwd: Path, options: tuple[str, ...] = ()) -> str:
        return self.ask("sbatch", "--parsable", "--partition=main", *options, str(DEPLOY / script), *arguments, cwd=cwd)

    def jobs(self, state: str = "all") -> list[str]:
        """Jobs of a state, an array's as ``ID_INDEX``."""
        return self.ask("squeue", "--noheader", "--array", "--format=%i", f"--states={state}").split()

    def state(self, job: str) -> str:
        """State and reason of each job or element, such as ``COMPLETED None``."""
        return self.ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T %r")

    def is_alive(self, job: str) -> bool:
        return bool(set(self.state(job).split()) & ALIVE)

    def wait_for_end(self, job: str, folder: Path, *, timeout: float = 90) -> None:
        """Wait until a job, and every element of an array, has ended well."""
        wait_until(lambda: not self.is_alive(job), f"the end of job {job}", timeout)
        said = "".join(path.read_text() for path in folder.glob("skylevel-*"))
        assert set(self.state(job).splitlines()) == {"COMPLETED None"}, said

    def cancel_all(self) -> None:
        self.ask("scancel", "--user", str(os.getuid()))
        wait_until(lambda: not self.jobs("PD,R,CG"), "an empty queue")


def wait_until(condition: Callable[[], object], what: str, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"waited {timeout:g} s for {what}"
        time.sleep(0.05)


def free_ports() -> int:
    """A port such that it and those which the nodes take, 101 and 102 further, are free."""
    for port in range(16817, 30000, 211):
        try:
            for number in (port, port + 101, port + 102):
                with socket.socket() as tried:
                    tried.bind(("", number))
        except OSError:
            continue
        return port
    pytest.fail("no free ports for SLURM")


def require_slurm() -> None:
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(name, path=SYSTEM_PATH)]
    if missing:
        pytest.skip(f"SLURM is not installed here: no {', '.join(missing)}")
    if not (TOOLS / "slurm-up.sh").exists():
        pytest.skip("no ../shared/tools/slurm-up.sh to start a private SLURM with")


def daemons(home: Path) -> list[psutil.Process]:
    """The daemons that were started with this home."""
    files = [*home.glob("*.pid"), *home.glob("munge/*.pid")]
    return [psutil.Process(int(path.read_text())) for path in files]


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def running_slurm() -> Iterator[Slurm]:
    require_slurm()
    foreign = ("SLURM", "SBATCH", "SQUEUE", "DASK", "SKYLEVEL", "MUNGE")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    # Not below pytest's own folder: munge's socket must be in one that everybody may enter.
    with tempfile.TemporaryDirectory(prefix="skylevel-slurm-", dir="/tmp") as home:
        started: list[psutil.Process] = []
        env |= {"PATH": SYSTEM_PATH, "SLURM_HOME": home, "SLURM_BASE_PORT": str(free_ports())}
        try:
            up = subprocess.run(
                [TOOLS / "slurm-up.sh", "2", "1", "6000"], env=env, capture_output=True, text=True, timeout=60
            )
            assert up.returncode == 0, up.stderr
            conf = up.stdout.strip().removeprefix("export SLURM_CONF=")
            started = daemons(Path(home))
            assert len(started) == 4, up.stderr
            yield Slurm(env | {"SLURM_CONF": conf, "SKYLEVEL_VENV": str(SKYLEVEL.parents[1])})
        finally:
            subprocess.run([TOOLS / "slurm-down.sh"], env=env, capture_output=True, timeout=60)
            wait_until(lambda: not any(map(is_running, started)), "SLURM's daemons to end")


@pytest.fixture
def slurm(running_slurm: Slurm) -> Iterator[Slurm]:
    yield running_slurm
    running_slurm.cancel_all()


@pytest.fixture
def full_queue(slurm: Slurm) -> str:
    """Somebody's job on every node."""
    job = slurm.ask("sbatch", "--parsable", "--ntasks=2", "--output=/dev/null", "--wrap=srun sleep 60")
    wait_until(lambda: slurm.state(job).startswith("RUNNING"), "the blocking job")
    return job


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_slurm()
    folder = tmp_path_factory.mktemp("slurm") / "program"
    write_exposures(folder, COUNT, shape=(400, 400), sources=150)
    return folder


@pytest.fixture(scope="module")
def expected(program: Path) -> dict[str, bytes]:
    """Every levelled image, by a run on this machine."""
    output = program.parent / "local"
    assert skylevel("run", program, "--output", output, "--quiet", *SLOWLY).returncode == 0
    return levelled(output)


def levelled(output: Path) -> dict[str, bytes]:
    return {name: pixels for name, pixels in pixels_of(output).items() if name.endswith("_rowbgsub.fits")}


def n_levelled(output: Path) -> int:
    return len(list(output.glob("*_rowbgsub.fits")))


def write_configuration(folder: Path, **site: object) -> Path:
    """deploy/slurm/jobqueue.yaml, with some of its values under jobqueue.slurm edited for this site."""
    values = yaml.safe_load((DEPLOY / "jobqueue.yaml").read_text())
    assert set(site) <= set(values["jobqueue"]["slurm"])
    values["jobqueue"]["slurm"] |= {"queue": "main", "local-directory": str(folder)} | site
    path = folder / "jobqueue.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run_on_slurm(slurm: Slurm, program: Path, folder: Path, **site: object) -> subprocess.Popen[str]:
    env = slurm.env | {"DASK_CONFIG": str(write_configuration(folder, **site))}
    arguments = ("--output", folder / "out", "--cluster", "slurm", "--workers", 2)
    return start_skylevel("run", program, *arguments, *SLOWLY, env=env, cwd=folder)


def says_that_it_waits(folder: Path) -> bool:
    log = folder / "out" / "skylevel.log"
    return log.exists() and "PENDING (Resources)" in log.read_text()


class TestCluster:
    def test_every_job_lost_in_the_middle(self, slurm, program, expected, tmp_path):
        run = run_on_slurm(slurm, program, tmp_path)
        wait_until(lambda: n_levelled(tmp_path / "out") >= 2 or run.poll() is not None, "two outputs")
        lost = slurm.jobs("RUNNING")
        slurm.ask("scancel", *lost)
        done = finish(run, timeout=90)
        assert done.returncode == 0, done.stdout + done.stderr
        assert levelled(tmp_path / "out") == expected
        # With none of the first jobs left, only new ones can have ended it.
        assert len(lost) == 2
        logs = {path.stem for path in (tmp_path / "skylevel-slurm-logs").glob("*.err")}
        assert logs > {f"skylevel-{job}" for job in lost}

    @pytest.mark.parametrize(
        ("site", "words"),
        [
            ({"queue": "nowhere"}, ["SLURM takes no job", "nowhere", "jobqueue.slurm"]),
            ({"python": "/nowhere/python"}, ["skylevel-slurm-logs/skylevel-", ".err", "/nowhere/python"]),
        ],
        ids=["partition", "python"],
    )
    def test_a_wrong_configuration_is_one_clear_line(self, slurm, program, tmp_path, site, words):
        done = finish(run_on_slurm(slurm, program, tmp_path, **site), timeout=45)
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        assert last.startswith("skylevel: ")
        assert all(word.lower() in last.lower() for word in words), last

    def test_a_full_queue_is_waited_for(self, slurm, full_queue, program, tmp_path):
        run = run_on_slurm(slurm, program / "e00.fits", tmp_path)
        wait_until(lambda: says_that_it_waits(tmp_path), "the run to say that it waits")
        slurm.ask("scancel", full_queue)
        done = finish(run, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

        # Nobody else could have sent work to its workers, and nothing of it is left.
        (worker_log,) = (tmp_path / "skylevel-slurm-logs").glob("*.err")
        assert "tls://" in worker_log.read_text()
        assert "tcp://" not in worker_log.read_text()
        assert not list(tmp_path.glob(".dask-jobqueue*"))
        wait_until(lambda: not slurm.jobs("PD,R,CG"), "an empty queue", 20)

    def test_stopped_by_the_user_while_it_waits(self, slurm, full_queue, program, tmp_path):
        run = run_on_slurm(slurm, program, tmp_path)
        wait_until(lambda: says_that_it_waits(tmp_path), "the run to say that it waits")
        run.send_signal(signal.SIGINT)
        done = finish(run, timeout=30)
        assert done.returncode == 130
        assert "skylevel: stopped." in done.stderr
        assert slurm.jobs("PD,R") == [full_queue]


class TestOneAllocation:
    def test_everything_in_one_job(self, slurm, program, expected, tmp_path):
        job = slurm.submit(
            "one-allocation.sbatch", str(program / "e0*.fits"), "--output", "out", cwd=tmp_path,
            options=("--ntasks=2", "--time=5"),
        )  # fmt: skip
        slurm.wait_for_end(job, tmp_path)
        assert levelled(tmp_path / "out") == {name: expected[name] for name in expected if name.startswith("e0")}
        log = (tmp_path / f"skylevel-{job}-dask.log").read_text()
        assert "Scheduler at:     tls://" in log
        assert not list(tmp_path.glob(".skylevel-job*"))

    def test_its_status_is_that_of_skylevel(self, slurm, tmp_path):
        """A job that failed must show as one, and end at once."""
        job = slurm.submit("one-allocation.sbatch", "absent*.fits", cwd=tmp_path, options=("--ntasks=1", "--time=5"))
        wait_until(lambda: not slurm.is_alive(job), "its end", 60)
        assert slurm.state(job).startswith("FAILED")
        assert "absent*.fits: no such file" in (tmp_path / f"skylevel-{job}.out").read_text()


class TestJobArray:
    def test_shares_make_a_whole_also_when_the_time_is_up(self, slurm, program, expected, tmp_path):
        arguments = (str(program / "e*.fits"), "--output", "out", *SLOWLY)
        options = ("--array=1-3", "--time=5", "--mem=2G")
        job = slurm.submit("job-array.sbatch", *arguments, cwd=tmp_path, options=options)
        wait_until(lambda: n_levelled(tmp_path / "out"), "an output")
        element = slurm.jobs("RUNNING")[0]
        # As SLURM does two minutes before the end.
        slurm.ask("scancel", "--batch", f"--signal={signal.SIGUSR1.name}", element)
        wait_until(lambda: "BeginTime" in slurm.state(element), f"{element} to be back in the queue")
        slurm.ask("scontrol", "update", f"JobId={element}", "StartTime=now")
        slurm.wait_for_end(job, tmp_path)
        assert levelled(tmp_path / "out") == expected
        said = (tmp_path / f"skylevel-{element}.out").read_text()
        assert "back into the queue" in said
        status = skylevel("status", tmp_path / "out", env=slurm.env)
        assert f"{COUNT} done, 0 failed, 0 left" in status.stdout

    def test_submitting_again_does_what_is_left(self, slurm, program, tmp_path):
        inputs = tmp_path / "program"
        inputs.mkdir()
        for name in ("e00.fits", "e01.fits", "e02.fits"):
            shutil.copy2(program / name, inputs)
        arguments = ("program", "--output", "out")
        first = slurm.submit("job-array.sbatch", *arguments, cwd=tmp_path, options=("--array=1-2",))
        slurm.wait_for_end(first, tmp_path)
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("e*.fits")}
        lost = tmp_path / "out" / "e01_rowbgsub.fits"
        lost.unlink()
        # Share 2 of 2 holds e01 alone.
        slurm = Slurm(slurm.env | {"SKYLEVEL_SHARES": "2"})
        again = slurm.submit("job-array.sbatch", *arguments, cwd=tmp_path, options=("--array=2",))
        slurm.wait_for_end(again, tmp_path)
        assert lost.stat().st_mtime_ns > kept.pop(lost)
        assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_the_notebook_runs_on_it(slurm, tmp_path):
    notebook = nbformat.read(NOTEBOOKS / "04_cluster.ipynb", as_version=4)
    ran = execute(notebook, tmp_path, slurm.env)
    said = "".join(output.get("text", "") for cell in ran.cells for output in cell.get("outputs", ()))
    assert "3 done, 0 failed\nlevelled True\nlevelled-slurm True\n" in said
