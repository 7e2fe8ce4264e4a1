"""What clients that misbehave cost the others.

idle_streams   resident memory for activation streams that are open and send nothing
slow_clients   a healthy client's latencies beside clients that send a byte a second
names          metric series after as many random names of everything
edge           health checks through HAProxy while an attacker sends what HTTP/2 allows

Prints one JSON object a measurement, with its bound; exits with 1 if one is exceeded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from end_to_end.edge import Edge, probe
from end_to_end.server_process import REPOSITORY, Server
from end_to_end.wire import F32, activation_chunk, activation_header, gaussian
from quantd.v1 import calibration_pb2

from .http2_attacks import ATTACKS
from .http2_frames import (
    Answers,
    connect,
    data_frame,
    headers_frame,
    message_frame,
    request_headers,
)

STREAM = "/quantd.v1.Calibration/StreamActivations"
COLS = 64


class Bounds:
    """Collects measurements and whether they are within their bounds."""

    def __init__(self) -> None:
        self.exceeded = False

    def report(self, name: str, value: float, bound: float, unit: str, **more: Any) -> None:
        ok = value < bound
        self.exceeded |= not ok
        line = {"name": name, "value": round(value, 4), "bound": bound, "unit": unit, "ok": ok}
        print(json.dumps({**line, **more}), flush=True)


@contextlib.contextmanager
def running(config: str = "", **arguments: Any) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "data", config=config, **arguments).start()
        try:
            yield server
        finally:
            server.stop()


def room_for(streams: int) -> str:
    return (
        f"limits {{ max_streams_per_tenant: {streams + 10} max_calls_per_tenant: {streams + 100} }}"
    )


# ---- idle streams ----------------------------------------------------------------------------


def open_request(name: str, stream_id: str) -> bytes:
    header = activation_header(f"tenants/default/statistics/{name}", COLS, stream_id=stream_id)
    return calibration_pb2.StreamActivationsRequest(header=header).SerializeToString()


async def _open_streams(address: str, count: int) -> tuple[list[Any], list[Any]]:
    channels = [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(-(-count // 900))  # a connection takes 1,000
    ]
    at_once = asyncio.Semaphore(200)

    async def open_one(number: int) -> Any:
        async with at_once:
            call = channels[number % len(channels)].stream_stream(STREAM)()
            await call.write(open_request(f"idle-{number % 50}", f"s{number}"))
            assert await call.read() is not grpc.aio.EOF
            return call

    return channels, await asyncio.gather(*(open_one(n) for n in range(count)))


def idle_streams(bounds: Bounds, count: int) -> None:
    with running(room_for(count)) as server:
        before = server.resident_bytes()

        async def measure() -> tuple[int, float, float]:
            channels, calls = await _open_streams(server.address, count)
            await asyncio.sleep(3)
            grown = server.resident_bytes() - before
            # What an idle stream costs while it is idle; and the server still answers.
            started = _cpu_seconds(server.pid)
            await asyncio.sleep(3)
            busy = (_cpu_seconds(server.pid) - started) / 3
            took = await asyncio.to_thread(probe, server.address, None)
            for call in calls:
                call.cancel()
            for channel in channels:
                await channel.close()
            assert took is not None
            return grown, busy, took

        grown, busy, took = asyncio.run(measure())
        bounds.report(
            "idle_streams",
            grown / 1e6,
            400,
            "MB",
            streams=count,
            cores_busy=round(busy, 3),
            probe_seconds=round(took, 4),
        )


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- slow clients ----------------------------------------------------------------------------


class SlowClients:
    """Streams of activations, each with a message that comes a byte a second."""

    def __init__(self, address: str, count: int):
        self._connections = []
        self._stop = threading.Event()
        for number in range(count):
            connection = connect(address)
            first = open_request("slow", f"s{number}")
            connection.sendall(headers_frame(1, request_headers(STREAM)))
            connection.sendall(message_frame(1, first, last=False))
            # A message of 1 MiB is announced ...
            connection.sendall(data_frame(1, b"\x00" + (1 << 20).to_bytes(4, "big")))
            self._connections.append(connection)
        self._thread = threading.Thread(target=self._trickle, daemon=True)
        self._thread.start()

    def _trickle(self) -> None:
        while not self._stop.is_set():
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.sendall(data_frame(1, b"\x00"))  # ... and comes like this
            self._stop.wait(1)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for connection in self._connections:
            connection.close()


class HealthyClient:
    """Streams chunks of 256 KiB, one at a time: seconds to each one's acknowledgement."""

    def __init__(self, server: Server, stream_id: str):
        self._api = server.connect()
        self._requests: list[Any] = []
        self._ready = threading.Condition()
        self._answers = self._api.channel.stream_stream(STREAM)(self._feed(), timeout=3600)
        self._put(open_request("healthy", stream_id))
        self._next()
        self._values = gaussian(1024, COLS, 1)
        self._seq = 0

    def _feed(self) -> Iterator[bytes]:
        while True:
            with self._ready:
                while not self._requests:
                    self._ready.wait()
                request = self._requests.pop(0)
            if request is None:
                return
            yield request

    def _put(self, request: bytes | None) -> None:
        with self._ready:
            self._requests.append(request)
            self._ready.notify()

    def _next(self) -> calibration_pb2.StreamActivationsResponse:
        return calibration_pb2.StreamActivationsResponse.FromString(next(self._answers))

    def latency(self) -> float:
        self._seq += 1
        chunk = activation_chunk(self._seq, self._values, dtype=F32)
        request = calibration_pb2.StreamActivationsRequest(chunk=chunk).SerializeToString()
        started = time.monotonic()
        self._put(request)
        while self._next().received_seq < self._seq:
            pass
        return time.monotonic() - started

    def latencies(self, seconds: float) -> list[float]:
        end = time.monotonic() + seconds
        taken = []
        while time.monotonic() < end:
            taken.append(self.latency())
        return taken

    def close(self) -> None:
        self._put(None)
        self._api.close()


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def slow_clients(bounds: Bounds, count: int, seconds: float) -> None:
    """Rounds alternate, so that a machine that slows down does so for both."""
    with running(room_for(count)) as server:
        healthy = HealthyClient(server, "healthy")
        healthy.latencies(1)
        alone: list[float] = []
        beside: list[float] = []
        for _ in range(4):
            alone += healthy.latencies(seconds / 4)
            slow = SlowClients(server.address, count)
            beside += healthy.latencies(seconds / 4)
            slow.close()
        healthy.close()
        ratio = percentile(beside, 99) / percentile(alone, 99)
        bounds.report(
            "slow_clients",
            ratio,
            2,
            "p99 beside / alone",
            clients=count,
            p50_ms=[round(1e3 * percentile(v, 50), 2) for v in (alone, beside)],
            p99_ms=[round(1e3 * percentile(v, 99), 2) for v in (alone, beside)],
            chunks=[len(alone), len(beside)],
        )


