"""Uploads, streams, downloads and waits against a server that loses connections."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import numpy as np
import pytest
from google.rpc import code_pb2
from numpy.typing import NDArray
from safetensors.numpy import save

import quantd
from quantd import LayerSpec, Recipe
from quantd.cuda_region import DeviceRows, natural_dtype
from quantd.v1 import calibration_pb2, jobs_pb2, recipe_pb2

sys.path.insert(0, str(Path(__file__).parent))
from fake_server import FakeServer


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


def connect(fake: FakeServer, **options: Any) -> quantd.Client:
    return quantd.connect(fake.start(), progress=False, **options)


def activations(tokens: int, cols: int = 64) -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal((tokens, cols)).astype(np.float32)


def received(fake: FakeServer) -> bytes:
    assert sorted(fake.chunks) == list(range(1, len(fake.chunks) + 1))
    return b"".join(fake.chunks[seq] for seq in sorted(fake.chunks))


def test_stream_delivers_every_row_once(fake: FakeServer) -> None:
    x = activations(20_000)
    with connect(fake) as client:
        assert client.stream_activations("s", x, sample_rows=64, block_size=32) == 20_000
    assert received(fake) == x.tobytes()
    assert max(len(data) for data in fake.chunks.values()) <= 1 << 20
    header = fake.headers[0]
    assert header.statistic == "tenants/lab/statistics/s"
    assert (header.cols, header.sample_rows, header.block_size) == (64, 64, 32)


def test_stream_survives_lost_connections(fake: FakeServer) -> None:
    fake.drop_stream_after = [0, 2, 0, 5, 3]
    fake.durable_lag = 3
    x = activations(60_000)
    with connect(fake) as client:
        client.stream_activations("s", (x[i : i + 777] for i in range(0, len(x), 777)))
    assert received(fake) == x.tobytes()
    assert len(fake.headers) == 6
    assert len({header.stream_id for header in fake.headers}) == 1


def test_stream_flush_makes_durable(fake: FakeServer) -> None:
    fake.durable_lag = 1000
    with connect(fake) as client, client.open_activation_stream("s", 8, dtype="f32") as stream:
        for _ in range(5):
            stream.send(activations(3, 8))
        stream.flush()
        assert stream.durable_seq == 5
        assert len(fake.chunks) == 5


def test_stream_skips_what_an_earlier_run_made_durable(fake: FakeServer) -> None:
    x = activations(30, 8)
    client = connect(fake)
    stream = client.open_activation_stream("s", 8, dtype="f32", stream_id="rank0")
    for row in x[:12]:
        stream.send(row[None])
    stream.flush()
    stream.cancel()
    assert len(fake.chunks) == 12
    with client.open_activation_stream("s", 8, dtype="f32", stream_id="rank0") as again:
        for row in x:
            again.send(row[None])
    assert received(fake) == x.tobytes()
    client.close()


def test_stream_waits_for_credit(fake: FakeServer) -> None:
    fake.credit_bytes = 10  # less than one chunk: one at a time
    x = activations(100, 8)
    with connect(fake) as client, client.open_activation_stream("s", 8, dtype="f32") as stream:
        for row in x:
            stream.send(row[None])
    assert received(fake) == x.tobytes()


def regions() -> list[str]:
    return [path.name for path in Path("/dev/shm").glob("quantd.lab.*")]


def test_shared_memory_survives_lost_connections(fake: FakeServer) -> None:
    """Slots are used many times over, and each connection has its own."""
    fake.drop_stream_after = [0, 2, 0, 30, 3]
    fake.durable_lag = 3
    fake.credit_bytes = 64 << 20
    x = activations(400_000)
    with connect(fake) as client:
        parts = (x[i : i + 7777] for i in range(0, len(x), 7777))
        client.stream_activations("s", parts, shared_memory=True)
    assert received(fake) == x.tobytes()
    assert len(fake.chunks) > 48
    assert len({header.shared_region for header in fake.headers}) == len(fake.headers) == 6
    assert all(h.shared_region.startswith("quantd.lab.") for h in fake.headers)
    assert not regions()


def test_shared_memory_sends_weights_and_pairs(fake: FakeServer) -> None:
    x, paired = activations(500, 8), activations(500, 24)
    with connect(fake) as client:
        client.stream_activations("r", x, paired=paired, kind="residual-moment", shared_memory=True)
        assert fake.messages[1].data == x.tobytes()
        assert fake.messages[1].paired_data == paired.tobytes()
        fake.chunks.clear()
        weights = np.linspace(0, 1, 500)
        client.stream_activations("w", x, token_weights=weights, shared_memory=True)
        assert fake.messages[1].data == x.tobytes()
        assert np.array_equal(fake.messages[1].token_weights, weights.astype(np.float32))


def test_shared_memory_has_no_name_once_the_server_has_it(fake: FakeServer) -> None:
    with (
        connect(fake) as client,
        client.open_activation_stream("s", 8, dtype="f32", shared_memory=True) as stream,
    ):
        stream.send(activations(3, 8))
        stream.flush()
        assert not regions()


def test_shared_memory_leaves_nothing_behind_without_a_server() -> None:
    with quantd.connect("127.0.0.1:1", progress=False, retry_timeout_s=0.3) as client:
        with pytest.raises(quantd.Unavailable):
            client.stream_activations(
                "tenants/lab/statistics/s", activations(3), shared_memory=True
            )
        assert not regions()


def test_shared_memory_is_for_this_host() -> None:
    client = quantd.connect("gpu-7.example:7741", progress=False)
    with client, pytest.raises(quantd.InvalidArgument, match="expected a server on this host"):
        client.open_activation_stream("tenants/lab/statistics/s", 8, shared_memory=True)


class OnGpu:
    """What a framework's array says about itself."""

    dtype = "float32"

    def __init__(self, **changes: Any) -> None:
        self.shape = changes.get("shape", (10, 8))
        self.__cuda_array_interface__ = {
            "shape": self.shape,
            "typestr": "<f4",
            "data": (0x7F0000000000, False),
            "strides": None,
            "version": 2,
        } | changes


