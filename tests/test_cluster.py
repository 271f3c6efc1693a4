"""Clusters: who reaches them, what they say, and where their temporary files are."""

import json
import logging
import os
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

import dask
import psutil
import pytest
from distributed import Client, LocalCluster

from programs import finish, skylevel, start_skylevel, wait_until, write_exposures
from skylevel.kernels.sorting import slow_instructions
from skylevel.program.cluster import _has_pages, _remove_dead_sockets, connect, dashboard, private_folder

NOBODY = 65534

# Tries to be let in at each port, as any program of another user can: without TLS, and with a certificate of its own.
INTRUDER = """
import asyncio, json, os, sys, warnings
warnings.simplefilter("ignore")
from distributed import Security
from distributed.core import rpc


user, ports = int(sys.argv[1]), sys.argv[2:]
mine = Security.temporary()
if user:
    os.setgroups([]); os.setgid(user); os.setuid(user)

async def is_let_in(address, arguments):
    try:
        remote = rpc(address, connection_args=arguments, timeout=3)
        try:
            return bool(await asyncio.wait_for(remote.identity(), 3))
        finally:
            await remote.close_rpc()
    except (Exception, asyncio.CancelledError):
        return False

async def main():
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    tried = [(f"tcp://127.0.0.1:{port}", {}) for port in ports]
    tried += [(f"tls://127.0.0.1:{port}", mine.get_connection_args("client")) for port in ports]
    let_in = await asyncio.gather(*(is_let_in(*each) for each in tried))
    print(json.dumps({"user": os.getuid(), "in": [a for (a, _), yes in zip(tried, let_in) if yes]}))

asyncio.run(main())
"""


def intrude(ports: set[int]) -> list[str]:
    """The addresses at which another user is let in; where the tests have no other user, this one without the key."""
    user = NOBODY if os.geteuid() == 0 else 0
    command = [sys.executable, "-B", "-c", INTRUDER, str(user), *map(str, sorted(ports))]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert told["user"] == (user or os.getuid())
    return told["in"]


def listening(process: psutil.Process) -> set[int]:
    """The ports at which a process and its children wait for whoever comes."""
    every = (each for one in [process, *process.children(recursive=True)] for each in one.net_connections("tcp"))
    found = [connection.laddr for connection in every if connection.status == psutil.CONN_LISTEN]
    assert {address.ip for address in found} == {"127.0.0.1"}
    return {address.port for address in found}


