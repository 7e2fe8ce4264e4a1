"""The protocol from a client's side, spelled out with the bare stubs: bytes, chunks, streams.

Deliberately not the Python client: these tests must be able to do everything wrong.
"""

from __future__ import annotations

import hashlib
import json
import queue
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import google_crc32c
import grpc
import numpy as np
from google.protobuf import empty_pb2
from quantd.v1 import (
    calibration_pb2,
    jobs_pb2,
    quantize_pb2,
    recipe_pb2,
    results_pb2,
    server_pb2,
    weights_pb2,
)
from safetensors import deserialize

from .server_process import Api, eventually, seconds

F64, F32, F16, BF16 = recipe_pb2.F64, recipe_pb2.F32, recipe_pb2.F16, recipe_pb2.BF16
ITEM_BYTES = {F64: 8, F32: 4, F16: 2, BF16: 2}
TERMINAL = (jobs_pb2.SUCCEEDED, jobs_pb2.FAILED, jobs_pb2.CANCELLED)


def crc32c(data: bytes) -> int:
    return int(google_crc32c.value(data))


def to_bf16_bits(values: np.ndarray) -> np.ndarray:
    """Upper halves of binary32, rounded to nearest, ties to even. NaN stays NaN."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bf16_bits(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encode(values: np.ndarray, dtype: int) -> bytes:
    if dtype == BF16:
        return to_bf16_bits(values).astype("<u2").tobytes()
    numpy_dtype = {F64: "<f8", F32: "<f4", F16: "<f2"}[dtype]
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values).astype(numpy_dtype).tobytes()


def rounded_to(values: np.ndarray, dtype: int) -> np.ndarray:
    """The values that arrive at the server, as float64."""
    if dtype == BF16:
        return from_bf16_bits(to_bf16_bits(values)).astype(np.float64)
    numpy_dtype = {F64: "<f8", F32: "<f4", F16: "<f2"}[dtype]
    return np.asarray(values).astype(numpy_dtype).astype(np.float64)


def gaussian(rows: int, cols: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, cols))


def activations_like(rows: int, cols: int, seed: int) -> np.ndarray:
    """Correlated columns with a few outlier channels, as a transformer's inputs have."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((cols, cols)) / np.sqrt(cols)
    scale = np.exp(0.5 * rng.standard_normal(cols))
    scale[rng.choice(cols, max(1, cols // 32), replace=False)] *= 12
    return (rng.standard_normal((rows, cols)) @ mixing + 0.1) * scale


# Jobs and weights -------------------------------------------------------------------------------


def layer(layer_id: str, rows: int, cols: int, dtype: int = F32, **more: Any) -> jobs_pb2.Layer:
    return jobs_pb2.Layer(layer_id=layer_id, rows=rows, cols=cols, dtype=dtype, **more)


def create_job(
    api: Api,
    layers: Iterable[jobs_pb2.Layer],
    recipe: recipe_pb2.Recipe | None = None,
    **more: Any,
) -> jobs_pb2.Job:
    """`more` are fields of CreateJobRequest."""
    recipe = recipe or recipe_pb2.Recipe(format=recipe_pb2.MXFP4)
    request = jobs_pb2.CreateJobRequest(
        parent=api.parent, job=jobs_pb2.Job(recipe=recipe, layers=list(layers)), **more
    )
    return api.jobs.CreateJob(request).job


def get_job(api: Api, name: str) -> jobs_pb2.Job:
    return api.jobs.GetJob(jobs_pb2.GetJobRequest(name=name))


def delete_job(api: Api, name: str) -> None:
    api.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(name=name))


def upload_header(name: str, rows: int, cols: int, dtype: int) -> weights_pb2.UploadWeightsRequest:
    return weights_pb2.UploadWeightsRequest(
        header=weights_pb2.UploadHeader(layer=name, rows=rows, cols=cols, dtype=dtype)
    )


def upload_chunk(offset: int, data: bytes, crc: int | None = None):
    crc = crc32c(data) if crc is None else crc
    return weights_pb2.UploadWeightsRequest(
        chunk=weights_pb2.UploadChunk(offset=offset, data=data, crc32c=crc)
    )


def upload_finish(data: bytes) -> weights_pb2.UploadWeightsRequest:
    return weights_pb2.UploadWeightsRequest(
        finish=weights_pb2.UploadFinish(sha256=hashlib.sha256(data).digest())
    )


def upload_requests(
    name: str,
    values: np.ndarray,
    dtype: int = F32,
    chunk_bytes: int = 256 << 10,
    start: int = 0,
) -> Iterator[weights_pb2.UploadWeightsRequest]:
    data = encode(values, dtype)
    yield upload_header(name, *values.shape, dtype)
    for offset in range(start, len(data), chunk_bytes):
        yield upload_chunk(offset, data[offset : offset + chunk_bytes])
    yield upload_finish(data)


def upload(api: Api, name: str, values: np.ndarray, dtype: int = F32, **more: Any):
    """Uploads one matrix to a layer and returns the server's status."""
    requests = upload_requests(name, values, dtype, **more)
    return api.weights.UploadWeights(requests).status


def upload_status(api: Api, name: str) -> weights_pb2.UploadStatus:
    return api.weights.GetUploadStatus(weights_pb2.GetUploadStatusRequest(layer=name))


class Sender:
    """The sending side of a stream, fed message by message."""

    def __init__(self, *first: Any):
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.send(*first)

    def send(self, *messages: Any) -> None:
        for message in messages:
            self._queue.put(message)

    def close(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._queue.get, None)


class OpenUpload:
    """An upload whose stream stays open until `finish`, `result` or `cancel`."""

    def __init__(self, api: Api, name: str, rows: int, cols: int, dtype: int = F32):
        self._api, self._name = api, name
        self._sender = Sender(upload_header(name, rows, cols, dtype))
        self._call = api.weights.UploadWeights.future(iter(self._sender))

    def send(self, *messages: weights_pb2.UploadWeightsRequest) -> None:
        self._sender.send(*messages)

    def result(self) -> weights_pb2.UploadStatus:
        self._sender.close()
        return self._call.result().status

    def error(self) -> None:
        """Raises what the server ended the call with, while the sending side stays open."""
        try:
            self._call.result()
        finally:
            self._sender.close()

    def ended(self) -> bool:
        return bool(self._call.done())

    def cancel(self) -> None:
        self._call.cancel()
        self._sender.close()

    def wait_committed(self, size: int) -> None:
        eventually(
            lambda: upload_status(self._api, self._name).committed_size >= size,
            f"{size} bytes of {self._name} are committed",
        )


# Calibration ------------------------------------------------------------------------------------


def activation_header(
    statistic: str, cols: int, stream_id: str = "a", dtype: int = F32, **more: Any
) -> calibration_pb2.ActivationHeader:
    return calibration_pb2.ActivationHeader(
        statistic=statistic, stream_id=stream_id, dtype=dtype, cols=cols, **more
    )


def activation_chunk(
    seq: int, values: np.ndarray, dtype: int = F32, **more: Any
) -> calibration_pb2.ActivationChunk:
    """`more` overrides fields, to send what does not fit."""
    data = more.pop("data", encode(values, dtype))
    fields: dict[str, Any] = {
        "seq": seq,
        "rows": values.shape[0],
        "data": data,
        "crc32c": crc32c(data),
    }
    fields.update(more)
    return calibration_pb2.ActivationChunk(**fields)


class ActivationStream:
    """StreamActivations, message by message. Opens with its header and reads the first answer."""

    def __init__(self, api: Api, header: calibration_pb2.ActivationHeader):
        self._sender = Sender(calibration_pb2.StreamActivationsRequest(header=header))
        self._call = api.calibration.StreamActivations(iter(self._sender))
        try:
            self.opened = next(self._call)
        except grpc.RpcError:
            self._sender.close()
            raise
        self.last = self.opened

    def send(self, *chunks: calibration_pb2.ActivationChunk) -> None:
        for chunk in chunks:
            self._sender.send(calibration_pb2.StreamActivationsRequest(chunk=chunk))

    def send_raw(self, *messages: calibration_pb2.StreamActivationsRequest) -> None:
        self._sender.send(*messages)

    def read(self) -> calibration_pb2.StreamActivationsResponse:
        try:
            self.last = next(self._call)
        except grpc.RpcError:
            self._sender.close()
            raise
        return self.last

    def flush(self) -> None:
        self._sender.send(calibration_pb2.StreamActivationsRequest(flush=empty_pb2.Empty()))

    def wait_received(self, seq: int) -> None:
        while self.last.received_seq < seq:
            self.read()

    def wait_durable(self, seq: int) -> None:
        while self.last.durable_seq < seq:
            self.read()

    def error(self) -> None:
        """Reads until the server ends the call; raises its error."""
        try:
            for response in self._call:
                self.last = response
        finally:
            self._sender.close()

    def finish(self) -> calibration_pb2.StreamActivationsResponse:
        """Closes the sending side; the last answer says that everything is durable."""
        self._sender.close()
        for response in self._call:
            self.last = response
        return self.last

    def cancel(self) -> None:
        self._call.cancel()
        self._sender.close()


def stream_activations(
    api: Api,
    statistic: str,
    values: np.ndarray,
    dtype: int = F32,
    stream_id: str = "a",
    chunk_rows: int = 64,
    weights: np.ndarray | None = None,
    paired: np.ndarray | None = None,
    **more: Any,
) -> calibration_pb2.StreamActivationsResponse:
    """Streams a whole tokens x cols matrix with what belongs to its rows; `more` are fields of the
    header."""
    if paired is not None:
        more["paired_cols"] = paired.shape[1]
    header = activation_header(statistic, values.shape[1], stream_id, dtype, **more)
    stream = ActivationStream(api, header)
    for seq, first in enumerate(range(0, values.shape[0], chunk_rows), 1):
        if seq > stream.opened.durable_seq:
            part = slice(first, first + chunk_rows)
            beside = beside_chunk(
                None if weights is None else weights[part],
                None if paired is None else paired[part],
                dtype,
            )
            stream.send(activation_chunk(seq, values[part], dtype, **beside))
    return stream.finish()


def beside_chunk(
    weights: np.ndarray | None, paired: np.ndarray | None, dtype: int = F32
) -> dict[str, Any]:
    """The fields of a chunk that hold weights or paired rows."""
    fields: dict[str, Any] = {}
    if weights is not None:
        fields["token_weights"] = weights.tolist()
    if paired is not None:
        data = encode(paired, dtype)
        fields |= {"paired_data": data, "paired_crc32c": crc32c(data)}
    return fields


def seal(api: Api, statistic: str) -> calibration_pb2.Statistic:
    return api.calibration.SealStatistic(calibration_pb2.SealStatisticRequest(name=statistic))


def get_statistic(api: Api, statistic: str) -> calibration_pb2.Statistic:
    return api.calibration.GetStatistic(calibration_pb2.GetStatisticRequest(name=statistic))


def delete_statistic(api: Api, statistic: str) -> None:
    api.calibration.DeleteStatistic(calibration_pb2.DeleteStatisticRequest(name=statistic))


def sealed_statistic(
    api: Api, statistic_id: str, values: np.ndarray, dtype: int = F32, **more: Any
) -> calibration_pb2.Statistic:
    name = api.statistic_name(statistic_id)
    stream_activations(api, name, values, dtype, **more)
    return seal(api, name)


@dataclass(frozen=True)
class ExportedStatistic:
    header: calibration_pb2.StatisticHeader
    data: bytes

    def matrix(self) -> np.ndarray:
        """C x C, R x C or C/B x B x B; the sum or the mean, as the header says."""
        count, shape = self._layout()
        dtype = {F64: "<f8", F32: "<f4"}[self.header.dtype]
        return np.frombuffer(self.data, dtype, count).reshape(shape).astype(np.float64)

    def sample(self) -> np.ndarray:
        count, _ = self._layout()
        offset = count * ITEM_BYTES[self.header.dtype]
        values = np.frombuffer(self.data, "<f4", offset=offset)
        return values.reshape(self.header.sample_rows, self.header.cols).astype(np.float64)

    def _layout(self) -> tuple[int, tuple[int, ...]]:
        cols, block = self.header.cols, self.header.block_size
        if self.header.layout == calibration_pb2.BLOCK_DIAGONAL:
            return cols * block, (cols // block, block, block)
        rows = self.header.paired_cols or cols
        return rows * cols, (rows, cols)


def export_statistic(api: Api, statistic: str) -> ExportedStatistic:
    """Downloads a statistic; checks offsets, CRCs and the digest on the way."""
    header, data, finish = None, bytearray(), None
    for message in api.calibration.ExportStatistic(
        calibration_pb2.ExportStatisticRequest(name=statistic)
    ):
        kind = message.WhichOneof("message")
        if kind == "header":
            assert header is None and not data
            header = message.header
        elif kind == "chunk":
            assert header is not None and finish is None
            assert message.chunk.offset == len(data)
            assert message.chunk.crc32c == crc32c(message.chunk.data)
            data += message.chunk.data
        else:
            finish = message.finish
    assert header is not None and finish is not None
    assert finish.sha256 == hashlib.sha256(data).digest()
    return ExportedStatistic(header, bytes(data))


def import_requests(
    header: calibration_pb2.StatisticHeader, data: bytes, chunk_bytes: int = 256 << 10
) -> Iterator[calibration_pb2.ImportStatisticRequest]:
    message = calibration_pb2.ImportStatisticRequest
    yield message(header=header)
    for offset in range(0, len(data), chunk_bytes):
        part = data[offset : offset + chunk_bytes]
        yield message(
            chunk=calibration_pb2.StatisticChunk(offset=offset, data=part, crc32c=crc32c(part))
        )
    yield message(finish=calibration_pb2.StatisticFinish(sha256=hashlib.sha256(data).digest()))


# Results ----------------------------------------------------------------------------------------


def watch(api: Api, name: str) -> Iterator[jobs_pb2.WatchJobResponse]:
    return api.jobs.WatchJob(jobs_pb2.WatchJobRequest(name=name))


def wait_for_job(api: Api, name: str, within: float = 30.0) -> jobs_pb2.Job:
    """Watches until the job has ended."""
    deadline = time.monotonic() + seconds(within)
    job = None
    for response in api.jobs.WatchJob(jobs_pb2.WatchJobRequest(name=name), timeout=seconds(within)):
        job = response.job
        assert time.monotonic() < deadline
    assert job is not None and job.state in TERMINAL, job
    return job


def wait_for_state(api: Api, name: str, *states: int, within: float = 20.0) -> jobs_pb2.Job:
    def reached() -> jobs_pb2.Job | None:
        job = get_job(api, name)
        return job if job.state in states else None

    names = [jobs_pb2.JobState.Name(state) for state in states]
    return eventually(reached, f"{name} is {' or '.join(names)}", within)


def list_artifacts(api: Api, job: str) -> dict[str, results_pb2.Artifact]:
    response = api.results.ListArtifacts(
        results_pb2.ListArtifactsRequest(parent=job, page_size=1000)
    )
    return {artifact.name.rsplit("/", 1)[-1]: artifact for artifact in response.artifacts}


def read_artifact(api: Api, name: str, offset: int = 0, limit: int = 0) -> bytes:
    data = bytearray()
    digest, size = b"", 0
    for number, message in enumerate(
        api.results.ReadArtifact(
            results_pb2.ReadArtifactRequest(name=name, read_offset=offset, read_limit=limit)
        )
    ):
        assert message.offset == offset + len(data)
        assert message.crc32c == crc32c(message.data)
        if number == 0:
            digest, size = message.sha256, message.size_bytes
        data += message.data
    if offset == 0 and len(data) == size:
        assert hashlib.sha256(data).digest() == digest
    return bytes(data)


@dataclass(frozen=True)
class StoredTensor:
    dtype: str  # safetensors name
    shape: tuple[int, ...]
    data: bytes


def read_safetensors(data: bytes) -> dict[str, StoredTensor]:
    """Parsed by the safetensors package, which is not ours; names without the layer's prefix."""
    tensors = {}
    for name, tensor in deserialize(data):
        tensors[name.rsplit(".", 1)[-1]] = StoredTensor(
            tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"])
        )
    return tensors


def safetensors_metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__", {})


def result_tensors(api: Api, job: str, layer_id: str) -> dict[str, StoredTensor]:
    return read_safetensors(read_artifact(api, f"{job}/artifacts/{layer_id}.safetensors"))


def error_report(api: Api, job: str, layer_id: str) -> dict[str, Any]:
    report = api.results.GetErrorReport(
        results_pb2.GetErrorReportRequest(layer=f"{job}/layers/{layer_id}")
    )
    return json.loads(report.report_json)


# QuantizeTensor ---------------------------------------------------------------------------------


def limits(api: Api) -> server_pb2.Limits:
    return api.server.GetServerInfo(server_pb2.GetServerInfoRequest()).limits


def inline(values: np.ndarray, dtype: int = F32) -> quantize_pb2.InlineTensor:
    return quantize_pb2.InlineTensor(
        dtype=dtype, shape=list(values.shape), data=encode(values, dtype)
    )


def works(api: Api) -> None:
    """The server answers, and correctly: values on the format's grid come back unchanged."""
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6] * 4, np.float32).reshape(1, 32)
    response = api.quantize.QuantizeTensor(
        quantize_pb2.QuantizeTensorRequest(
            recipe=recipe_pb2.Recipe(format=recipe_pb2.MXFP4, scale_rule=recipe_pb2.OCP),
            weight=inline(grid),
            return_dequantized=True,
        )
    )
    dequantized = decode_inline(response.dequantized)
    np.testing.assert_array_equal(dequantized, grid)


def decode_inline(tensor: quantize_pb2.InlineTensor) -> np.ndarray:
    shape = tuple(tensor.shape)
    if tensor.values:
        return np.array(tensor.values).reshape(shape)
    if tensor.dtype == BF16:
        return from_bf16_bits(np.frombuffer(tensor.data, "<u2")).astype(np.float64).reshape(shape)
    dtype = {F64: "<f8", F32: "<f4", F16: "<f2"}[tensor.dtype]
    return np.frombuffer(tensor.data, dtype).astype(np.float64).reshape(shape)
