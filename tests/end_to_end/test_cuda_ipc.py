"""Activations that lie in a GPU's memory: the same as those that come with their messages, and only
its owner's.

What is refused without a GPU is tested everywhere, the rest where the server uses one and PyTorch
sees it.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import quantd
from quantd.cuda_region import CudaRegion, DeviceRows
from quantd.v1 import calibration_pb2, server_pb2

from .refusal import refused, unharmed
from .server_process import Api, Server, eventually
from .wire import (
    F32,
    ActivationStream,
    activation_chunk,
    activation_header,
    activations_like,
    crc32c,
    encode,
    export_statistic,
    get_statistic,
    seal,
    stream_activations,
    works,
)

TOKENS = {"alpha": "alpha-0123456789abcdef", "beta": "beta-0123456789abcdef"}
COLS = 64
VALUES = activations_like(96, COLS, seed=5).astype(np.float32)
ROW_BYTES = COLS * 4
SLOT_BYTES = 1 << 20
NOBODYS = calibration_pb2.CudaIpcRegion(
    handle=bytes(64), device_uuid="GPU-00000000-0000-0000-0000-000000000000", bytes=1 << 21
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = "\n".join(
        f'tenants {{ name: "{name}" token_sha256: "{hashlib.sha256(token.encode()).hexdigest()}" }}'
        for name, token in TOKENS.items()
    )
    data_dir = tmp_path_factory.mktemp("cuda_ipc") / "data"
    flags = ["--cuda_ipc", "--shared_memory"]
    started = Server(data_dir, config=config, flags=flags).start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def alpha(server: Server) -> Api:
    return server.connect("alpha", TOKENS["alpha"])


def _named(**changes: Any) -> calibration_pb2.CudaIpcRegion:
    region = calibration_pb2.CudaIpcRegion()
    region.CopyFrom(NOBODYS)
    region.MergeFrom(calibration_pb2.CudaIpcRegion(**changes))
    return region


def _open(
    api: Api, unique: str, region: calibration_pb2.CudaIpcRegion, **header: object
) -> ActivationStream:
    return ActivationStream(
        api, activation_header(api.statistic_name(unique), COLS, cuda_ipc=region, **header)
    )


def test_off_by_default(start_server: Callable[..., Server], unique: str) -> None:
    server = start_server(flags=["--shared_memory"])
    with (
        unharmed(server),
        refused("FAILED_PRECONDITION", "CUDA_IPC_OFF", says=["--cuda_ipc"]),
    ):
        _open(server.api, unique, NOBODYS)


def test_a_gpu_that_the_server_does_not_use(server: Server, alpha: Api, unique: str) -> None:
    info = alpha.server.GetServerInfo(server_pb2.GetServerInfoRequest())
    used = [device.uuid for device in info.devices if device.uuid] or ["it uses none"]
    with (
        unharmed(server, alpha),
        refused("FAILED_PRECONDITION", "NO_SUCH_CUDA_DEVICE", says=["device_uuid", *used]),
    ):
        _open(alpha, unique, NOBODYS)
    with refused(
        "FAILED_PRECONDITION", "NO_SUCH_CUDA_DEVICE"
    ):  # and not the CPU, which has no name
        _open(alpha, unique, calibration_pb2.CudaIpcRegion(handle=bytes(64), bytes=1 << 21))


@pytest.mark.parametrize(
    ("region", "field", "says"),
    [
        (_named(handle=bytes(63)), "handle", ["64", "63"]),
        (_named(handle=bytes(10_000)), "handle", ["10000"]),
        (calibration_pb2.CudaIpcRegion(), "handle", ["got 0"]),
        (_named(bytes=12), "bytes", ["13", "12"]),  # less than "quantd.alpha."
        (_named(bytes=-(2**63)), "bytes", [-(2**63)]),
    ],
    ids=["short-handle", "long-handle", "nothing", "no-room-for-a-label", "negative"],
)
def test_malformed(
    server: Server,
    alpha: Api,
    unique: str,
    region: calibration_pb2.CudaIpcRegion,
    field: str,
    says: list[object],
) -> None:
    with unharmed(server, alpha), refused("INVALID_ARGUMENT", field=field, says=says):
        _open(alpha, unique, region)


def test_beside_shared_memory(server: Server, alpha: Api, unique: str) -> None:
    with unharmed(server, alpha), refused("INVALID_ARGUMENT", field="cuda_ipc"):
        _open(alpha, unique, NOBODYS, shared_region="quantd.alpha.x")


def test_python_client_without_a_driver(server: Server) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has NVIDIA's driver")
    client = quantd.connect(server.address, TOKENS["alpha"], progress=False)
    with client, pytest.raises(quantd.FailedPrecondition, match="no NVIDIA driver"):
        client.open_activation_stream("s", COLS, cuda_ipc=True)


# With a GPU -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch(server: Server, alpha: Api) -> Any:
    module = pytest.importorskip("torch", reason="needs PyTorch to put tensors on a GPU")
    if not module.cuda.is_available():
        pytest.skip("needs a GPU")
    info = alpha.server.GetServerInfo(server_pb2.GetServerInfoRequest())
    if not any(device.uuid for device in info.devices):
        pytest.skip("the server under test uses no GPU")
    return module


@pytest.fixture
def region(torch: Any) -> Iterator[CudaRegion]:
    """One of alpha's, with VALUES in its first slot."""
    with CudaRegion("alpha", 0, 2, SLOT_BYTES) as made:
        _fill(torch, made, VALUES)
        yield made


