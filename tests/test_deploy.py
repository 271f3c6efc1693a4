"""The files of deploy, but SLURM's: against what reads them, and their commands for real, on this machine."""

import importlib.metadata
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from programs import SKYLEVEL, pixels_of, skylevel, write_exposures

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
BIN = SKYLEVEL.parent
CONTAINER = DEPLOY / "container"
CONFIGURATION = CONTAINER / "dask-tls.yaml"
CERTIFICATES = "/etc/skylevel/tls"
COUNT = 3

FOREIGN = ("DASK", "SKYLEVEL", "VIRTUAL_ENV", "PYTHON")
ENV = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


def answer(*command: object, timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """What a command says, and its status."""
    words = list(map(str, command))
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=timeout, **options)


def make_certificates(folder: Path) -> subprocess.CompletedProcess[str]:
    return answer(CONTAINER / "make-certificates", folder)


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())


def cluster() -> dict[str, Any]:
    (document,) = documents("kubernetes/cluster.yaml")
    return document


def job() -> dict[str, Any]:
    (document,) = documents("kubernetes/run.yaml")
    return document


def pods() -> dict[str, dict[str, Any]]:
    """The pod of each part of the cluster and of the job, by its container's name."""
    specs = [*(cluster()["spec"][part]["spec"] for part in ("worker", "scheduler")), job()["spec"]["template"]["spec"]]
    return {spec["containers"][0]["name"]: spec for spec in specs}


def dockerfile_steps(text: str) -> list[tuple[str, str]]:
    """Instruction and arguments of each step."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined]


class TestAgainstWhatReadsThem:
    def test_dockerfile(self):
        done = answer(BIN / "hadolint", CONTAINER / "Dockerfile")
        assert (done.returncode, done.stdout) == (0, "")

    @pytest.mark.parametrize("break_it", [False, True])
    def test_compose_follows_the_specification(self, tmp_path, break_it):
        document = compose()
        if break_it:
            document["services"]["worker"]["comand"] = []
        (tmp_path / "compose.yaml").write_text(yaml.safe_dump(document))
        checker = (BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec")
        done = answer(*checker, tmp_path / "compose.yaml")
        assert done.returncode == int(break_it), done.stdout
        assert ("comand" in done.stdout) == break_it

    @pytest.mark.parametrize("break_it", [False, True])
    def test_cluster_is_what_the_operator_takes(self, break_it):
        path = "dask_kubernetes/operator/deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml"
        shipped = importlib.metadata.distribution("dask-kubernetes").locate_file(path)
        definition = yaml.safe_load(Path(shipped).read_text())
        (version,) = definition["spec"]["versions"]
        document = cluster()
        assert document["apiVersion"] == f"{definition['spec']['group']}/{version['name']}"
        if break_it:
            document["spec"]["worker"]["spec"]["containers"][0]["args"] = "dask worker"
        found = list(jsonschema.Draft7Validator(version["schema"]["openAPIV3Schema"]).iter_errors(document))
        assert bool(found) == break_it, found

    @pytest.mark.parametrize(
        ("kind", "document"),
        [
            ("V1Job", job()),
            ("V1PersistentVolumeClaim", documents("kubernetes/storage.yaml")[0]),
            ("V1PodSpec", pods()["worker"]),
            ("V1PodSpec", pods()["scheduler"]),
            ("V1ServiceSpec", cluster()["spec"]["scheduler"]["service"]),
        ],
    )
    def test_kubernetes_knows_every_word(self, kind, document):
        """What its client does not know, it leaves out."""
        from kubernetes import client  # noqa: PLC0415 (slow to import, and of all tests only this one needs it)

        api = client.ApiClient(client.Configuration())
        known = api.sanitize_for_serialization(api.deserialize(json.dumps(document), kind, None))
        assert known == document


class TestWhoMayDoWhat:
    def test_no_container_is_root_or_writes_where_it_should_not(self):
        steps = dockerfile_steps((CONTAINER / "Dockerfile").read_text())
        assert [arguments for word, arguments in steps if word == "USER"] == ["1000:1000"]
        for service in compose()["services"].values():
            assert service["user"].startswith("${SKYLEVEL_UID:?")
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
        for pod in pods().values():
            (container,) = pod["containers"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert not pod["automountServiceAccountToken"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["readOnlyRootFilesystem"]

    def test_no_port_is_open_beyond_this_machine(self):
        ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]
        assert ports
        assert all(port.startswith("127.0.0.1:") for port in ports)
        assert cluster()["spec"]["scheduler"]["service"]["type"] == "ClusterIP"
        assert "127.0.0.1:8787" in pods()["scheduler"]["containers"][0]["args"]

    def test_certificates_are_for_their_owner_and_not_replaced(self, tmp_path):
        assert make_certificates(tmp_path / "tls").returncode == 0
        files = {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()}
        assert set(files) == {"cert.pem", "key.pem"}
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "tls").iterdir())
        again = make_certificates(tmp_path / "tls")
        assert again.returncode == 1
        assert "remove it first" in again.stderr
        assert {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()} == files

    def test_every_file_that_a_readme_names_is_there(self):
        for readme in DEPLOY.rglob("README.md"):
            for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", readme.read_text()):
                assert (readme.parent / link).exists(), f"{readme}: {link}"


# Scheduler, worker and skylevel as each kind of deployment starts them: command lines, and what its names stand for.
COMMANDS = {
    "compose": [
        compose()["services"]["scheduler"]["command"],
        compose()["services"]["worker"]["command"],
        [*compose()["services"]["level"]["entrypoint"], "program/*.fits", "--output", "levelled"],
    ],
    "kubernetes": [
        pods()["scheduler"]["containers"][0]["args"],
        pods()["worker"]["containers"][0]["args"],
        [word.replace("_cal.fits", ".fits") for word in pods()["skylevel"]["containers"][0]["args"]],
    ],
}


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


def here(command: Sequence[str], port: int) -> list[str]:
    """A container's command with the names and ports of this machine; programs are those of this environment."""
    named = [re.sub(r"tls://(skylevel-)?scheduler:8786", f"tls://127.0.0.1:{port}", word) for word in command]
    numbers = {"8786": str(port), ":8787": "127.0.0.1:0", "127.0.0.1:8787": "127.0.0.1:0", "$(DASK_WORKER_NAME)": "w0"}
    return [str(BIN / named[0]), *(numbers.get(word, word) for word in named[1:])]


