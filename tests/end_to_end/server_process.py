"""A real quantd process: started, stopped, killed, and restarted on the same data directory."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from quantd.v1 import (
    calibration_pb2,
    calibration_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    quantize_pb2_grpc,
    results_pb2_grpc,
    server_pb2_grpc,
    weights_pb2_grpc,
)

REPOSITORY = Path(__file__).resolve().parents[2]
# Sanitizer builds are several times slower: every deadline of the tests is multiplied by this.
TIMEOUT_SCALE = float(os.environ.get("QUANTD_TEST_TIMEOUT_SCALE", "1"))
SANITIZED = TIMEOUT_SCALE > 1


def bin_dir() -> Path:
    """Root of the build directory that is under test."""
    return Path(os.environ.get("QUANTD_BIN_DIR", REPOSITORY / "build" / "dev")).resolve()


def seconds(value: float) -> float:
    return value * TIMEOUT_SCALE


def eventually(condition: Callable[[], Any], what: str, within: float = 10.0) -> Any:
    """Polls until `condition` holds and returns what it returned."""
    deadline = time.monotonic() + seconds(within)
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {seconds(within):g} s: {what}"
        time.sleep(0.01)


class _CallDefaults(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Gives every call a deadline, so that no test hangs, and the caller's token if it has one."""

    def __init__(self, token: str | None):
        self._metadata = [("authorization", f"Bearer {token}")] if token is not None else []

    def _intercept(self, continuation, details, request):
        metadata = list(details.metadata or []) + self._metadata
        timeout = details.timeout if details.timeout is not None else seconds(30)
        changed = details._replace(metadata=metadata, timeout=timeout)
        return continuation(changed, request)

    intercept_unary_unary = _intercept
    intercept_unary_stream = _intercept
    intercept_stream_unary = _intercept
    intercept_stream_stream = _intercept


class Api:
    """One caller's connection: every service's stub on a channel of its own."""

    def __init__(
        self,
        address: str,
        tenant: str = "default",
        token: str | None = None,
        tls: grpc.ChannelCredentials | None = None,
    ):
        self.tenant = tenant
        # A pool of its own: otherwise the channels of one test process share connections.
        options = [("grpc.use_local_subchannel_pool", 1)]
        if tls is None:
            self._transport = grpc.insecure_channel(address, options=options)
        else:
            self._transport = grpc.secure_channel(address, tls, options=options)
        self.channel = grpc.intercept_channel(self._transport, _CallDefaults(token))
        self.jobs = jobs_pb2_grpc.JobsStub(self.channel)
        self.weights = weights_pb2_grpc.WeightsStub(self.channel)
        self.calibration = calibration_pb2_grpc.CalibrationStub(self.channel)
        self.results = results_pb2_grpc.ResultsStub(self.channel)
        self.quantize = quantize_pb2_grpc.QuantizeStub(self.channel)
        self.server = server_pb2_grpc.ServerStub(self.channel)

    @property
    def parent(self) -> str:
        return f"tenants/{self.tenant}"

    def job_name(self, job_id: str) -> str:
        return f"{self.parent}/jobs/{job_id}"

    def statistic_name(self, statistic_id: str) -> str:
        return f"{self.parent}/statistics/{statistic_id}"

    def health(self, service: str = "") -> str:
        """Answer of grpc.health.v1, without generated stubs: both messages have one field."""
        name = service.encode()
        request = b"\x0a" + bytes([len(name)]) + name if name else b""
        check = self.channel.unary_unary("/grpc.health.v1.Health/Check")
        answer = check(request)
        states = {b"": "UNKNOWN", b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}
        return states[answer]

    def close(self) -> None:
        self._transport.close()


@dataclass(frozen=True)
class Stored:
    """What a server keeps for one tenant: what a refused call must leave as it was."""

    jobs: dict[str, bytes]
    statistics: dict[str, bytes]
    files: dict[str, int]
    open_files: tuple[str, ...]


