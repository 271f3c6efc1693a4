"""One process at a time, on any file system; a dead owner, here or elsewhere, keeps nothing."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from skylevel.errors import StoreError
from skylevel.io import lock
from skylevel.io.lock import locked, reserved

pytestmark = pytest.mark.once


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners elsewhere renew, expire and are watched within a second."""
    monkeypatch.setattr(lock, "_RENEWED_EVERY", 0.05)
    monkeypatch.setattr(lock, "_EXPIRES", 0.5)
    monkeypatch.setattr(lock, "_WATCHED", 0.4)


@contextmanager
def another_process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that does something with locks, once it has said so; killed at the end, and not reaped before."""
    command = [sys.executable, "-c", f"import sys, time\nfrom skylevel.io.lock import locked, reserved\n{code}"]
    process = subprocess.Popen([*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.communicate()


HOLD = "with locked(sys.argv[1]): print('holds', flush=True); time.sleep(60)"
RESERVE = "with reserved(sys.argv[1]): print('holds', flush=True); time.sleep(60)"


def elsewhere(path: Path, **more: Any) -> dict[str, Any]:
    """What another machine's process writes."""
    now = time.time()
    owner = {"host": "far", "machine": "far", "process": 7, "started": now, "since": now, "renewed": now, "token": "t"}
    path.write_text(json.dumps(owner | more))
    return owner | more


class TestLocked:
    def test_nothing_is_left(self, tmp_path: Path) -> None:
        with locked(f"{tmp_path}/lock"):
            assert [path.name for path in tmp_path.iterdir()] == ["lock"]
        assert list(tmp_path.iterdir()) == []

    def test_another_process_holds_it(self, tmp_path: Path) -> None:
        with (
            another_process(HOLD, tmp_path / "lock") as other,
            pytest.raises(StoreError, match=f"held by process {other.pid} on {re.escape(socket.gethostname())} since"),
            locked(f"{tmp_path}/lock", patience=0.2),
        ):
            pass

    def test_on_a_disk_without_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def link(*_: Any) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", link)
        with locked(f"{tmp_path}/lock"):
            assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()
            with pytest.raises(StoreError, match="held by"), locked(f"{tmp_path}/lock", patience=0.2):
                pass
        assert list(tmp_path.iterdir()) == []

    def test_a_killed_owner_is_no_owner(self, tmp_path: Path) -> None:
        """At once, and though nobody has asked for its status yet, as in a container without init."""
        with another_process(HOLD, tmp_path / "lock") as other:
            other.send_signal(signal.SIGKILL)
            began = time.monotonic()
            with locked(f"{tmp_path}/lock", patience=5):
                assert time.monotonic() - began < 5
        assert list(tmp_path.iterdir()) == []

    def test_another_process_may_have_its_number_since(self, tmp_path: Path) -> None:
        elsewhere(tmp_path / "lock", machine=lock._machine(), process=os.getpid(), started=time.time() - 3600)
        with locked(f"{tmp_path}/lock", patience=0.2):
            pass

    @pytest.mark.usefixtures("quick")
    @pytest.mark.parametrize("renewed", [0.0, 4e9, "yesterday", None])
    def test_an_owner_elsewhere_that_renews_it_no_more_is_dead(self, tmp_path: Path, renewed: object) -> None:
        elsewhere(tmp_path / "lock", renewed=renewed)
        with locked(f"{tmp_path}/lock", patience=0.2):
            pass

    @pytest.mark.usefixtures("quick")
    @pytest.mark.parametrize("text", ["", "[]", "{", "3", "[" * 100_000, '{"process": "x", "machine": []}'])
    def test_a_damaged_lock_holds_nothing(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "lock").write_text(text)
        with locked(f"{tmp_path}/lock", patience=0.2):
            pass

    @pytest.mark.parametrize("process", [-1, 2**80, "x", None, 0])
    def test_nor_does_a_damaged_one_of_this_machine(self, tmp_path: Path, process: object) -> None:
        elsewhere(tmp_path / "lock", machine=lock._machine(), process=process)
        with locked(f"{tmp_path}/lock", patience=0.2):
            pass

    def test_an_owner_elsewhere_that_renews_it_holds_it(self, tmp_path: Path) -> None:
        elsewhere(tmp_path / "lock")
        with pytest.raises(StoreError, match="process 7 on far"), locked(f"{tmp_path}/lock", patience=0.1):
            pass

    @pytest.mark.usefixtures("quick")
    def test_though_its_clock_is_years_behind(self, tmp_path: Path) -> None:
        stop = threading.Event()

        def renew() -> None:
            count = 0
            while not stop.wait(0.1):
                elsewhere(tmp_path / "new", renewed=count)
                (tmp_path / "new").replace(tmp_path / "lock")
                count += 1

        elsewhere(tmp_path / "lock", renewed=-1)
        thread = threading.Thread(target=renew)
        thread.start()
        taken = threading.Event()

        def take() -> None:
            with locked(f"{tmp_path}/lock"):
                taken.set()

        other = threading.Thread(target=take)
        other.start()
        assert not taken.wait(1.5)
        stop.set()
        assert taken.wait(5)
        thread.join()
        other.join()

    @pytest.mark.usefixtures("quick")
    def test_it_is_renewed_and_its_loss_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "lock"
        with locked(str(path)) as held:
            first = json.loads(path.read_text())["renewed"]
            time.sleep(0.3)
            assert json.loads(path.read_text())["renewed"] > first
            held.require()
            elsewhere(tmp_path / "new")
            (tmp_path / "new").replace(path)
            time.sleep(0.3)
            with pytest.raises(StoreError, match="taken over by process 7 on far"):
                held.require()
        assert json.loads(path.read_text())["host"] == "far"

    def test_one_of_many_takes_a_dead_ones(self, tmp_path: Path) -> None:
        elsewhere(tmp_path / "lock", machine=lock._machine(), process=2**22 + 1)
        code = """
from pathlib import Path
for _ in range(20):
    with locked(sys.argv[1]):
        inside = Path(sys.argv[1] + '.inside')
        inside.touch(exist_ok=False)
        inside.unlink()
"""
        command = [sys.executable, "-c", f"import sys\nfrom skylevel.io.lock import locked\n{code}", tmp_path / "lock"]
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
        assert [(process.communicate(timeout=60)[1], process.returncode) for process in processes] == [("", 0)] * 4
        assert list(tmp_path.iterdir()) == []


