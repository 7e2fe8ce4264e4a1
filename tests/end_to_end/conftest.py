"""Fixtures: servers as real processes, and the other programs that talk to them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "client" / "python"))

if not (REPOSITORY / "client" / "python" / "quantd" / "v1" / "__init__.py").exists():
    subprocess.run(
        [sys.executable, REPOSITORY / "client" / "python" / "generate_stubs.py"], check=True
    )

# Programs that tests start hear an interrupt even where the shell of the tests ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)

from .server_process import Server, bin_dir, seconds  # noqa: E402


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for a module's tests, with the default configuration. Tests use ids of their own
    and leave no unfinished jobs behind."""
    started = Server(tmp_path_factory.mktemp("server") / "data").start()
    yield started
    started.stop()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers of a test's own: `start_server(config="...", wrapper=[...])`."""
    started: list[Server] = []

    def start(name: str = "data", **arguments: Any) -> Server:
        server = Server(tmp_path / name, **arguments)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """An id that no other test of the module uses: [a-z0-9-], at most 40 characters."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())
    digest = f"{zlib.crc32(request.node.nodeid.encode()):08x}"
    return f"{name.removeprefix('test-')[:34].strip('-')}-{digest}"


def _tool(name: str, *places: Path) -> str:
    for place in places:
        if (place / name).exists():
            return str(place / name)
    found = shutil.which(name)
    assert found is not None, f"{name} is not installed: ./dev setup brings it"
    return found


def _runner(binary: str, *first: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(
        *arguments: object, stdin: str | None = None, check: bool = False, within: float = 30
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [binary, *first, *map(str, arguments)],
            input=stdin,
            text=True,
            capture_output=True,
            timeout=seconds(within),
        )
        if check:
            assert done.returncode == 0, f"{done.args} ended with {done.returncode}: {done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def quantctl() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs our command line: quantctl("--server", address, "info", check=True)."""
    binary = bin_dir() / "client" / "cli" / "quantctl"
    assert binary.exists(), f"{binary} is missing: build it or set QUANTD_BIN_DIR"
    return _runner(str(binary))


@pytest.fixture(scope="session")
def grpcurl() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs grpcurl over plaintext: grpcurl("-d", "{}", address, "quantd.v1.Server/...")."""
    return _runner(_tool("grpcurl", REPOSITORY / ".tools" / "bin"), "-plaintext")


@pytest.fixture(scope="session")
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    return _runner(_tool("promtool", REPOSITORY / ".tools" / "bin"))


@pytest.fixture(scope="session")
def prometheus() -> str:
    return _tool("prometheus", REPOSITORY / ".tools" / "bin")


def tmpfs_wrapper(directory: Path, size: str) -> Sequence[str]:
    """Runs a server in a mount namespace of its own where `directory` is a tmpfs of `size`.

    Needs no privileges: an unprivileged user is root inside the user namespace.
    """
    directory.mkdir(parents=True, exist_ok=True)
    script = f"mount -t tmpfs -o size={size} tmpfs '{directory}' && eval exec \"$0\""
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script]
