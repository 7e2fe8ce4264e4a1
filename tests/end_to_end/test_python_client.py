"""The Python package against a real server: what its users do, and what they see when it fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import quantd

from .server_process import Server, eventually

ROWS, COLS, TOKENS = 48, 128, 700


@pytest.fixture
def client(server: Server) -> Iterator[quantd.Client]:
    with quantd.connect(server.address, progress=False, retry_timeout_s=20) as connected:
        yield connected


def weight(seed: int = 1, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, COLS)).astype(np.float32)


def activations(seed: int = 2, tokens: int = TOKENS) -> np.ndarray:
    """Correlated, with strong channels; on the bfloat16 grid, so that streaming is exact."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((COLS, COLS)) / np.sqrt(COLS)
    strength = np.where(rng.random(COLS) < 0.05, 15.0, 1.0)
    x = rng.standard_normal((tokens, COLS)) @ mixing * strength
    return quantd.from_bfloat16(quantd.to_bfloat16(x))


def relative_error(actual: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sum((actual - exact) ** 2) / np.sum(exact**2))


def quantize(
    client: quantd.Client, unique: str, recipe: quantd.Recipe, **more: Any
) -> quantd.QuantizedLayer:
    client.stream_activations(unique, activations(), sample_rows=TOKENS)
    client.seal_statistic(unique)
    layer = quantd.LayerSpec("layer.0", ROWS, COLS, statistic=unique, **more)
    job = client.create_job(recipe, [layer])
    client.upload_weights(job, "layer.0", weight())
    assert client.wait(job, timeout_s=60).state == "SUCCEEDED"
    return client.fetch(job, "layer.0")


RECIPES = [
    quantd.Recipe("mxfp4", "wush"),
    quantd.Recipe("mxfp4", "hadamard", scale_rule="ocp"),
    quantd.Recipe("nvfp4", "wush"),
    quantd.Recipe("nvfp4", "identity", scale_rule="amax"),
    quantd.Recipe("int4", "wus", group_size=64),
    quantd.Recipe("int4", "random", scale_rule="compressed-tensors", seed=7),
    quantd.Recipe("int3", "wush", granularity="row"),
    quantd.Recipe("int2", "hadamard"),
    quantd.Recipe("int8", "identity", scale_rule="gaussian-mse", granularity="row"),
    quantd.Recipe("fp8", "identity"),
    quantd.Recipe("fp8", "hadamard", granularity="block-128x128"),
]


@pytest.mark.parametrize(
    "recipe", RECIPES, ids=lambda r: f"{r.format}-{r.transform}-{r.scale_rule or 'default'}"
)
def test_reports_are_what_the_client_measures(
    client: quantd.Client, unique: str, recipe: quantd.Recipe
) -> None:
    """The sample holds every token here, so both figures can be recomputed from the result."""
    layer = quantize(client, unique, recipe)
    x = activations().astype(np.float64)
    exact = x @ weight().astype(np.float64).T
    weight_only = relative_error(x @ layer.dequantize().astype(np.float64).T, exact)
    reported = layer.report["relative_output_error_weight_only"]
    assert weight_only == pytest.approx(reported, rel=2e-3)
    both = relative_error(layer(x), exact)
    reported = layer.report["relative_output_error_weight_and_activation"]
    assert both == pytest.approx(reported, rel=2e-3)
    assert layer.recipe.format == recipe.format
    assert layer.report["tokens"] == TOKENS
    assert layer.shape == (ROWS, COLS)