def _fill(torch: Any, region: CudaRegion, values: np.ndarray) -> None:
    rows = DeviceRows.of("x", torch.from_numpy(values).cuda(), "f32", COLS)
    region.wait_for(rows)
    region.write(0, rows)


def _in_range(
    seq: int, part: slice, first: int = 4096, **more: Any
) -> calibration_pb2.ActivationChunk:
    """Rows of VALUES as they lie in the region, whose slots begin at `first`."""
    start, stop, _ = part.indices(len(VALUES))
    shared = calibration_pb2.SharedRange(
        offset=first + start * ROW_BYTES, bytes=(stop - start) * ROW_BYTES
    )
    fields = {"seq": seq, "rows": stop - start, "shared": shared, **more}
    return calibration_pb2.ActivationChunk(**fields)


def _same_statistics(api: Api, *names: str) -> None:
    sealed = [seal(api, api.statistic_name(name)) for name in names]
    assert len({one.digest for one in sealed}) == 1
    assert len({one.tokens for one in sealed}) == 1
    moments = {bytes(export_statistic(api, api.statistic_name(name)).data) for name in names}
    assert len(moments) == 1


def test_equals_what_messages_bring(
    torch: Any, alpha: Api, unique: str, region: CudaRegion
) -> None:
    """The same digest and the same bits, with chunks of both sorts in one stream, with a checksum
    and without."""
    stream = _open(alpha, unique, region.message)
    stream.send(_in_range(1, slice(0, 32)))
    stream.send(activation_chunk(2, VALUES[32:64]))
    stream.send(_in_range(3, slice(64, 96), crc32c=crc32c(encode(VALUES[64:], F32))))
    assert stream.finish().durable_seq == 3
    inline = f"{unique}-inline"
    stream_activations(alpha, alpha.statistic_name(inline), VALUES, chunk_rows=32)
    _same_statistics(alpha, unique, inline)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_python_client_three_ways(
    torch: Any, server: Server, alpha: Api, unique: str, dtype: str
) -> None:
    """More than its slots hold: each is used many times over."""
    element = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[dtype]
    host = torch.from_numpy(activations_like(60_000, COLS, seed=6)).to(element)
    bits = host.view(torch.int16).numpy().view(np.uint16) if dtype == "bf16" else host.numpy()
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "grpc": (bits, {}),
        "shm": (bits, {"shared_memory": True}),
        "cuda": (host.cuda(), {"cuda_ipc": True, "cuda_ipc_bytes": 3 << 20}),
    }
    with quantd.connect(server.address, TOKENS["alpha"], progress=False) as client:
        for way, (x, how) in ways.items():
            name = f"{unique}-{way}"
            assert client.stream_activations(name, x, stream_id="a", **how) == len(x)
    _same_statistics(alpha, *(f"{unique}-{way}" for way in ways))


def test_python_client_weights_and_pairs(
    torch: Any, server: Server, alpha: Api, unique: str
) -> None:
    x = VALUES
    paired = activations_like(96, 32, seed=9).astype(np.float32)
    weights = np.linspace(0.5, 2, len(x)).astype(np.float32)
    kinds: dict[str, dict[str, Any]] = {
        "w": {"token_weights": weights},
        "r": {"paired": paired, "kind": "residual-moment"},
    }
    with quantd.connect(server.address, TOKENS["alpha"], progress=False) as client:
        for name, beside in kinds.items():
            client.stream_activations(f"{unique}-{name}", x, stream_id="a", **beside)
            if "paired" in beside:
                beside["paired"] = torch.from_numpy(paired).cuda()
            client.stream_activations(
                f"{unique}-{name}-cuda",
                torch.from_numpy(x).cuda(),
                stream_id="a",
                cuda_ipc=True,
                **beside,
            )
    for name in kinds:
        _same_statistics(alpha, f"{unique}-{name}", f"{unique}-{name}-cuda")