# ---- names -----------------------------------------------------------------------------------


def _field(text: str, number: int = 1) -> bytes:
    """A message with one string field, of fewer than 128 bytes."""
    data = text.encode()
    return bytes([number << 3 | 2, len(data)]) + data


def _random_call(draw: random.Random) -> tuple[str, bytes, list[tuple[str, str]]]:
    """Path, message and metadata, one of them with names that were never there."""
    name = f"{draw.getrandbits(64):016x}"
    kinds: list[tuple[str, bytes, list[tuple[str, str]]]] = [
        ("/quantd.v1.Jobs/GetJob", _field(f"tenants/default/jobs/{name}"), []),
        ("/quantd.v1.Jobs/GetJob", _field(f"tenants/{name}/jobs/x"), []),
        (
            "/quantd.v1.Weights/GetUploadStatus",
            _field(f"tenants/default/jobs/{name}/layers/{name}"),
            [],
        ),
        ("/quantd.v1.Calibration/GetStatistic", _field(f"tenants/default/statistics/{name}"), []),
        ("/quantd.v1.Results/GetErrorReport", _field(f"tenants/default/jobs/a/layers/{name}"), []),
        (f"/quantd.v1.Jobs/{name}", b"", []),
        (f"/{name}/{name}", b"", []),
        ("/quantd.v1.Server/GetServerInfo", b"", [("authorization", f"Bearer {name}")]),
        ("/quantd.v1.Server/GetServerInfo", b"", [(f"x-{name}", name), ("user-agent", name)]),
    ]
    return draw.choice(kinds)


