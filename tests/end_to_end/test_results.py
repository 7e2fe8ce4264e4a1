"""Results: artifacts by range, reports, and damage on disk."""

from __future__ import annotations

import hashlib
import json

import grpc
import numpy as np
import pytest
from quantd.v1 import jobs_pb2, recipe_pb2, results_pb2

from .refusal import refused, unharmed
from .server_process import Server
from .wire import (
    activations_like,
    create_job,
    delete_job,
    error_report,
    gaussian,
    layer,
    list_artifacts,
    read_artifact,
    read_safetensors,
    safetensors_metadata,
    sealed_statistic,
    upload,
    wait_for_job,
)

ROWS, COLS, TOKENS = 96, 256, 320


@pytest.fixture(scope="module")
def job(server: Server) -> str:
    """A finished MXFP4 WUSH job with one calibrated and one bare layer."""
    statistic = sealed_statistic(server.api, "results", activations_like(TOKENS, COLS, 1)).name
    created = create_job(
        server.api,
        [
            layer("w", ROWS, COLS, statistic=statistic),
            layer("bare", 8, 64, recipe=recipe_pb2.Recipe(format=recipe_pb2.INT4)),
        ],
        recipe_pb2.Recipe(format=recipe_pb2.MXFP4, transform=recipe_pb2.WUSH),
        job_id="finished",
    )
    upload(server.api, created.layers[0].name, gaussian(ROWS, COLS, 2))
    upload(server.api, created.layers[1].name, gaussian(8, 64, 3))
    assert wait_for_job(server.api, created.name).state == jobs_pb2.SUCCEEDED
    return created.name


def test_artifacts(server: Server, job: str) -> None:
    artifacts = list_artifacts(server.api, job)
    assert set(artifacts) == {
        "w.safetensors",
        "w.report.json",
        "bare.safetensors",
        "bare.report.json",
    }
    for short, artifact in artifacts.items():
        assert artifact.name == f"{job}/artifacts/{short}"
        assert artifact.layer == f"{job}/layers/{short.split('.')[0]}"
        data = read_artifact(server.api, artifact.name)
        assert len(data) == artifact.size_bytes
        assert hashlib.sha256(data).digest() == artifact.sha256
        assert artifact.create_time.seconds > 1_600_000_000


def test_artifact_pages(server: Server, job: str) -> None:
    seen: list[str] = []
    token = ""
    while True:
        page = server.api.results.ListArtifacts(
            results_pb2.ListArtifactsRequest(parent=job, page_size=3, page_token=token)
        )
        assert len(page.artifacts) <= 3
        seen += [artifact.name for artifact in page.artifacts]
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == len(set(seen)) == 4


def test_artifact_page_token_that_is_none(server: Server, job: str) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field="page_token"):
        server.api.results.ListArtifacts(
            results_pb2.ListArtifactsRequest(parent=job, page_token="no-such-token")
        )


@pytest.mark.parametrize(
    ("offset", "limit"),
    [(0, 1), (0, 8), (7, 100), (1000, 0), (1, 5000), (0, 2**62), (-1, 0)],
)
def test_read_by_range(server: Server, job: str, offset: int, limit: int) -> None:
    name = f"{job}/artifacts/w.safetensors"
    whole = read_artifact(server.api, name)
    offset = len(whole) + offset if offset < 0 else offset
    part = read_artifact(server.api, name, offset, limit)
    assert part == whole[offset : offset + limit if limit else None]


def test_read_at_the_end(server: Server, job: str) -> None:
    """Nothing is left: a resumed download that was complete ends in order."""
    name = f"{job}/artifacts/w.safetensors"
    size = len(read_artifact(server.api, name))
    assert read_artifact(server.api, name, offset=size) == b""


@pytest.mark.parametrize(("offset", "limit"), [(10**12, 0), (-1, 0), (0, -1), (-(2**63), 5)])
def test_read_outside(server: Server, job: str, offset: int, limit: int) -> None:
    name = f"{job}/artifacts/w.safetensors"
    with unharmed(server), pytest.raises(grpc.RpcError) as caught:
        read_artifact(server.api, name, offset, limit)
    with refused("OUT_OF_RANGE" if offset else "INVALID_ARGUMENT", says=[offset or limit]):
        raise caught.value


def test_messages_are_small(server: Server, job: str) -> None:
    """A stock client's limit is 4 MiB."""
    for message in server.api.results.ReadArtifact(
        results_pb2.ReadArtifactRequest(name=f"{job}/artifacts/w.safetensors")
    ):
        assert message.ByteSize() < 4 << 20