def test_python_client_outlives_a_killed_server(
    torch: Any, start_server: Callable[..., Server]
) -> None:
    server = start_server(flags=["--cuda_ipc"])
    port = server.address.rsplit(":", 1)[1]
    server.flags = ["--cuda_ipc", f"--listen=127.0.0.1:{port}"]
    x = activations_like(2000, COLS, seed=7).astype(np.float32)
    device = torch.from_numpy(x).cuda()
    with quantd.connect(server.address, progress=False, retry_timeout_s=60) as client:
        with client.open_activation_stream("s", COLS, dtype="f32", cuda_ipc=True) as stream:
            for start in range(0, len(x), 100):
                stream.send(device[start : start + 100])
                if start == 700:
                    stream.flush()
                if start == 1000:
                    server.kill()
                    server.restart()
        assert client.seal_statistic("s").tokens == len(x)
        exact = x.astype(np.float64).T @ x.astype(np.float64) / len(x)
        mean = client.export_statistic("s").mean()
        assert np.linalg.norm(mean - exact) <= 1e-6 * np.linalg.norm(exact)


def test_what_the_trainer_has_queued_is_waited_for(
    torch: Any, server: Server, alpha: Api, unique: str
) -> None:
    """Rows that a stream of the trainer's is about to write, and overwrites after `send`."""
    x = torch.zeros(4096, COLS, device="cuda")
    values = torch.from_numpy(activations_like(4096, COLS, seed=8).astype(np.float32))
    slow = torch.zeros(8192, 8192, device="cuda")
    with quantd.connect(server.address, TOKENS["alpha"], progress=False) as client:
        with client.open_activation_stream(
            unique, COLS, dtype="f32", stream_id="a", cuda_ipc=True
        ) as stream:
            writer = torch.cuda.Stream()
            with torch.cuda.stream(writer):
                for _ in range(20):
                    slow = slow @ slow
                x.copy_(values.cuda())
                stream.send(x)
                x.fill_(float("nan"))
        client.stream_activations(f"{unique}-inline", values.numpy(), stream_id="a")
    _same_statistics(alpha, unique, f"{unique}-inline")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda t: t.zeros(4, COLS), "on the GPU"),
        (lambda t: np.zeros((4, COLS), np.float32), "on the GPU"),
        (lambda t: t.zeros(4, COLS, device="cuda", dtype=t.float16), "nothing is converted"),
        (lambda t: t.zeros(4, COLS + 1, device="cuda"), f"tokens x {COLS}"),
        (lambda t: t.zeros(COLS, COLS, device="cuda").T, "contiguous"),
        (lambda t: t.zeros(4, 2 * COLS, device="cuda")[:, :COLS], "contiguous"),
    ],
    ids=["host-tensor", "numpy", "other-type", "other-columns", "transposed", "strided"],
)
def test_python_client_says_what_it_takes(
    torch: Any, server: Server, make: Callable[[Any], Any], says: str, unique: str
) -> None:
    with quantd.connect(server.address, TOKENS["alpha"], progress=False) as client:
        stream = client.open_activation_stream(unique, COLS, dtype="f32", cuda_ipc=True)
        with pytest.raises(quantd.InvalidArgument, match=says):
            stream.send(make(torch))
        stream.cancel()


def test_another_tenants_memory(server: Server, unique: str, region: CudaRegion) -> None:
    beta = server.connect("beta", TOKENS["beta"])
    with refused("PERMISSION_DENIED", "FOREIGN_TENANT", says=["quantd.beta."]) as refusal:
        _open(beta, unique, region.message)
    assert "alpha" not in refusal.message
    works(beta)