class HostRegion:
    """In place of a CudaRegion: what it does, in this process's memory."""

    def __init__(self, fake: FakeServer, slots: int, slot_bytes: int) -> None:
        self.slots = slots
        self.closed = False
        self._slot_bytes = slot_bytes
        self._memory = fake.device_memory[b"handle"] = mmap.mmap(-1, slots * slot_bytes)
        self.message = calibration_pb2.CudaIpcRegion(handle=b"handle", device_uuid="GPU-0")

    def wait_for(self, rows: DeviceRows) -> None:
        pass

    def write(self, slot: int, *parts: DeviceRows) -> list[calibration_pb2.SharedRange]:
        assert 0 <= slot < self.slots
        offset = slot * self._slot_bytes
        ranges = []
        for part in parts:
            end = offset + part.size
            self._memory[offset:end] = ctypes.string_at(part.pointer, part.size)
            ranges.append(calibration_pb2.SharedRange(offset=offset, bytes=part.size))
            offset = end
        return ranges

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def gpu(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> list[HostRegion]:
    """The regions that were made."""
    made: list[HostRegion] = []

    def make(tenant: str, device: int, slots: int, slot_bytes: int) -> HostRegion:
        assert (tenant, device) == ("lab", 0)
        made.append(HostRegion(fake, slots, slot_bytes))
        return made[-1]

    monkeypatch.setattr("quantd.activations.CudaRegion", make)
    return made


def on_gpu(array: NDArray[np.float32]) -> OnGpu:
    return OnGpu(shape=array.shape, data=(array.ctypes.data, False))


def test_cuda_ipc_survives_lost_connections(fake: FakeServer, gpu: list[HostRegion]) -> None:
    """One region for all connections, whose slots are used again once they are durable."""
    fake.drop_stream_after = [0, 2, 0, 30, 3]
    fake.durable_lag = 3
    fake.credit_bytes = 64 << 20
    x = activations(400_000)
    with connect(fake) as client:
        parts = (on_gpu(x[i : i + 7777]) for i in range(0, len(x), 7777))
        client.stream_activations("s", parts, cuda_ipc=True, cuda_ipc_bytes=8 << 20)
    assert received(fake) == x.tobytes()
    assert len(fake.chunks) > 48
    assert len(fake.headers) == 6
    (region,) = gpu
    assert region.slots == 8
    assert region.closed


def test_cuda_ipc_sends_weights_and_pairs(fake: FakeServer, gpu: list[HostRegion]) -> None:
    x, paired = activations(500, 8), activations(500, 24)
    pairs = OnGpu(shape=paired.shape, data=(paired.ctypes.data, False))
    with connect(fake) as client:
        client.stream_activations(
            "r", on_gpu(x), paired=pairs, kind="residual-moment", cuda_ipc=True
        )
        assert fake.messages[1].data == x.tobytes()
        assert fake.messages[1].paired_data == paired.tobytes()
        fake.chunks.clear()
        weights = np.linspace(0, 1, 500)
        client.stream_activations("w", on_gpu(x), token_weights=weights, cuda_ipc=True)
        assert fake.messages[1].data == x.tobytes()
        assert np.array_equal(fake.messages[1].token_weights, weights.astype(np.float32))
    assert all(region.closed for region in gpu)


def test_rows_on_a_gpu() -> None:
    rows = DeviceRows.of("x", OnGpu(), "f32", 8)
    assert rows.size == 10 * 32
    assert rows.part(6, 99) == DeviceRows(0x7F0000000000 + 6 * 32, 4, 32, None)
    assert DeviceRows.of("x", OnGpu(strides=(32, 4)), "f32", 8) == rows
    assert DeviceRows.of("x", OnGpu(version=3, stream=7), "f32", 8).stream == 7
    mistaken = OnGpu(typestr="<f2")
    mistaken.dtype = "torch.bfloat16"
    assert natural_dtype(mistaken) == "bf16"
    for typestr in ("<V2", "<u2", "<i2"):
        array = OnGpu(typestr=typestr)
        assert DeviceRows.of("x", array, natural_dtype(array), 8).row_bytes == 16


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((10, 8), np.float32), "on the GPU .* came ndarray"),
        (OnGpu(shape=(10, 9)), "tokens x 8, came 10 x 9"),
        (OnGpu(shape=(80,)), "tokens x 8, came 80"),
        (OnGpu(typestr="<f2"), "expected f32 .* came <f2"),
        (OnGpu(strides=(64, 4)), "contiguous"),
        (OnGpu(strides=(4, 40)), "contiguous"),
    ],
)
def test_rows_on_a_gpu_that_are_refused(array: Any, match: str) -> None:
    with pytest.raises(quantd.InvalidArgument, match=match):
        DeviceRows.of("x", array, "f32", 8)