def test_transform_leaves_the_exact_layer_unchanged(client: quantd.Client, unique: str) -> None:
    """An 8-bit layer is nearly exact, whatever linear map its inputs go through."""
    layer = quantize(client, unique, quantd.Recipe("int8", "wush"))
    assert layer.transform is not None
    assert layer.transform.shape == (COLS // 32, 32, 32)
    x = activations(9)
    assert relative_error(layer(x, quantize_activations=False), x @ weight().T) < 1e-3


def test_statistic_is_reused_by_other_recipes(client: quantd.Client, unique: str) -> None:
    client.stream_activations(unique, activations())
    sealed = client.seal_statistic(unique)
    assert (sealed.tokens, sealed.cols, sealed.sealed) == (TOKENS, COLS, True)
    for format in ("mxfp4", "nvfp4"):
        spec = quantd.LayerSpec("l", ROWS, COLS, "bf16", statistic=unique)
        job = client.create_job(quantd.Recipe(format, "wush"), [spec])  # type: ignore[arg-type]
        client.upload_weights(job, "l", weight(), dtype="bf16")
        client.wait(job, timeout_s=60)
        assert client.get_report(job, "l")["statistic_digest"] == sealed.digest
    assert unique in {s.name.rsplit("/", 1)[-1] for s in client.list_statistics()}


def test_fusion_group_shares_transform_and_scale(client: quantd.Client, unique: str) -> None:
    client.stream_activations(unique, activations())
    client.seal_statistic(unique)
    specs = [
        quantd.LayerSpec(name, rows, COLS, statistic=unique, fusion_group="qkv")
        for name, rows in (("q", 64), ("k", 32), ("v", 32))
    ]
    job = client.create_job(quantd.Recipe("nvfp4", "wush"), specs)
    for index, spec in enumerate(specs):
        client.upload_weights(job, spec.layer_id, weight(index, spec.rows) * (index + 1))
    client.wait(job, timeout_s=60)
    q, k, v = (client.fetch(job, spec.layer_id) for spec in specs)
    for other in (k, v):
        for tensor in ("input_transform", "weight_global_scale"):
            assert np.array_equal(q.tensors[tensor], other.tensors[tensor])
    assert (q.shape, v.shape) == ((64, COLS), (32, COLS))


def test_moment_goes_in_and_out(client: quantd.Client, unique: str) -> None:
    x = activations()
    moment = quantd.Moment.of(x, sample_rows=100)
    client.import_statistic(unique, moment)
    exported = client.export_statistic(unique)
    assert np.allclose(exported.mean(), moment.mean(), rtol=1e-12, atol=0)
    assert exported.tokens == TOKENS
    assert exported.sample is not None
    assert moment.sample is not None
    # The same tokens; in which order they are kept is the server's business.
    assert sorted(map(tuple, exported.sample)) == sorted(map(tuple, moment.sample))


def test_streamed_moment_equals_the_local_one(client: quantd.Client, unique: str) -> None:
    x = activations()
    client.stream_activations(unique, (x[i : i + 90] for i in range(0, TOKENS, 90)))
    client.seal_statistic(unique)
    mean = client.export_statistic(unique).mean()
    exact = x.astype(np.float64).T @ x / TOKENS
    assert np.linalg.norm(mean - exact) <= 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("kind", ["weighted", "cross-moment", "residual-moment"])
def test_every_kind_equals_the_local_one(client: quantd.Client, unique: str, kind: str) -> None:
    """Streamed in arrays of 90 tokens, exported, and imported again."""
    xhat = activations()
    weights = np.random.default_rng(3).random(TOKENS).astype(np.float32)
    paired = activations(4) if kind == "cross-moment" else activations(4)[:, :ROWS]
    beside: dict[str, Any] = (
        {"token_weights": weights} if kind == "weighted" else {"paired": paired, "kind": kind}
    )
    in_parts = {
        name: value if name == "kind" else [value[i : i + 90] for i in range(0, TOKENS, 90)]
        for name, value in beside.items()
    }
    client.stream_activations(unique, (xhat[i : i + 90] for i in range(0, TOKENS, 90)), **in_parts)
    sealed = client.seal_statistic(unique)
    assert sealed.kind == kind
    assert sealed.paired_cols == (0 if kind == "weighted" else paired.shape[1])
    local = quantd.Moment.of(xhat, **beside)
    exported = client.export_statistic(unique)
    assert exported.kind == kind
    error = np.linalg.norm(exported.mean() - local.mean())
    assert error <= 1e-6 * np.linalg.norm(local.mean())
    client.import_statistic(f"{unique}-again", local)
    again = client.export_statistic(f"{unique}-again")
    assert np.array_equal(again.matrix, local.matrix)
    assert again.weight_sum == local.weight_sum


def test_merged_statistics_count_every_token(client: quantd.Client, unique: str) -> None:
    x = activations()
    for part, rows in (("a", x[:300]), ("b", x[300:])):
        client.stream_activations(f"{unique}-{part}", rows)
        client.seal_statistic(f"{unique}-{part}")
    merged = client.merge_statistics(f"{unique}-ab", [f"{unique}-a", f"{unique}-b"])
    assert merged.tokens == TOKENS
    exact = x.astype(np.float64).T @ x / TOKENS
    mean = client.export_statistic(merged.name).mean()
    assert np.linalg.norm(mean - exact) <= 1e-6 * np.linalg.norm(exact)


def test_block_diagonal_statistic(client: quantd.Client, unique: str) -> None:
    client.stream_activations(unique, activations(), block_size=32)
    assert client.seal_statistic(unique).layout == "block-diagonal"
    job = client.create_job(
        quantd.Recipe("mxfp4", "wush"), [quantd.LayerSpec("l", ROWS, COLS, statistic=unique)]
    )
    client.upload_weights(job, "l", weight())
    client.wait(job, timeout_s=60)
    assert client.export_statistic(unique).matrix.shape == (COLS // 32, 32, 32)


def test_quantize_tensor_inline(client: quantd.Client) -> None:
    x = activations(3, 200)
    layer = client.quantize_tensor(weight(), quantd.Recipe("nvfp4", "wush"), activations=x)
    exact = x @ weight().T
    reported = layer.report["relative_output_error_weight_only"]
    assert relative_error(x @ layer.dequantize().T, exact) == pytest.approx(reported, rel=2e-3)
    plain = client.quantize_tensor(weight(), quantd.Recipe("mxfp4"))
    assert plain.report["relative_output_error_weight_and_activation"] is None
    assert relative_error(plain.dequantize(), weight()) < 0.05


def test_server_info_and_estimate(client: quantd.Client) -> None:
    info = client.get_server_info()
    assert info.tenant == client.tenant == "default"
    assert {"mxfp4", "nvfp4", "int4", "int8", "fp8"} <= set(info.formats)
    assert info.limits["max_chunk_bytes"] >= 1 << 20
    spec = quantd.LayerSpec("l", 4096, 4096)
    estimate = client.estimate_job(quantd.Recipe("mxfp4"), [spec])
    assert estimate.output_bytes >= 4096 * 4096 / 2


def test_bad_recipe_names_the_field(client: quantd.Client) -> None:
    with pytest.raises(quantd.InvalidArgument) as raised:
        client.create_job(quantd.Recipe("mxfp4"), [quantd.LayerSpec("l", 8, 33)])
    assert "33" in str(raised.value)
    assert raised.value.field_violations
    assert raised.value.reason


def test_missing_things_are_not_found(client: quantd.Client) -> None:
    with pytest.raises(quantd.NotFound):
        client.get_job("no-such-job")
    with pytest.raises(quantd.NotFound):
        client.get_statistic("no-such-statistic")
    with pytest.raises(quantd.PermissionDenied):
        client.get_job("tenants/other/jobs/j")


def test_nan_is_refused(client: quantd.Client, unique: str) -> None:
    bad = activations()
    bad[17, 3] = np.nan
    with pytest.raises(quantd.InvalidArgument):
        client.stream_activations(unique, bad)
    job = client.create_job(quantd.Recipe("mxfp4"), [quantd.LayerSpec("l", ROWS, COLS)])
    bad_weight = weight()
    bad_weight[2, 2] = np.inf
    with pytest.raises(quantd.InvalidArgument):
        client.upload_weights(job, "l", bad_weight)
    client.delete_job(job)


def test_unfinished_layer_has_no_report(client: quantd.Client) -> None:
    job = client.create_job(quantd.Recipe("mxfp4"), [quantd.LayerSpec("l", ROWS, COLS)])
    with pytest.raises(quantd.FailedPrecondition):
        client.get_report(job, "l")
    cancelled = client.cancel_job(job)
    assert cancelled.state == "CANCELLED"
    with pytest.raises(quantd.Cancelled):
        client.wait(job, timeout_s=10)
    client.delete_job(job)


def test_wait_times_out(client: quantd.Client) -> None:
    job = client.create_job(quantd.Recipe("mxfp4"), [quantd.LayerSpec("l", ROWS, COLS)])
    with pytest.raises(quantd.DeadlineExceeded):
        client.wait(job, timeout_s=0.2)
    assert client.get_job(job).state == "ACCEPTING"
    client.delete_job(job)


def test_stream_and_upload_outlive_a_killed_server(
    start_server: Callable[..., Server],
) -> None:
    """kill -9 in the middle: the calls go on when the server is back, and nothing counts twice."""
    server = start_server()
    port = server.address.rsplit(":", 1)[1]
    server.flags = [f"--listen=127.0.0.1:{port}"]
    x = activations(5, 4000)
    seen = threading.Event()

    def slowly() -> Iterator[np.ndarray]:
        for start in range(0, len(x), 40):
            if start == 2000:
                seen.set()
            time.sleep(0.01)
            yield x[start : start + 40]

    failures: list[BaseException] = []

    def stream() -> None:
        try:
            with quantd.connect(server.address, progress=False, retry_timeout_s=30) as client:
                client.stream_activations("survivor", slowly())
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=stream)
    with quantd.connect(server.address, progress=False, retry_timeout_s=30) as client:
        job = client.create_job(
            quantd.Recipe("mxfp4", "wush"),
            [quantd.LayerSpec("l", ROWS, COLS, statistic="survivor")],
        )
        writer.start()
        assert seen.wait(30)
        server.kill()
        server.restart()
        client.upload_weights(job, "l", weight())
        writer.join(60)
        assert not writer.is_alive()
        assert not failures
        sealed = client.seal_statistic("survivor")
        assert sealed.tokens == len(x)
        exact = x.astype(np.float64).T @ x / len(x)
        mean = client.export_statistic("survivor").mean()
        assert np.linalg.norm(mean - exact) <= 1e-6 * np.linalg.norm(exact)
        assert client.wait(job, timeout_s=60).state == "SUCCEEDED"
        eventually(lambda: client.get_job(job).finished_layers == 1, "the layer is counted")