def test_memory_that_is_not_meant_to_be_read(torch: Any, alpha: Api, unique: str) -> None:
    """Without a label, as any other memory whose handle somebody gets hold of."""
    zeros = DeviceRows.of("x", torch.zeros(1, 1024, device="cuda"), "f32", 1024)
    with CudaRegion("alpha", 0, 1, zeros.size) as unlabelled:
        unlabelled.wait_for(zeros)
        unlabelled.write(-1, zeros)  # in front of the first slot
        with refused("PERMISSION_DENIED", "FOREIGN_TENANT", says=["quantd.alpha."]):
            _open(alpha, unique, unlabelled.message)


@pytest.mark.parametrize("bytes_beyond", [1, 2**40])
def test_more_than_the_allocation_has(
    server: Server, alpha: Api, unique: str, region: CudaRegion, bytes_beyond: int
) -> None:
    longer = calibration_pb2.CudaIpcRegion()
    longer.CopyFrom(region.message)
    longer.bytes += bytes_beyond
    with refused("OUT_OF_RANGE", "SHARED_REGION_TOO_SHORT", says=[region.message.bytes]):
        _open(alpha, unique, longer)
    works(alpha)


@pytest.mark.parametrize("beyond", [1, 2**40, 2**63 - 2**22])
def test_range_beyond_the_end(alpha: Api, unique: str, region: CudaRegion, beyond: int) -> None:
    """So far beyond the region's last byte is the range's."""
    stream = _open(alpha, unique, region.message)
    offset = region.message.bytes - 32 * ROW_BYTES + beyond
    stream.send(_in_range(1, slice(0, 32), first=offset))
    with refused("OUT_OF_RANGE", "SHARED_REGION_TOO_SHORT", says=[offset, region.message.bytes]):
        stream.error()
    works(alpha)


def test_refused_contents(torch: Any, alpha: Api, unique: str, region: CudaRegion) -> None:
    stream = _open(alpha, f"{unique}-crc", region.message)
    stream.send(_in_range(1, slice(0, 32), crc32c=1))
    with refused("INVALID_ARGUMENT", "CRC_MISMATCH", "crc32c"):
        stream.error()
    values = VALUES.copy()
    values[17, 41] = np.nan
    _fill(torch, region, values)
    stream = _open(alpha, f"{unique}-nan", region.message)
    stream.send(_in_range(1, slice(0, 32)))
    with refused("INVALID_ARGUMENT", "NON_FINITE", "data", ["row 17", "column 41"]):
        stream.error()
    stream = _open(alpha, f"{unique}-seq", region.message)
    stream.send(_in_range(1, slice(32, 64)), _in_range(1, slice(64, 96)))
    with refused("INVALID_ARGUMENT", "SEQUENCE_CONFLICT"):
        stream.error()
    assert get_statistic(alpha, alpha.statistic_name(f"{unique}-seq")).tokens == 32


def test_inline_chunks_need_their_checksum(alpha: Api, unique: str, region: CudaRegion) -> None:
    stream = _open(alpha, unique, region.message)
    chunk = activation_chunk(1, VALUES)
    chunk.ClearField("crc32c")
    stream.send(chunk)
    with refused("INVALID_ARGUMENT", "CRC_MISMATCH", "crc32c"):
        stream.error()


def test_handles_that_do_not_open(
    server: Server, alpha: Api, unique: str, region: CudaRegion
) -> None:
    """Made up, or of memory that is gone; the server goes on with the device."""
    made_up = calibration_pb2.CudaIpcRegion()
    made_up.CopyFrom(region.message)
    made_up.handle = bytes(range(64))
    with refused("FAILED_PRECONDITION", "CUDA_IPC_HANDLE", says=["cuda_ipc"]):
        _open(alpha, unique, made_up)
    gone = CudaRegion("alpha", 0, 2, SLOT_BYTES)
    gone.close()
    with refused("FAILED_PRECONDITION", "CUDA_IPC_HANDLE"):
        _open(alpha, unique, gone.message)
    stream = _open(alpha, unique, region.message)
    stream.send(_in_range(1, slice(None)))
    assert stream.finish().durable_seq == 1


@pytest.mark.parametrize("how", ["finish", "cancel"])
def test_the_server_lets_the_memory_go(torch: Any, alpha: Api, unique: str, how: str) -> None:
    size = 1 << 30
    free, _ = torch.cuda.mem_get_info()
    made = CudaRegion("alpha", 0, 1, size)
    stream = _open(alpha, unique, made.message)
    assert torch.cuda.mem_get_info()[0] <= free - size
    getattr(stream, how)()
    made.close()
    eventually(lambda: torch.cuda.mem_get_info()[0] > free - size // 2, "the memory is free again")
    works(alpha)