@dataclass
class Server:
    """A running quantd. `arguments` are as given at start, so that `restart` can repeat them."""

    data_dir: Path
    config: str = ""
    flags: Sequence[str] = ()
    wrapper: Sequence[str] = ()  # a command that runs the server, `unshare` say
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    address: str = ""
    metrics_address: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    api: Api = None  # type: ignore[assignment]  # set by start()
    _reader: threading.Thread | None = None
    _apis: list[Api] = field(default_factory=list)

    def start(self) -> Server:
        binary = bin_dir() / "server" / "quantd"
        assert binary.exists(), f"{binary} is missing: build it or set QUANTD_BIN_DIR"
        defaults = {
            "--listen": "127.0.0.1:0",
            "--metrics_listen": "127.0.0.1:0",
            "--data_dir": str(self.data_dir),
        }
        given = {flag.split("=")[0] for flag in self.flags}
        command = [str(binary)]
        command += [f"{flag}={value}" for flag, value in defaults.items() if flag not in given]
        if self.config:
            self.config_file.write_text(self.config)
            command.append(f"--config={self.config_file}")
        command += self.flags
        if self.wrapper:
            command = [*self.wrapper, shlex.join(command)]
        self.log, self.stderr = [], []
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **self.environment},
        )
        self._reader = threading.Thread(target=self._read_log, args=(self.process,), daemon=True)
        self._reader.start()
        listening = eventually(self._listening, "the server listens", 20)
        self.address = listening["address"]
        self.metrics_address = listening["metrics_address"]
        self.api = self.connect()
        return self

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.stderr.append(line)
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                self.log.append(entry)

    def _listening(self) -> dict[str, Any] | None:
        assert self.process is not None
        for entry in list(self.log):
            if entry.get("event") == "listening":
                return entry
        if self.process.poll() is not None:
            assert self._reader is not None
            self._reader.join(seconds(5))
            raise AssertionError(
                f"quantd ended with {self.process.returncode} before it listened:\n"
                + "".join(self.stderr[-40:])
            )
        return None

    @property
    def config_file(self) -> Path:
        return self.data_dir.parent / f"{self.data_dir.name}.textproto"

    def reload(self, config: str) -> dict[str, Any]:
        """Has the server read another configuration; returns what it logged about that."""
        assert self.process is not None
        self.config = config
        self.config_file.write_text(config)
        before = len(self._reloads())
        self.process.send_signal(signal.SIGHUP)
        return eventually(lambda: self._reloads()[before:], "the configuration is read again")[0]

    def _reloads(self) -> list[dict[str, Any]]:
        return [e for e in list(self.log) if e.get("event") in ("reloaded", "reload_refused")]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def connect(
        self,
        tenant: str = "default",
        token: str | None = None,
        tls: grpc.ChannelCredentials | None = None,
    ) -> Api:
        api = Api(self.address, tenant, token, tls)
        self._apis.append(api)
        return api

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Ends the process with nothing said and nothing flushed (kill -9)."""
        assert self.process is not None
        self.process.kill()
        self._finish()

    def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def wait(self, within: float = 30.0) -> int:
        assert self.process is not None
        code = self.process.wait(seconds(within))
        self._finish()
        return code

    def _finish(self) -> None:
        assert self.process is not None
        for api in self._apis:
            api.close()
        self._apis.clear()
        self.process.wait(seconds(30))
        if self._reader is not None:
            self._reader.join(seconds(5))

    def restart(self) -> Server:
        """Starts again on the same data, with the same arguments."""
        assert not self.running()
        return self.start()

    def stop(self) -> None:
        """End of a test: the process must still be there and must end in an orderly way."""
        if self.process is None:
            return
        crashed = self.process.poll()
        if crashed is None:
            self.terminate()
            try:
                crashed = self.process.wait(seconds(30))
            except subprocess.TimeoutExpired:
                self.process.kill()
                self._finish()
                raise AssertionError("quantd did not end within its grace period") from None
        self._finish()
        # A sanitizer's finding ends the process with another status than 0, too.
        assert crashed in (0, -signal.SIGKILL), f"quantd ended with {crashed}:\n" + "".join(
            self.stderr[-60:]
        )

    def metrics(self) -> str:
        url = f"http://{self.metrics_address}/metrics"
        with urllib.request.urlopen(url, timeout=seconds(10)) as answer:
            return answer.read().decode()

    def probe(self, path: str) -> tuple[int, str]:
        """Status and text of an answer of the metrics port."""
        url = f"http://{self.metrics_address}{path}"
        try:
            with urllib.request.urlopen(url, timeout=seconds(10)) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def blob_files(self) -> dict[str, int]:
        """Files below the data directory and their sizes, without the database's own."""
        sizes = {}
        for path in self.data_dir.rglob("*"):
            if path.is_file() and not _is_database(path.name):
                try:
                    sizes[str(path.relative_to(self.data_dir))] = path.stat().st_size
                except FileNotFoundError:  # removed since it was listed
                    continue
        return sizes

    def open_blob_files(self) -> tuple[str, ...]:
        """Files below the data directory that the process holds open, without the database's."""
        paths = []
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                path = os.readlink(descriptor)
            except FileNotFoundError:
                continue
            name = path.removesuffix(" (deleted)")
            if path.startswith(f"{self.data_dir}/") and not _is_database(Path(name).name):
                paths.append(path)
        return tuple(sorted(paths))

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def stored(self, api: Api | None = None) -> Stored:
        api = api or self.api
        jobs, statistics = {}, {}
        for listed in api.jobs.ListJobs(
            jobs_pb2.ListJobsRequest(parent=api.parent, page_size=1000)
        ).jobs:
            job = api.jobs.GetJob(jobs_pb2.GetJobRequest(name=listed.name))
            jobs[job.name] = job.SerializeToString(deterministic=True)
        for statistic in api.calibration.ListStatistics(
            calibration_pb2.ListStatisticsRequest(parent=api.parent, page_size=1000)
        ).statistics:
            statistics[statistic.name] = statistic.SerializeToString(deterministic=True)
        return Stored(jobs, statistics, self.blob_files(), self.open_blob_files())


def _is_database(name: str) -> bool:
    return any(part in name for part in (".db", ".sqlite")) or name in ("lock", "LOCK")
