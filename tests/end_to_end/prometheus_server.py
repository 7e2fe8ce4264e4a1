"""A real Prometheus, and what tests ask it."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .server_process import seconds


@dataclass
class Prometheus:
    """A real one; `ask` returns the series of a query, now."""

    url: str

    def ask(self, expression: str) -> list[dict[str, Any]]:
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=seconds(5)) as got:
            body = json.load(got)
        assert body["status"] == "success"
        return body["data"]["result"]

    def alerts(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/api/v1/alerts", timeout=seconds(5)) as got:
            return json.load(got)["data"]["alerts"]

    def rules(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/api/v1/rules", timeout=seconds(5)) as got:
            (group,) = json.load(got)["data"]["groups"]
            return group["rules"]


@contextmanager
def running_prometheus(binary: str, config: Path, folder: Path) -> Iterator[Prometheus]:
    """Runs while it is entered, with its data and its log in `folder`. It may still be starting."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = folder / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Prometheus(f"http://127.0.0.1:{port}")
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()
