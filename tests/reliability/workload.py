"""What the loops let a server do: weights up, activations streamed, layers quantized, results down.

The work is small, so that a server can be killed in the middle of it several times a second, and
its result is known to the bit: from one run that nothing disturbs.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import numpy as np
import quantd
import quantd.weights
from end_to_end.wire import upload_chunk, upload_header
from quantd.errors import Error
from quantd.v1 import weights_pb2, weights_pb2_grpc

ROWS, COLS, CHUNK_TOKENS, CHUNKS, STREAMS = 16, 64, 24, 8, 2
LAYERS = ("calibrated", "plain")
#: Every stream and upload becomes durable in many small steps, and sums take turns on the device.
CONFIG = """
durability { commit_bytes: 4096 commit_interval_ms: 5 }
limits { moment_cache_bytes: 1 open_sum_bytes: 1 }
cpu_threads: 1
drain_seconds: 1
"""

_random = np.random.default_rng(17)
WEIGHTS = {layer: _random.standard_normal((ROWS, COLS)).astype(np.float32) for layer in LAYERS}
ACTIVATIONS = _random.standard_normal((STREAMS, CHUNKS, CHUNK_TOKENS, COLS)).astype(np.float32)
TOKENS = STREAMS * CHUNKS * CHUNK_TOKENS


@dataclass
class Outcome:
    """What a story ends with: equal for all of them."""

    tokens: int
    statistic: str  # digest of what went in
    moment: str  # SHA-256 of the sum
    results: dict[str, str]  # SHA-256 by layer


@dataclass
class Promises:
    """What the server has acknowledged as durable. Only grows, until it is given up on purpose."""

    uploads: dict[str, int] = field(default_factory=dict)
    chunks: dict[str, int] = field(default_factory=dict)  # durable_seq by stream
    sealed: bool = False
    finished_layers: int = 0

    def copy(self) -> Promises:
        return Promises(dict(self.uploads), dict(self.chunks), self.sealed, self.finished_layers)


class Story:
    """One job from the first byte to its results. Runs in a thread of its own, through kills.

    tolerates: errors after which a step is simply done again, as a patient user would; what the
    client library repeats by itself never comes here.
    """

    def __init__(
        self,
        address: str,
        name: str,
        *,
        tolerates: Callable[[Error], bool] = lambda error: False,
        pace_s: float = 0.0,
        keep: bool = False,
    ) -> None:
        self.name = name
        self.outcome: Outcome | None = None
        self.gave_up = False  # what it made is being deleted
        self.failure: BaseException | None = None
        self._address = address
        self._tolerates = tolerates
        self._pace_s = pace_s
        self._keep = keep
        self._lock = threading.Lock()
        self._promises = Promises()
        self._streams: dict[str, quantd.ActivationStream] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def job(self) -> str:
        return f"tenants/default/jobs/{self.name}"

    @property
    def statistic(self) -> str:
        return f"tenants/default/statistics/{self.name}"

    @property
    def copy(self) -> str:
        """A statistic that is imported from an export of the other."""
        return f"{self.name}-copy"

    @property
    def alone(self) -> str:
        """A statistic of one stream, whose sum its seal takes over as it is."""
        return f"{self.name}-alone"

    def start(self) -> Story:
        self._thread.start()
        return self

    def start_once(self) -> None:
        if self._thread.ident is None:
            self.start()

    def join(self, within_s: float) -> bool:
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def promises(self) -> Promises:
        """What has been acknowledged up to this moment."""
        with self._lock:
            for stream_id, stream in self._streams.items():
                known = self._promises.chunks.get(stream_id, 0)
                self._promises.chunks[stream_id] = max(known, stream.durable_seq)
            return self._promises.copy()

    def where(self) -> str:
        """What it waits for: its stack."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else "ended"

    def _run(self) -> None:
        try:
            with quantd.connect(self._address, progress=False, retry_timeout_s=300) as client:
                self.outcome = self._tell(client)
        except BaseException as error:
            self.failure = error

    def _step(self, action: Callable[[], None]) -> None:
        deadline = time.monotonic() + 60
        while True:
            time.sleep(self._pace_s)
            try:
                return action()
            except quantd.JobFailed:
                raise
            except Error as error:
                if not self._tolerates(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _tell(self, client: quantd.Client) -> Outcome:
        while True:
            self._step(lambda: self._create(client))
            for layer in LAYERS:
                self._step(lambda layer=layer: self._upload_half(client, layer))
            if not self._promises.sealed:
                for number in range(STREAMS):
                    self._step(lambda number=number: self._stream(client, number))
            for layer in LAYERS:
                self._step(lambda layer=layer: self._upload(client, layer))
            self._step(lambda: self._seal(client))
            try:
                self._step(lambda: self._wait(client))
                break
            except quantd.JobFailed as failed:  # no room for its results: once more
                if not all(map(self._tolerates, failed.layer_errors.values())):
                    raise
            with self._lock:
                self._promises.uploads.clear()
            self._step(lambda: client.delete_job(self.name))
        outcome: list[Outcome] = []
        self._step(lambda: outcome.append(self._look(client)))
        self._step(lambda: self._import(client))
        self._step(lambda: self._stream_alone(client))
        if not self._keep:
            self.gave_up = True
            self._step(lambda: client.delete_job(self.name))
            self._step(lambda: client.delete_statistic(self.name))
            for statistic in (self.copy, self.alone):
                self._step(lambda statistic=statistic: client.delete_statistic(statistic))
        return outcome[-1]

    def _create(self, client: quantd.Client) -> None:
        client.create_job(
            quantd.Recipe("mxfp4", "hadamard"),
            [
                quantd.LayerSpec("calibrated", ROWS, COLS, statistic=self.name),
                quantd.LayerSpec("plain", ROWS, COLS),
            ],
            job_id=self.name,
            request_id=self.name,
        )

    def _upload_half(self, client: quantd.Client, layer: str) -> None:
        """A part of the matrix, after which the upload ends; its bytes are durable then."""
        data = WEIGHTS[layer].tobytes()
        name = f"{self.job}/layers/{layer}"
        transport = client._transport
        stub = weights_pb2_grpc.WeightsStub(transport.channel)
        status = transport.call(
            stub.GetUploadStatus, weights_pb2.GetUploadStatusRequest(layer=name)
        )
        start, end = status.committed_size, len(data) // 2
        if start < end:
            requests = [upload_header(name, ROWS, COLS, 1)] + [
                upload_chunk(at, data[at : min(at + 512, end)]) for at in range(start, end, 512)
            ]
            requests[0].header.dtype = quantd.dtypes.to_proto("f32")
            try:
                start = stub.UploadWeights(iter(requests)).status.committed_size
            except grpc.RpcError as error:
                # Nobody repeats this one; the rest is sent by the client, which goes on from here.
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    return
                raise quantd.errors.from_rpc_error(error) from None
        with self._lock:
            self._promises.uploads[layer] = start

    def _upload(self, client: quantd.Client, layer: str) -> None:
        client.upload_weights(self.name, layer, WEIGHTS[layer])
        with self._lock:
            self._promises.uploads[layer] = WEIGHTS[layer].nbytes

    def _stream(self, client: quantd.Client, number: int) -> None:
        stream_id = f"writer-{number}"
        with client.open_activation_stream(
            self.name, COLS, dtype="f32", stream_id=stream_id
        ) as stream:
            with self._lock:
                self._streams[stream_id] = stream
            for chunk in ACTIVATIONS[number]:
                time.sleep(self._pace_s)
                stream.send(chunk)

    def _stream_alone(self, client: quantd.Client) -> None:
        # Whole slices: nothing is left to be folded.
        tokens = np.concatenate(ACTIVATIONS[0])[:128].repeat(8, axis=0)
        try:
            with client.open_activation_stream(
                self.alone, COLS, dtype="f32", stream_id="w"
            ) as stream:
                for chunk in np.array_split(tokens, 4):
                    stream.send(chunk)
        except quantd.FailedPrecondition:  # it was sealed by a call that failed afterwards
            assert client.get_statistic(self.alone).sealed
        assert client.seal_statistic(self.alone).tokens == len(tokens)

    def _seal(self, client: quantd.Client) -> None:
        assert client.seal_statistic(self.name).tokens == TOKENS
        with self._lock:
            self._promises.sealed = True

    def _wait(self, client: quantd.Client) -> None:
        client.wait(self.name, timeout_s=60)
        with self._lock:
            self._promises.finished_layers = len(LAYERS)

    def _import(self, client: quantd.Client) -> None:
        moment = client.export_statistic(self.name)
        try:
            client.import_statistic(self.copy, moment)
        except (quantd.AlreadyExists, quantd.FailedPrecondition):
            # An import that a failed sync left unacknowledged may have taken place.
            if not client.get_statistic(self.copy).sealed:
                raise
        assert client.get_statistic(self.copy).tokens == TOKENS

    def _look(self, client: quantd.Client) -> Outcome:
        statistic = client.get_statistic(self.name)
        return Outcome(
            tokens=statistic.tokens,
            statistic=statistic.digest,
            moment=hashlib.sha256(
                np.ascontiguousarray(client.export_statistic(self.name).mean()).tobytes()
            ).hexdigest(),
            results={
                layer: hashlib.sha256(client.fetch_file(self.name, layer)).hexdigest()
                for layer in LAYERS
            },
        )


def broken_promises(address: str, story: Story, promises: Promises) -> list[str]:
    """What the server acknowledged before and does not have now."""
    broken = []
    with quantd.connect(address, progress=False, retry_timeout_s=30) as client:
        stub = weights_pb2_grpc.WeightsStub(client._transport.channel)
        for layer, committed in promises.uploads.items():
            request = weights_pb2.GetUploadStatusRequest(layer=f"{story.job}/layers/{layer}")
            status = client._transport.call(stub.GetUploadStatus, request)
            if status.committed_size < committed:
                broken.append(f"upload of {layer}: {committed} acknowledged, {status} is there")
        wanted = sum(promises.chunks.values()) * CHUNK_TOKENS
        if wanted or promises.sealed:
            statistic = client.get_statistic(story.name)
            if statistic.tokens < wanted or (promises.sealed and statistic.tokens != TOKENS):
                broken.append(f"statistic: {promises} acknowledged, {statistic} is there")
        if promises.finished_layers:
            job = client.get_job(story.name)
            if job.finished_layers < promises.finished_layers:
                broken.append(f"job: {promises.finished_layers} layers were done, now {job}")
    return broken