@contextmanager
def local(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path)


@contextmanager
def in_memory(tmp_path: Path) -> Iterator[str]:
    files = fsspec.filesystem("memory")
    files.makedirs("/box/program.zarr", exist_ok=True)
    yield "memory://box/program.zarr"
    files.rm("/box", recursive=True)


class TestReserved:
    @pytest.mark.parametrize("store", [local, in_memory])
    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            (None, None, "in use by another run (process "),
            (None, (1, 4), "in use by another run (process "),
            ((2, 4), None, "in use by another run (share 2 of 4, process "),
            ((2, 4), (2, 4), "in use by another run (share 2 of 4, process "),
            ((2, 4), (1, 3), "in use by another run (share 2 of 4, process "),
            ((2, 4), (3, 4), None),
        ],
    )
    def test_who_may_work_beside_whom(
        self, tmp_path: Path, store: Callable, first: lock.Share, second: lock.Share, message: str | None
    ) -> None:
        with store(tmp_path) as folder:
            with reserved(folder, first):
                if message is None:
                    with reserved(folder, second):
                        pass
                else:
                    with pytest.raises(StoreError, match=re.escape(message)), reserved(folder, second):
                        pass
            with reserved(folder, second):
                pass
            assert fsspec.url_to_fs(folder)[0].ls(fsspec.url_to_fs(folder)[1]) == []

    def test_a_killed_run_keeps_nothing(self, tmp_path: Path) -> None:
        with another_process(RESERVE, tmp_path) as other:
            with pytest.raises(StoreError, match=f"process {other.pid} on"), reserved(str(tmp_path)):
                pass
            other.send_signal(signal.SIGKILL)
            with reserved(str(tmp_path), (1, 2)):
                assert sorted(path.name for path in tmp_path.iterdir()) == ["run-1-of-2.lock"]

    def test_what_a_killed_owner_left_on_the_way_to_a_lock_goes(self, tmp_path: Path) -> None:
        of_the_living, of_the_dead, abandoned, new = (tmp_path / f".run.lock.{letter * 32}.tmp" for letter in "abcd")
        with locked(str(tmp_path / "mine")):
            of_the_living.write_bytes((tmp_path / "mine").read_bytes())
        owner = json.loads(of_the_living.read_text())
        of_the_dead.write_text(json.dumps(owner | {"started": owner["started"] - 3600}))
        abandoned.touch()
        os.utime(abandoned, (0, 0))
        new.touch()
        with reserved(str(tmp_path)):
            pass
        assert sorted(tmp_path.iterdir()) == [of_the_living, new]

    def test_other_files_are_none_of_its_business(self, tmp_path: Path) -> None:
        (tmp_path / "run.lock.txt").touch()
        (tmp_path / "run-x-of-2.lock").touch()
        with reserved(str(tmp_path)):
            pass
        assert len(list(tmp_path.iterdir())) == 2