def send_random_names(address: str, count: int, seed: int) -> None:
    draw = random.Random(seed)
    connection = connect(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answers = Answers(connection)
    batch = 250
    for first in range(0, count, batch):
        burst = bytearray()
        calls = range(first, min(first + batch, count))
        for number in calls:
            path, message, metadata = _random_call(draw)
            stream = 2 * number + 1
            burst += headers_frame(stream, request_headers(path, metadata))
            burst += message_frame(stream, message)
        connection.sendall(burst)
        while answers.ended < calls.stop:
            assert answers.read(), f"the server hung up after {answers.ended} calls"
    connection.close()


def names(bounds: Bounds, count: int) -> None:
    """Half of the names without tenants, where everyone is `default`, half with tokens."""
    tenants = 'tenants { name: "acme" token_sha256: "' + "ab" * 32 + '" }'
    for config in ("", tenants):
        limits = "limits { max_messages_per_second: 1000000 }"
        with running(f"{limits} {config}") as server:
            before = server.resident_bytes()
            started = time.monotonic()
            for part in range(0, count // 2, 100_000):  # a connection has 2^30 streams, ours fewer
                send_random_names(server.address, min(100_000, count // 2 - part), seed=part)
            took = time.monotonic() - started
            series = [line for line in server.metrics().splitlines() if line[:1] not in ("", "#")]
            bounds.report(
                "metric_series",
                len(series),
                5000,
                "series",
                names=count // 2,
                tenants=bool(config),
                calls_per_second=round(count / 2 / took),
                resident_growth_mb=round((server.resident_bytes() - before) / 1e6, 1),
            )


# ---- the edge --------------------------------------------------------------------------------


def _attack(kind: str, address: str, seconds: float, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "reliability.http2_attacks", kind, address, str(seconds)]
    return subprocess.Popen(
        [*command, *more], cwd=REPOSITORY / "tests", stdout=subprocess.PIPE, text=True
    )


def _probe_while(attackers: list[subprocess.Popen[str]], edge: Edge) -> list[float]:
    taken = []
    while any(attacker.poll() is None for attacker in attackers):
        took = edge.probe()
        taken.append(30.0 if took is None else took)
        time.sleep(0.1)  # the edge limits the connections of an address
    return taken


def edge_attacks(bounds: Bounds, seconds: float, attackers: int) -> None:
    with tempfile.TemporaryDirectory() as folder, running() as server:
        edge = Edge(Path(folder) / "edge", server)
        for number, kind in enumerate(ATTACKS):
            before = server.resident_bytes()
            source = f"127.0.2.{number + 1}"
            started = [
                _attack(kind, edge.address, seconds, "--tls", str(edge.ca_file), "--from", source)
                for _ in range(attackers)
            ]
            probes = _probe_while(started, edge)
            sent = [json.loads(attacker.communicate()[0]) for attacker in started]
            bounds.report(
                f"edge_{kind}",
                max(probes),
                1,
                "s, slowest health check",
                probes=len(probes),
                p50=round(statistics.median(probes), 4),
                attacker={key: sum(one[key] for one in sent) for key in sent[0]},
                quantd_growth_mb=round((server.resident_bytes() - before) / 1e6, 1),
                edge_mb=round(edge.resident_bytes() / 1e6, 1),
            )
        edge.stop()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("idle_streams", "slow_clients", "names", "edge")
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="default: all")
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--slow", type=int, default=200)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--attackers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20, help="of each latency and attack")
    given = parser.parse_args()
    bounds = Bounds()
    for part in given.parts or parts:
        if part == "idle_streams":
            idle_streams(bounds, given.streams)
        elif part == "slow_clients":
            slow_clients(bounds, given.slow, given.seconds)
        elif part == "names":
            names(bounds, given.names)
        else:
            edge_attacks(bounds, given.seconds, given.attackers)
    return 1 if bounds.exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
