"""Starts the quantd server that the demo talks to."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass
class Server:
    """A running quantd with a data directory of its own."""

    address: str
    metrics_address: str
    data_directory: Path
    log: Path
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """Lets the server drain and waits for its end."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def find_binary() -> Path:
    """The server: $QUANTD_BIN_DIR/server/quantd, or the newest one below build/.

    Raises:
        FileNotFoundError: nothing has been built.

    """
    folder = os.environ.get("QUANTD_BIN_DIR")
    found = (
        [Path(folder) / "server" / "quantd"]
        if folder
        else sorted(
            (REPOSITORY / "build").glob("*/server/quantd"),
            key=lambda path: path.stat().st_mtime,
            reverse=True,
        )
    )
    if not found or not found[0].exists():
        raise FileNotFoundError("no quantd binary: run `./dev build`, or set QUANTD_BIN_DIR")
    return found[0]


def start(timeout_s: float = 20.0) -> Server:
    """Starts a server on free ports of this machine, with an empty temporary data directory.

    Returns once it accepts connections.

    Raises:
        RuntimeError: it ended, or did not come up in time; the message has the end of its log.

    """
    binary = find_binary()
    data_directory = Path(tempfile.mkdtemp(prefix="quantd-demo-"))
    address, metrics_address = _free_addresses()
    log = data_directory / "quantd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                binary,
                f"--listen={address}",
                f"--metrics_listen={metrics_address}",
                f"--data_dir={data_directory / 'data'}",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            # A Ctrl-C is for the demo, which then stops the server itself.
            start_new_session=True,
        )
    server = Server(address, metrics_address, data_directory, log, process)
    deadline = time.monotonic() + timeout_s
    while not _accepts(address):
        if process.poll() is not None or time.monotonic() > deadline:
            server.stop()
            last_lines = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{binary} did not start:\n{last_lines}")
        time.sleep(0.02)
    return server


def _free_addresses() -> tuple[str, str]:
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        ports = first.getsockname()[1], second.getsockname()[1]
    return f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"


def _accepts(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