def test_report_is_the_same_three_times(server: Server, job: str) -> None:
    """The message's headline figures, its JSON, and the JSON artifact agree."""
    report = server.api.results.GetErrorReport(
        results_pb2.GetErrorReportRequest(layer=f"{job}/layers/w")
    )
    figures = json.loads(report.report_json)
    assert json.loads(read_artifact(server.api, f"{job}/artifacts/w.report.json")) == figures
    for name in (
        "relative_output_error_weight_only",
        "relative_output_error_weight_and_activation",
        "sqnr_db_weight_only",
        "sqnr_db_weight_and_activation",
        "bits_per_weight",
        "tokens",
        "outcome",
    ):
        assert getattr(report, name) == figures[name], name
    assert report.layer == f"{job}/layers/w"
    assert report.tokens == TOKENS
    assert report.outcome in ("EXACT", "DAMPED", "FALLBACK_RTN")
    assert report.device_seconds > 0


def test_report_fields(server: Server, job: str) -> None:
    figures = error_report(server.api, job, "w")
    for baseline in ("baseline_identity_rtn", "baseline_hadamard_rtn"):
        for kind in ("weight_only", "weight_and_activation"):
            value = figures[f"{baseline}_relative_output_error_{kind}"]
            assert 0 < value < 1
    assert figures["tokens"] == TOKENS
    assert figures["statistic_digest"]
    assert figures["tensor_digests"]["weight_packed"]
    # 4 bits of codes, 8 of scale for 32 of them; the transform is stored in F32 beside them.
    transform_bits = COLS * 32 * 32 / (ROWS * COLS)
    assert figures["bits_per_weight"] == pytest.approx(4 + 8 / 32 + transform_bits, abs=0.05)


def test_report_without_calibration_has_nulls(server: Server, job: str) -> None:
    """What could not be measured is null, never a guess."""
    figures = error_report(server.api, job, "bare")
    assert figures["relative_output_error_weight_only"] is None
    assert figures["relative_output_error_weight_and_activation"] is None
    assert figures["tokens"] is None
    assert 0 < figures["relative_weight_error"] < 0.1
    report = server.api.results.GetErrorReport(
        results_pb2.GetErrorReportRequest(layer=f"{job}/layers/bare")
    )
    assert not report.HasField("relative_output_error_weight_only")
    assert not report.HasField("tokens")


def test_result_file(server: Server, job: str) -> None:
    data = read_artifact(server.api, f"{job}/artifacts/w.safetensors")
    tensors = read_safetensors(data)
    assert tensors["weight_packed"].dtype == "U8"
    assert tensors["weight_packed"].shape == (ROWS, COLS // 2)
    assert tensors["weight_scale"].dtype == "U8"
    assert tensors["weight_scale"].shape == (ROWS, COLS // 32)
    assert tensors["weight_shape"].dtype == "I64"
    assert np.frombuffer(tensors["weight_shape"].data, "<i8").tolist() == [ROWS, COLS]
    assert tensors["input_transform"].shape == (COLS // 32, 32, 32)
    header_length = int.from_bytes(data[:8], "little")
    assert header_length % 8 == 0
    metadata = safetensors_metadata(data)
    assert metadata, "recipe, digests and version are in the file"
    figures = error_report(server.api, job, "w")
    for name, digest in figures["tensor_digests"].items():
        short = name.rsplit(".", 1)[-1]
        assert hashlib.sha256(tensors[short].data).hexdigest() == digest, name


def test_unfinished_layer(server: Server) -> None:
    created = create_job(server.api, [layer("w", 8, 64)], job_id="unfinished")
    with unharmed(server):
        with refused("FAILED_PRECONDITION", says=[created.layers[0].name]):
            error_report(server.api, created.name, "w")
        assert list_artifacts(server.api, created.name) == {}
        with refused("NOT_FOUND"):
            read_artifact(server.api, f"{created.name}/artifacts/w.safetensors")
    delete_job(server.api, created.name)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_artifact_is_data_loss(server: Server, damage: str) -> None:
    created = create_job(server.api, [layer("w", 64, 256)], job_id=f"damaged-{damage}")
    upload(server.api, created.layers[0].name, gaussian(64, 256, 4))
    wait_for_job(server.api, created.name)
    artifact = list_artifacts(server.api, created.name)["w.safetensors"]
    (path,) = [
        server.data_dir / path
        for path, size in server.blob_files().items()
        if size == artifact.size_bytes
        and hashlib.sha256((server.data_dir / path).read_bytes()).digest() == artifact.sha256
    ]
    content = bytearray(path.read_bytes())
    path.chmod(0o644)
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    with refused("DATA_LOSS", says=["w.safetensors"]):
        read_artifact(server.api, artifact.name)
    # The other artifact of the layer is whole.
    assert error_report(server.api, created.name, "w")["bits_per_weight"] > 4
    delete_job(server.api, created.name)