@contextmanager
def running(command: Sequence[str], log: Path, **options: Any) -> Iterator[None]:
    with log.open("w") as said, subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, **options) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def write_certified(folder: Path) -> dict[str, str]:
    """Certificates, and the environment of who has them: the image's own configuration, with this folder in it."""
    folder.mkdir(exist_ok=True)
    assert make_certificates(folder / "tls").returncode == 0
    (folder / "dask-tls.yaml").write_text(CONFIGURATION.read_text().replace(CERTIFICATES, str(folder / "tls")))
    return ENV | {"DASK_CONFIG": str(folder / "dask-tls.yaml")}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deploy") / "program"
    write_exposures(folder, COUNT)
    return folder


@pytest.fixture(scope="module")
def expected(program: Path) -> dict[str, bytes]:
    assert skylevel("run", program, "--output", program.parent / "local", "--workers", 1, "--quiet").returncode == 0
    return pixels_of(program.parent / "local")


@pytest.mark.slow
class TestCommands:
    @pytest.mark.parametrize("kind", COMMANDS)
    def test_a_cluster_as_the_containers_start_it(self, kind, program, expected, tmp_path):
        shutil.copytree(program, tmp_path / "program")
        env, port = write_certified(tmp_path), free_port()
        scheduler, worker, level = (here(command, port) for command in COMMANDS[kind])
        with ExitStack() as stack:
            for name, command in (("scheduler", scheduler), ("worker", worker)):
                stack.enter_context(running(command, tmp_path / f"{name}.log", env=env, cwd=tmp_path))
            done = answer(*level, env=env, cwd=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "worker.log").read_text()

            # With another certificate nobody gets in.
            stranger = write_certified(tmp_path / "other") | {"DASK_SKYLEVEL__CONNECT_TIMEOUT": "3 s"}
            refused = answer(*level, "--overwrite", env=stranger, cwd=tmp_path)
            assert refused.returncode == 2
            assert "no scheduler answers" in refused.stderr
        assert pixels_of(tmp_path / "levelled") == expected
        assert "tls://" in (tmp_path / "worker.log").read_text()

    def test_pbs_array(self, program, expected, tmp_path):
        """Its lines for PBS are comments; what it does, any shell does."""
        env = ENV | {
            "SKYLEVEL_VENV": str(BIN.parent), "PBS_O_WORKDIR": str(program.parent), "SHARES": "2",
            "INPUT": "program/*.fits", "OUTPUT": str(tmp_path / "out"), "OPTIONS": "--layout full --quiet",
        }  # fmt: skip
        for index in (1, 2):
            element = env | {"PBS_ARRAY_INDEX": str(index)}
            done = answer("bash", DEPLOY / "pbs" / "job-array.pbs", env=element, cwd="/")
            assert done.returncode == 0, done.stderr
        assert pixels_of(tmp_path / "out") == expected

    def test_workers_of_a_batch_system(self, program, expected, tmp_path):
        """PBS's own commands are not here: `qsub` starts the job's script at once, `qdel` ends it."""
        (tmp_path / "bin").mkdir()
        commands = {
            "qsub": 'cp "$1" "$HOME/job"; setsid bash "$HOME/job" >"$HOME/job.log" 2>&1 </dev/null & echo "$!.here"',
            "qdel": 'kill -- "-${1%.here}" || true',
        }
        for name, text in commands.items():
            (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        env = ENV | {"PATH": f"{tmp_path / 'bin'}:{ENV['PATH']}", "HOME": str(tmp_path)}
        script = DEPLOY / "pbs" / "workers.py"
        done = answer(sys.executable, script, "PBSCluster", 1, program / "*.fits", "out", env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"done {COUNT}, done before 0, failed 0" in done.stdout
        assert pixels_of(tmp_path / "out") == expected
        log = (tmp_path / "job.log").read_text()
        assert "tls://" in log
        assert "tcp://" not in log


def copied(arguments: str, root: Path) -> None:
    """Do what COPY, or a line of %files, does."""
    *sources, target = arguments.split()
    for source in sources:
        to = root / target.lstrip("/") / (Path(source).name if target.endswith("/") else "")
        to.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / source, to)


def canonical(pin: str) -> str:
    """A package's name and version, the name spelled in one way."""
    name, _, version = pin.partition("==")
    return f"{re.sub('[-_.]+', '-', name).lower()}=={version}"


def docker_build() -> tuple[list[str], list[str]]:
    """What the image's first stage copies, and what it runs."""
    text = (CONTAINER / "Dockerfile").read_text()
    steps = dockerfile_steps(text[: text.index("FROM python:3.12-slim\n")])
    return [a for word, a in steps if word == "COPY"], [a for word, a in steps if word == "RUN"]


def apptainer_build() -> tuple[list[str], list[str]]:
    """What the definition's %files copies, and its %post."""
    sections = re.split(r"^%(\w+)\n", (DEPLOY / "apptainer" / "skylevel.def").read_text(), flags=re.MULTILINE)
    by_name = dict(zip(sections[1::2], sections[2::2], strict=True))
    files = [line for line in by_name["files"].splitlines() if line.strip()]
    assert {len(line.split()) for line in files} == {2}, "a line of %files has one source"
    return files, [by_name["post"]]


@pytest.mark.slow
@pytest.mark.parametrize("build", [docker_build, apptainer_build])
def test_installing_steps_in_a_clean_environment(build, tmp_path):
    """The same commands, with a fresh Python first on the path, and below a folder what is below / in a container."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "usr"], check=True)
    files, commands = build()
    for arguments in files:
        copied(arguments, tmp_path)
    env = ENV | {"PATH": f"{tmp_path / 'usr/bin'}:/usr/bin:/bin"}
    for command in commands:
        moved = re.sub(r"(?<![\w.])/(opt/skylevel|src)\b", lambda found: str(tmp_path / found[1]), command)
        done = answer("bash", "-euc", moved, env=env, cwd=tmp_path, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
    (packages,) = (tmp_path / "opt/skylevel/lib").glob("python*/site-packages")
    installed = {f"{d.name}=={d.version}" for d in importlib.metadata.distributions(path=[str(packages)])}
    pinned = [line.split(";")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()]
    unpinned = {canonical(line) for line in installed} - {canonical(line) for line in pinned}
    assert [line for line in unpinned if not line.startswith("skylevel==")] == []
    done = answer(tmp_path / "opt/skylevel/bin/skylevel", "demo", "--workers", 1, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
