"""deploy/haproxy in front of a server, as a real process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import grpc

from .pki import Authority
from .server_process import REPOSITORY, Server, eventually, seconds

CONFIG = REPOSITORY / "deploy" / "haproxy" / "haproxy.cfg"


def haproxy() -> str:
    own = REPOSITORY / ".tools" / "bin" / "haproxy"
    found = str(own) if own.exists() else shutil.which("haproxy")
    assert found is not None, "haproxy is not installed: ./dev setup brings it"
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Edge:
    """HAProxy with TLS on 127.0.0.1, `limits` as the environment variables of the configuration."""

    def __init__(self, folder: Path, server: Server, limits: dict[str, int] | None = None):
        authority = Authority(folder, "edge-authority")
        own = authority.issue("edge", "DNS:localhost,IP:127.0.0.1")
        pem = folder / "edge-bundle.pem"
        pem.write_bytes(own.key.read_bytes() + own.certificate.read_bytes())
        self.ca_file = authority.certificate
        self.address = f"127.0.0.1:{_free_port()}"
        self._log = (folder / "haproxy.log").open("wb")
        environment = {
            "QUANTD_EDGE_PEM": str(pem),
            "QUANTD_EDGE_LISTEN": self.address,
            "QUANTD_ADDRESS": server.address,
            **{name: str(value) for name, value in (limits or {}).items()},
        }
        self._process = subprocess.Popen(
            [haproxy(), "-db", "-f", str(CONFIG)],
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **environment},
        )
        eventually(self.answers, "the edge answers", 20)

    def answers(self) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text()
        return self.probe() is not None

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca_file.read_bytes())

    def probe(self) -> float | None:
        """Seconds that a health check takes over a connection of its own; None if it fails."""
        return probe(self.address, self.credentials())

    def resident_bytes(self) -> int:
        return resident_bytes(self._process.pid)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(seconds(20))
        self._log.close()


def probe(address: str, tls: grpc.ChannelCredentials | None) -> float | None:
    """As a load balancer's: a new connection, grpc.health.v1, half a minute at most."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.insecure_channel(address, options=options)
        if tls is None
        else grpc.secure_channel(address, tls, options=options)
    )
    started = time.monotonic()
    try:
        answer = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=30)
    except grpc.RpcError:
        return None
    finally:
        channel.close()
    return time.monotonic() - started if answer == b"\x08\x01" else None


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
