"""A server that dies, for the loops: started on one port again and again, and looked at between."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from end_to_end.server_process import Server, bin_dir, seconds

from .workload import CONFIG


def failpoint_names() -> list[str]:
    """What this build can crash at; none where it was built without QUANTD_FAILPOINTS."""
    listing = subprocess.run(
        [bin_dir() / "server" / "quantd", "--list_failpoints"], capture_output=True, text=True
    )
    return listing.stdout.split()


_next_port = itertools.count(os.getpid() % 8000)


def free_port() -> int:
    """A port that nobody takes while its server is down: below those that connections get."""
    while True:
        port = 20_000 + next(_next_port) % 12_000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@dataclass
class Supervised:
    """A server on a directory of its own, with what it said about its failpoints."""

    data_dir: Path
    config: str = CONFIG
    server: Server = field(init=False)
    said: list[str] = field(default_factory=list)
    start_s: float = 0.0  # how long the last start took

    def __post_init__(self) -> None:
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        # The same address after every start: clients find the server again.
        flags = [f"--listen=127.0.0.1:{free_port()}"]
        self.server = Server(self.data_dir, config=self.config, flags=flags)

    @property
    def address(self) -> str:
        return self.server.flags[0].split("=")[1]

    def start(self, failpoints: str = "") -> bool:
        """False: it died before it listened, as failpoints make it."""
        began = time.monotonic()
        self.server.environment = {"QUANTD_FAILPOINTS": failpoints} if failpoints else {}
        try:
            self.server.start()
        except AssertionError:
            process = self.server.process
            assert process is not None
            if process.poll() != -signal.SIGKILL:
                raise
            self._hear()
            return False
        self.start_s = time.monotonic() - began
        return True

    def running(self) -> bool:
        return self.server.running()

    def kill(self) -> None:
        self.server.kill()
        self._hear()

    def stop(self, within_s: float = 10.0) -> int:
        """SIGTERM. Returns the exit status, which may be that of a crash on the way out."""
        self.server.terminate()
        return self.wait(within_s)

    def wait(self, within_s: float) -> int:
        code = self.server.wait(within_s)
        self._hear()
        return code

    def wait_for_death(self, within_s: float) -> bool:
        deadline = time.monotonic() + seconds(within_s)
        while self.running():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        self.wait(5)
        return True

    def heard(self) -> list[str]:
        """What the running server has said about its failpoints."""
        return [line for line in list(self.server.stderr) if line.startswith("failpoint ")]

    def _hear(self) -> None:
        self.said += [line.strip() for line in self.server.stderr if line.startswith("failpoint ")]

    def fsck(self, *flags: str) -> tuple[int, dict[str, Any]]:
        """Exit status and findings of `quantd fsck`."""
        done = subprocess.run(
            [
                bin_dir() / "server" / "quantd",
                "fsck",
                "--json",
                f"--data_dir={self.data_dir}",
                *flags,
            ],
            capture_output=True,
            text=True,
            timeout=seconds(60),
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def remove(self) -> None:
        if self.running():
            self.server.kill()
        shutil.rmtree(self.data_dir, ignore_errors=True)


def hits_of(said: Sequence[str], name: str, action: str = "crash") -> int:
    return sum(line.startswith(f"failpoint {name} hit ") and line.endswith(action) for line in said)
