"""Starts the quantd server that the demo talks to."""

from __future__ import annotations

import json
import os
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

    def last_words(self) -> str:
        """The end of its log, and how it ended if it has."""
        status = self.process.poll()
        lines = self.log.read_text(errors="replace").splitlines()[-10:]
        if status is not None:
            lines.append(f"(ended with status {status})")
        return "\n".join(lines)

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
    log = data_directory / "quantd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                binary,
                "--listen=127.0.0.1:0",
                "--metrics_listen=127.0.0.1:0",
                f"--data_dir={data_directory / 'data'}",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for the demo, which then stops the server
        )
    deadline = time.monotonic() + timeout_s
    while (listening := _listening(log)) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            last_lines = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{binary} did not start:\n{last_lines}")
        time.sleep(0.02)
    return Server(listening["address"], listening["metrics_address"], data_directory, log, process)


def _listening(log: Path) -> dict[str, str] | None:
    """The log's entry that names the ports which the system chose."""
    for line in log.read_text(errors="replace").splitlines(keepends=True):
        if '"listening"' in line and line.endswith("\n"):
            entry: dict[str, str] = json.loads(line)
            if entry.get("event") == "listening":
                return entry
    return None