def retire_workers(port: int) -> int:
    """Ask as Dask's HTTP interface would be asked, where it is on; what is answered, 0 for nothing."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/retire_workers", data=b"{}", timeout=3) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.slow
def test_no_other_user_reaches_a_local_run(
    slow: dict[str, str], tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    # As many as still go on when all was tried.
    write_exposures(tmp_path / "in", 100, shape=(120, 150))
    temporary = tmp_path / "tmp"
    temporary.mkdir(mode=0o777)
    env = slow | {"TMPDIR": str(temporary)}
    process = start("run", tmp_path / "in", "--output", tmp_path / "out", "--workers", 2, env=env)
    wait_until(lambda: list((tmp_path / "out").glob("*.fits")), what="an output")
    ports = listening(psutil.Process(process.pid))
    # Scheduler, two nannies, two workers; and what is for browsers.
    assert len(ports) >= 6
    assert intrude(ports) == []
    for path in temporary.iterdir():
        assert path.stat().st_mode & 0o077 == 0
    with ThreadPoolExecutor(len(ports)) as pool:
        answers = set(pool.map(retire_workers, ports))
    # What is for browsers has no such page, and nothing else answers one.
    assert answers == {404, 0}
    assert finish(process).returncode == 0
    assert len(list((tmp_path / "out").glob("*.fits"))) == 100


def test_the_intruder_is_let_in_where_nothing_keeps_it_out(client: Client) -> None:
    port = urlsplit(client.scheduler.address).port
    assert intrude({port}) == [client.scheduler.address]


def test_an_open_scheduler_is_warned_of(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "skylevel")
    with connect(client.scheduler.address, workers=None, n_exposures=1):
        pass
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"{client.scheduler.address} is open: whoever reaches it can run code as its owner")


@pytest.mark.parametrize("has_pages", [True, False])
def test_the_dashboard_is_told_of_where_a_page_answers(has_pages: bool) -> None:
    with (
        LocalCluster(
            host="127.0.0.1", n_workers=0, silence_logs=logging.CRITICAL,
            dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": has_pages},
        ) as cluster,  # fmt: skip
        Client(cluster, set_as_default=False) as client,
    ):
        assert dashboard(client).startswith("http://127.0.0.1:") is has_pages


def test_a_scheduler_without_bokeh_has_no_pages() -> None:
    """Its pages say that Bokeh is missing: it answers, but not with what Bokeh brings."""
    with socketserver.TCPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request).start()
        assert not _has_pages(*server.server_address)
    assert not _has_pages(*server.server_address)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("/proxy/{port}/status", "/proxy/{port}/status"),
        ("{JUPYTERHUB_SERVICE_PREFIX}proxy/{port}/status", "/user/me/proxy/{port}/status"),
        ("{NOWHERE_SET}proxy/{port}/status", "http://127.0.0.1:{port}/status"),
    ],
)
def test_the_dashboards_address_is_what_dasks_configuration_says(
    client: Client, monkeypatch: pytest.MonkeyPatch, link: str, expected: str
) -> None:
    """Such as behind jupyter-server-proxy."""
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/me/")
    port = client.scheduler_info(n_workers=0)["services"]["dashboard"]
    with dask.config.set({"distributed.dashboard.link": link}):
        assert dashboard(client) == expected.format(port=port)


class TestPrivateFolder:
    """Where another user could have been first, nothing of that user's is taken."""

    @pytest.fixture(autouse=True)
    def temporary(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def test_stays_the_same(self, tmp_path: Path) -> None:
        assert private_folder() == private_folder() == str(tmp_path / f"skylevel-{os.getuid()}")
        assert Path(private_folder()).stat().st_mode & 0o777 == 0o700

    def test_follows_dask(self, tmp_path: Path) -> None:
        (tmp_path / "scratch").mkdir()
        with dask.config.set({"temporary-directory": str(tmp_path / "scratch")}):
            assert Path(private_folder()).parent == tmp_path / "scratch"

    @pytest.mark.parametrize("kind", ["open", "link", "file", "other"])
    def test_what_is_not_ours_is_left_alone(self, tmp_path: Path, kind: str) -> None:
        planted = tmp_path / f"skylevel-{os.getuid()}"
        if kind == "link":
            (tmp_path / "target").mkdir(mode=0o700)
            planted.symlink_to(tmp_path / "target")
        elif kind == "file":
            planted.touch()
        else:
            planted.mkdir()
            planted.chmod(0o777 if kind == "open" else 0o700)
        if kind == "other":
            if os.geteuid():
                pytest.skip("only root gives files away")
            os.chown(planted, NOBODY, NOBODY)
        found = Path(private_folder())
        assert found != planted
        assert found.stat().st_mode & 0o777 == 0o700
        assert found.stat().st_uid == os.getuid()


ANOTHER_SERVER = """
import multiprocessing, os, pathlib, sys
from skylevel.program.cluster import _remove_dead_sockets
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.Process(target=os.getpid).start()
    folder = pathlib.Path(os.environ["TMPDIR"])
    for sockets in folder.glob("pymp-*"):
        os.utime(sockets, (0, 0))
    _remove_dead_sockets(folder)
    assert list(folder.glob("pymp-*/listener-*"))
    process = context.Process(target=sys.exit, args=(0,))
    process.start()
    process.join()
    print(process.exitcode)
"""


class TestServerOfWorkers:
    """It forks a command's workers; those of any other program start anew, each with what it has become."""

    def test_a_program_has_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for key in ("first", "second"):
            monkeypatch.setenv("SKY_KEY", key)
            with connect("local", workers=1, n_exposures=1) as client:
                assert set(client.run(os.getenv, "SKY_KEY").values()) == {key}
                assert set(client.run(os.getppid).values()) == {os.getpid()}

    def test_a_module_in_the_folder_is_not_imported(self, tmp_path: Path) -> None:
        write_exposures(tmp_path / "in", 2)
        for name in ("scipy", "dask", "distributed", "numpy"):
            (tmp_path / f"{name}.py").write_text(f"open('{tmp_path}/imported', 'w'); raise RuntimeError")
        ended = finish(start_skylevel("run", "in", "--output", "out", cwd=tmp_path))
        assert (ended.returncode, ended.stderr.count("RuntimeError")) == (0, 0)
        assert not (tmp_path / "imported").exists()

    def test_where_its_socket_has_no_room(self, tmp_path: Path) -> None:
        write_exposures(tmp_path / "in", 2)
        far = tmp_path / ("a" * 60) / ("b" * 60)
        far.mkdir(parents=True)
        ended = skylevel("run", tmp_path / "in", "--output", tmp_path / "out", env={"TMPDIR": str(far)})
        assert ended.returncode == 0

    def test_what_killed_runs_left_goes(self, tmp_path: Path) -> None:
        old, young, alive = (tmp_path / f"pymp-{name}" for name in ("old", "young", "alive"))
        for folder in (old, young, alive):
            folder.mkdir()
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(f"{folder}/listener-1")
        with socket.socket(socket.AF_UNIX) as listens:
            listens.bind(f"{alive}/listener-2")
            listens.listen()
            for folder in (old, alive):
                os.utime(folder, (0, 0))
            _remove_dead_sockets(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["pymp-alive", "pymp-young"]

    def test_another_runs_goes_on(self, tmp_path: Path) -> None:
        """However long it has run: to connect to it without a word would end it."""
        server = subprocess.run([sys.executable, "-c", ANOTHER_SERVER], env={**os.environ, "TMPDIR": str(tmp_path)},
                                capture_output=True, text=True, check=False)  # fmt: skip
        assert (server.returncode, server.stdout, server.stderr) == (0, "0\n", "")


@pytest.mark.parametrize("of_user", [None, "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES"])
def test_workers_do_without_what_numpy_is_slow_with(monkeypatch: pytest.MonkeyPatch, of_user: str | None) -> None:
    if of_user:
        monkeypatch.setenv(of_user, "")
    with connect("local", workers=1, n_exposures=1) as client:
        found = client.run(os.getenv, "NPY_DISABLE_CPU_FEATURES")
    of_ours = " ".join(slow_instructions()) or None
    assert set(found.values()) == {os.environ.get("NPY_DISABLE_CPU_FEATURES") if of_user else of_ours}