def test_cuda_ipc_is_for_this_host_and_instead_of_shared_memory(fake: FakeServer) -> None:
    client = quantd.connect("gpu-7.example:7741", progress=False)
    with client, pytest.raises(quantd.InvalidArgument, match="cuda_ipc: expected a server on this"):
        client.open_activation_stream("tenants/lab/statistics/s", 8, cuda_ipc=True)
    with connect(fake) as own, pytest.raises(quantd.InvalidArgument, match="came both"):
        own.open_activation_stream("s", 8, cuda_ipc=True, shared_memory=True)
    with connect(fake) as own, pytest.raises(quantd.InvalidArgument, match="on the host"):
        own.stream_activations("s", OnGpu(), dtype="f32")


def test_shared_memory_that_is_not_there(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with connect(fake) as client, pytest.raises(quantd.ResourceExhausted, match="df /dev/shm"):
        client.stream_activations("s", activations(3), shared_memory=True)
    assert not regions()
    assert not fake.headers


def test_stream_converts_to_bfloat16(fake: FakeServer) -> None:
    x = activations(10, 16)
    with connect(fake) as client:
        client.stream_activations("s", x, dtype="bf16")
    assert received(fake) == quantd.to_bfloat16(x).tobytes()
    assert fake.headers[0].dtype == recipe_pb2.BF16


def test_stream_refuses_wrong_shapes_before_sending(fake: FakeServer) -> None:
    with connect(fake) as client, client.open_activation_stream("s", 8) as stream:
        with pytest.raises(quantd.InvalidArgument, match=r"expected tokens x 8, came 3 x 9"):
            stream.send(activations(3, 9))
        with pytest.raises(quantd.InvalidArgument, match="float64, float32"):
            stream.send(np.zeros((3, 8), np.int32))
    assert not fake.chunks


def test_stream_sends_weights_and_pairs(fake: FakeServer) -> None:
    x = activations(3000, 16)
    weights = np.abs(x[:, 0])
    with connect(fake) as client:
        client.stream_activations("w", x, token_weights=weights)
        assert fake.headers[-1].kind == calibration_pb2.WEIGHTED
        chunks = [fake.messages[seq] for seq in sorted(fake.messages)]
        assert [weight for chunk in chunks for weight in chunk.token_weights] == weights.tolist()

        fake.chunks.clear()
        fake.messages.clear()
        paired = activations(3000, 5)
        client.stream_activations("r", x, paired=paired, kind="residual-moment")
        assert fake.headers[-1].kind == calibration_pb2.RESIDUAL_MOMENT
        assert fake.headers[-1].paired_cols == 5
        chunks = [fake.messages[seq] for seq in sorted(fake.messages)]
        assert b"".join(chunk.paired_data for chunk in chunks) == paired.tobytes()
        assert all(google_crc32c.value(c.paired_data) == c.paired_crc32c for c in chunks)


def test_stream_refuses_what_the_kind_does_not_take(fake: FakeServer) -> None:
    x = activations(4, 8)
    ones = np.ones(4, np.float32)
    with connect(fake) as client:
        with pytest.raises(quantd.InvalidArgument, match="kind: expected cross-moment"):
            client.stream_activations("s", x, paired=x)
        with pytest.raises(quantd.InvalidArgument, match="token_weights: expected none"):
            client.stream_activations("s", x, paired=x, kind="cross-moment", token_weights=ones)
        with pytest.raises(quantd.InvalidArgument, match="expected 4, one a token, came 3"):
            client.stream_activations("s", x, token_weights=ones[:3])
        with pytest.raises(quantd.InvalidArgument, match=r"paired rows of .*: expected 4 x 8"):
            client.stream_activations("s", x, paired=x[:3], kind="cross-moment")
        with pytest.raises(quantd.InvalidArgument, match="paired_cols"):
            client.stream_activations("s", x, kind="residual-moment")
        with pytest.raises(quantd.InvalidArgument, match="kind: expected one of"):
            client.stream_activations("s", x, kind="drift")  # type: ignore[arg-type]
    assert not fake.chunks


def test_stream_gives_up_when_nothing_answers(fake: FakeServer) -> None:
    client = connect(fake, retry_timeout_s=0.5)
    assert client.tenant == "lab"
    fake.stop()
    with pytest.raises(quantd.Unavailable):
        client.stream_activations("s", activations(10))
    client.close()


def test_upload_resumes_where_the_server_is(fake: FakeServer) -> None:
    fake.drop_upload_after = [0, 1, 2]
    weight = activations(2000, 1024)
    with connect(fake) as client:
        client.upload_weights("j", "l", weight)
        assert bytes(fake.weight) == weight.tobytes()
        assert fake.upload_calls == 4
        client.upload_weights("j", "l", weight)  # complete: nothing is sent
    assert fake.upload_calls == 4


def test_upload_starts_over_when_the_rest_was_of_another_matrix(fake: FakeServer) -> None:
    weight = activations(20)
    fake.weight += b"\1" * 100
    with connect(fake) as client:
        client.upload_weights("j", "l", weight)
    assert bytes(fake.weight) == weight.tobytes()


def test_upload_refuses_other_ranks(fake: FakeServer) -> None:
    with connect(fake) as client, pytest.raises(quantd.InvalidArgument, match="rank 1"):
        client.upload_weights("j", "l", np.zeros(3, np.float32))


def test_download_continues(fake: FakeServer) -> None:
    fake.artifact = bytes(np.random.default_rng(0).integers(0, 256, 10_500, np.uint8))
    fake.drop_download_after = [3, 0, 1]
    with connect(fake) as client:
        assert client.fetch_file("j", "l") == fake.artifact


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_unary_calls_are_repeated_while_unavailable(
    fake: FakeServer, code: grpc.StatusCode
) -> None:
    """A server that shuts down ends what runs with CANCELLED."""
    fake.unavailable = 2
    fake.unavailable_code = code
    with connect(fake, token="secret") as client:
        assert client.get_server_info().version == "test"
    assert ("authorization", "Bearer secret") in fake.metadata


@pytest.mark.parametrize("lost", [0, 1])
def test_what_took_place_although_its_answer_was_lost(fake: FakeServer, lost: int) -> None:
    with connect(fake) as client:
        fake.lost_answers = lost
        assert client.merge_statistics("m", ["a", "b"]).tokens == 5
        fake.lost_answers = lost
        assert client.import_statistic("i", quantd.Moment(np.eye(4), tokens=7)).tokens == 7
        for statistic in ("m", "i"):
            fake.lost_answers = lost
            client.delete_statistic(statistic)
    assert not fake.statistics
    assert fake.lost_answers == 0


def test_what_is_asked_once_and_is_there_already(fake: FakeServer) -> None:
    with connect(fake) as client:
        client.merge_statistics("m", ["a", "b"])
        with pytest.raises(quantd.AlreadyExists):
            client.merge_statistics("m", ["a", "b"])
        with pytest.raises(quantd.AlreadyExists):
            client.import_statistic("m", quantd.Moment(np.eye(4), tokens=7))
        with pytest.raises(quantd.NotFound):
            client.delete_statistic("none")


def test_an_export_starts_over(fake: FakeServer) -> None:
    fake.lost_exports = 2
    with connect(fake) as client:
        moment = client.export_statistic("s")
    assert moment.tokens == 3
    assert np.array_equal(moment.matrix, np.eye(2))


def test_create_job_sends_everything(fake: FakeServer) -> None:
    recipe = Recipe("int4", "wush", solver="conditional", scale_rule="gaussian-mse", group_size=64)
    with connect(fake) as client:
        job = client.create_job(
            recipe,
            [
                LayerSpec("a", 64, 128, "bf16", statistic="s", fusion_group="qkv"),
                LayerSpec("b", 64, 128, recipe=Recipe("fp8", granularity="block-128x128")),
                LayerSpec("c", 64, 128, second_moment_hat="h", cross_moment="c"),
                LayerSpec("d", 64, 128, residual_moment="tenants/lab/statistics/r"),
            ],
            job_id="mine",
        )
        assert client.estimate_job(recipe, []).peak_bytes == 7
    request = fake.created[0]
    assert request.parent == "tenants/lab"
    assert request.request_id
    assert request.job.layers[0].statistic == "tenants/lab/statistics/s"
    assert request.job.recipe.scale_rule == recipe_pb2.GAUSSIAN_MSE
    assert request.job.layers[1].recipe.granularity == recipe_pb2.BLOCK_128X128
    assert not request.job.layers[1].statistic
    drift = request.job.layers[2]
    assert drift.second_moment_hat == "tenants/lab/statistics/h"
    assert drift.cross_moment == "tenants/lab/statistics/c"
    assert not drift.residual_moment
    assert request.job.layers[3].residual_moment == "tenants/lab/statistics/r"
    assert job.recipe == recipe
    assert job.layers[0].fusion_group == "qkv"
    assert fake.created[1].validate_only


def job_in(job_state: jobs_pb2.JobState, **layer: Any) -> jobs_pb2.Job:
    return jobs_pb2.Job(
        name="tenants/lab/jobs/j",
        state=job_state,
        layers=[jobs_pb2.Layer(layer_id="l", **layer)],
    )


def test_wait_survives_a_lost_connection(fake: FakeServer) -> None:
    fake.jobs = [job_in(jobs_pb2.RUNNING), jobs_pb2.Job(name="drop"), job_in(jobs_pb2.SUCCEEDED)]
    with connect(fake) as client:
        assert client.wait("j").state == "SUCCEEDED"


def test_wait_raises_with_the_layers_error(fake: FakeServer) -> None:
    failed = job_in(jobs_pb2.FAILED, state=jobs_pb2.LAYER_FAILED)
    failed.layers[0].error.code = code_pb2.INVALID_ARGUMENT
    failed.layers[0].error.message = "weight has a NaN at row 3"
    fake.jobs = [failed]
    with connect(fake) as client:
        with pytest.raises(quantd.JobFailed, match="NaN at row 3") as raised:
            client.wait("j")
        assert isinstance(raised.value.layer_errors["l"], quantd.InvalidArgument)
        fake.jobs = [failed]
        assert client.wait("j", check=False).state == "FAILED"


def test_wait_gives_up(fake: FakeServer) -> None:
    fake.jobs = []
    with connect(fake, retry_timeout_s=0.3) as client, pytest.raises(quantd.Unavailable):
        client.wait("j")


def test_result_file_round_trip(tmp_path: Path) -> None:
    weight = np.arange(64, dtype=np.uint8).reshape(2, 32)
    tensors: dict[str, NDArray[Any]] = {
        "enc.0.q.weight_packed": weight,
        "enc.0.q.weight_scale": np.full((2, 2), 127, np.uint8),
        "enc.0.q.weight_global_scale": np.array([3], np.float32),
        "enc.0.q.weight_shape": np.array([2, 64], np.int64),
    }
    recipe = {"format": "mxfp4", "transform": "identity", "method": "rtn", "group_size": 32}
    (tmp_path / "result.safetensors").write_bytes(save(tensors, {"recipe": json.dumps(recipe)}))
    (tmp_path / "report.json").write_text('{"bits_per_weight": 4.25}')
    layer = quantd.load(tmp_path / "result.safetensors")
    assert layer.name == "enc.0.q"
    assert layer.shape == (2, 64)
    assert layer.bits_per_weight == 4.25
    assert np.allclose(layer.dequantize()[0, :6], np.array([0, 0, 0.5, 0, 1, 0]) / 3)


def test_not_a_result_file(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}"):
        path = tmp_path / "x.safetensors"
        path.write_bytes(content)
        with pytest.raises(quantd.InvalidArgument):
            quantd.load(path)
