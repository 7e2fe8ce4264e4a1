"""A server in this process that keeps what it gets, and fails where a test tells it to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent import futures
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import grpc
import numpy as np
from google.protobuf import empty_pb2

from quantd.v1 import (
    calibration_pb2,
    calibration_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    recipe_pb2,
    results_pb2,
    results_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    weights_pb2,
    weights_pb2_grpc,
)

Context = Any


@dataclass
class FakeServer(
    calibration_pb2_grpc.CalibrationServicer,
    jobs_pb2_grpc.JobsServicer,
    results_pb2_grpc.ResultsServicer,
    server_pb2_grpc.ServerServicer,
    weights_pb2_grpc.WeightsServicer,
):
    """Fault plans are lists, one entry a call; a call beyond the list goes well."""

    # Activations: lose the connection after so many chunks of a call.
    drop_stream_after: list[int] = field(default_factory=list)
    # ... having made so many of the received chunks durable.
    durable_lag: int = 1
    credit_bytes: int = 1 << 20
    # Uploads: lose the connection after so many chunks of a call.
    drop_upload_after: list[int] = field(default_factory=list)
    # Downloads: lose the connection after so many messages of a call.
    drop_download_after: list[int] = field(default_factory=list)
    # GetServerInfo: fail so often, and how.
    unavailable: int = 0
    unavailable_code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    # Deletions, merges and imports: take place, but their answer is lost, so often.
    lost_answers: int = 0
    # ExportStatistic: lose the connection after the header, so often.
    lost_exports: int = 0
    statistics: dict[str, calibration_pb2.Statistic] = field(default_factory=dict)

    artifact: bytes = b""
    jobs: list[jobs_pb2.Job] = field(default_factory=list)
    created: list[jobs_pb2.CreateJobRequest] = field(default_factory=list)
    headers: list[calibration_pb2.ActivationHeader] = field(default_factory=list)
    device_memory: dict[bytes, Any] = field(default_factory=dict)  # by CUDA IPC handle
    chunks: dict[int, bytes] = field(default_factory=dict)  # durable, by seq
    messages: dict[int, calibration_pb2.ActivationChunk] = field(default_factory=dict)  # the same
    repeats: int = 0  # chunks that came again after they were durable
    weight: bytearray = field(default_factory=bytearray)
    weight_complete: bool = False
    upload_calls: int = 0
    metadata: list[tuple[str, str]] = field(default_factory=list)

    def start(self) -> str:
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        calibration_pb2_grpc.add_CalibrationServicer_to_server(self, self._server)
        jobs_pb2_grpc.add_JobsServicer_to_server(self, self._server)
        results_pb2_grpc.add_ResultsServicer_to_server(self, self._server)
        server_pb2_grpc.add_ServerServicer_to_server(self, self._server)
        weights_pb2_grpc.add_WeightsServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return f"127.0.0.1:{port}"

    def stop(self) -> None:
        self._server.stop(None).wait()

    def GetServerInfo(self, request: Any, context: Context) -> server_pb2.ServerInfo:
        self.metadata = list(context.invocation_metadata())
        if self.unavailable > 0:
            self.unavailable -= 1
            context.abort(self.unavailable_code, "starting")
        return server_pb2.ServerInfo(version="test", tenant="lab")

    def CreateJob(
        self, request: jobs_pb2.CreateJobRequest, context: Context
    ) -> jobs_pb2.CreateJobResponse:
        self.created.append(request)
        request.job.name = f"{request.parent}/jobs/{request.job_id or 'chosen'}"
        return jobs_pb2.CreateJobResponse(
            job=request.job, estimate=jobs_pb2.JobEstimate(peak_bytes=7)
        )

    def _lose_answer(self, context: Context) -> None:
        if self.lost_answers > 0:
            self.lost_answers -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")

    def _store(
        self, statistic: calibration_pb2.Statistic, context: Context
    ) -> calibration_pb2.Statistic:
        if statistic.name in self.statistics:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, statistic.name)
        self.statistics[statistic.name] = statistic
        self._lose_answer(context)
        return statistic

    def DeleteStatistic(self, request: Any, context: Context) -> empty_pb2.Empty:
        if self.statistics.pop(request.name, None) is None:
            context.abort(grpc.StatusCode.NOT_FOUND, request.name)
        self._lose_answer(context)
        return empty_pb2.Empty()

    def GetStatistic(self, request: Any, context: Context) -> calibration_pb2.Statistic:
        return self.statistics[request.name]

    def MergeStatistics(self, request: Any, context: Context) -> calibration_pb2.Statistic:
        name = f"{request.parent}/statistics/{request.statistic_id}"
        return self._store(calibration_pb2.Statistic(name=name, tokens=5), context)

    def ImportStatistic(
        self, requests: Iterator[calibration_pb2.ImportStatisticRequest], context: Context
    ) -> calibration_pb2.Statistic:
        header = next(requests).header
        data = b"".join(request.chunk.data for request in requests)
        assert len(data) == header.cols**2 * 8
        return self._store(
            calibration_pb2.Statistic(
                name=header.statistic,
                cols=header.cols,
                tokens=header.tokens,
                state=calibration_pb2.SEALED,
            ),
            context,
        )

    def ExportStatistic(
        self, request: Any, context: Context
    ) -> Iterator[calibration_pb2.ExportStatisticResponse]:
        data = np.eye(2).tobytes()
        header = calibration_pb2.StatisticHeader(
            statistic=request.name, cols=2, dtype=recipe_pb2.F64, tokens=3
        )
        yield calibration_pb2.ExportStatisticResponse(header=header)
        if self.lost_exports > 0:
            self.lost_exports -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
        chunk = calibration_pb2.StatisticChunk(data=data, crc32c=google_crc32c.value(data))
        yield calibration_pb2.ExportStatisticResponse(chunk=chunk)
        finish = calibration_pb2.StatisticFinish(sha256=hashlib.sha256(data).digest())
        yield calibration_pb2.ExportStatisticResponse(finish=finish)

    def WatchJob(self, request: Any, context: Context) -> Iterator[jobs_pb2.WatchJobResponse]:
        while self.jobs:
            job = self.jobs.pop(0)
            if job.name == "drop":
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            yield jobs_pb2.WatchJobResponse(job=job)
            if job.state in (jobs_pb2.SUCCEEDED, jobs_pb2.FAILED, jobs_pb2.CANCELLED):
                return  # as the server does; what tests add from here on is for the next call

    def StreamActivations(
        self, requests: Iterator[calibration_pb2.StreamActivationsRequest], context: Context
    ) -> Iterator[calibration_pb2.StreamActivationsResponse]:
        header = next(requests).header
        self.headers.append(header)
        device = self.device_memory.get(header.cuda_ipc.handle)
        with nullcontext(device) if device else _open_region(header.shared_region) as region:
            yield from self._take_chunks(requests, context, region)

    def _take_chunks(
        self,
        requests: Iterator[calibration_pb2.StreamActivationsRequest],
        context: Context,
        region: BinaryIO | None,
    ) -> Iterator[calibration_pb2.StreamActivationsResponse]:
        durable = max(self.chunks, default=0)
        yield self._ack(durable, durable)
        received: list[calibration_pb2.ActivationChunk] = []
        limit = self.drop_stream_after.pop(0) if self.drop_stream_after else None
        count = 0
        for request in requests:
            if request.HasField("chunk"):
                chunk = _with_bytes(request.chunk, region)
                if not chunk.HasField("crc32c"):
                    assert region in self.device_memory.values()
                    chunk.crc32c = google_crc32c.value(chunk.data)
                assert google_crc32c.value(chunk.data) == chunk.crc32c
                if chunk.seq <= durable:
                    self.repeats += 1
                else:
                    assert chunk.seq == durable + len(received) + 1, "sequence gap"
                    received.append(chunk)
                count += 1
                if limit is not None and count > limit:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
                while len(received) > self.durable_lag:
                    durable = self._keep(received.pop(0))
            else:
                while received:
                    durable = self._keep(received.pop(0))
            yield self._ack(durable + len(received), durable)
        for chunk in received:
            durable = self._keep(chunk)
        yield self._ack(durable, durable)

    def _keep(self, chunk: calibration_pb2.ActivationChunk) -> int:
        assert chunk.seq not in self.chunks, "counted twice"
        self.chunks[chunk.seq] = chunk.data
        self.messages[chunk.seq] = chunk
        return chunk.seq

    def _ack(self, received: int, durable: int) -> calibration_pb2.StreamActivationsResponse:
        return calibration_pb2.StreamActivationsResponse(
            received_seq=received, durable_seq=durable, credit_bytes=self.credit_bytes
        )

    def GetUploadStatus(self, request: Any, context: Context) -> weights_pb2.UploadStatus:
        return weights_pb2.UploadStatus(
            committed_size=len(self.weight), complete=self.weight_complete
        )

    def UploadWeights(
        self, requests: Iterator[weights_pb2.UploadWeightsRequest], context: Context
    ) -> weights_pb2.UploadWeightsResponse:
        self.upload_calls += 1
        limit = self.drop_upload_after.pop(0) if self.drop_upload_after else None
        count = 0
        for request in requests:
            if request.HasField("chunk"):
                if count == limit:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
                count += 1
                assert request.chunk.offset == len(self.weight)
                assert google_crc32c.value(request.chunk.data) == request.chunk.crc32c
                self.weight += request.chunk.data
            elif request.HasField("finish"):
                if hashlib.sha256(self.weight).digest() != request.finish.sha256:
                    self.weight.clear()
                    context.abort(grpc.StatusCode.DATA_LOSS, "digest mismatch")
                self.weight_complete = True
        return weights_pb2.UploadWeightsResponse()

    def ReadArtifact(
        self, request: results_pb2.ReadArtifactRequest, context: Context
    ) -> Iterator[results_pb2.ReadArtifactResponse]:
        limit = self.drop_download_after.pop(0) if self.drop_download_after else None
        for count, offset in enumerate(range(request.read_offset, len(self.artifact), 1000)):
            if count == limit:
                context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
            data = self.artifact[offset : offset + 1000]
            yield results_pb2.ReadArtifactResponse(
                offset=offset,
                data=data,
                crc32c=google_crc32c.value(data),
                size_bytes=len(self.artifact),
                sha256=hashlib.sha256(self.artifact).digest() if count == 0 else b"",
            )


def _open_region(name: str) -> AbstractContextManager[BinaryIO | None]:
    return Path("/dev/shm", name).open("rb", buffering=0) if name else nullcontext()


def _with_bytes(
    chunk: calibration_pb2.ActivationChunk, region: BinaryIO | None
) -> calibration_pb2.ActivationChunk:
    if region is None:
        assert not chunk.HasField("shared")
        return chunk
    assert not chunk.data
    assert not chunk.paired_data
    region.seek(chunk.shared.offset)
    chunk.data = region.read(chunk.shared.bytes)
    region.seek(chunk.paired_shared.offset)
    chunk.paired_data = region.read(chunk.paired_shared.bytes)
    return chunk
