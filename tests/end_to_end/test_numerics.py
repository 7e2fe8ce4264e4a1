"""The whole way by raw gRPC, and every figure recomputed in NumPy from the stored tensors.

One job has a layer for every format and transform. Nothing of the server's arithmetic is used:
the tensors are decoded as docs/formats.md says, activations are quantized by an own rounding, and
both errors of the report must come out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from quantd.v1 import calibration_pb2, jobs_pb2, recipe_pb2

from . import number_formats
from .server_process import Server
from .wire import (
    BF16,
    StoredTensor,
    activations_like,
    create_job,
    error_report,
    export_statistic,
    gaussian,
    layer,
    result_tensors,
    rounded_to,
    sealed_statistic,
    upload,
    wait_for_job,
)

ROWS, COLS, TOKENS = 80, 256, 400
Recipe = recipe_pb2.Recipe

FORMATS: dict[str, dict[str, int]] = {
    "mxfp4": {"format": recipe_pb2.MXFP4},
    "mxfp4-ocp": {"format": recipe_pb2.MXFP4, "scale_rule": recipe_pb2.OCP},
    "mxfp4-noclip": {"format": recipe_pb2.MXFP4, "scale_rule": recipe_pb2.NOCLIP},
    "nvfp4": {"format": recipe_pb2.NVFP4},
    "nvfp4-amax": {"format": recipe_pb2.NVFP4, "scale_rule": recipe_pb2.AMAX},
    "int4": {"format": recipe_pb2.INT4},
    "int4-64-gaussian": {
        "format": recipe_pb2.INT4,
        "group_size": 64,
        "scale_rule": recipe_pb2.GAUSSIAN_MSE,
    },
    "int4-row-compressed": {
        "format": recipe_pb2.INT4,
        "granularity": recipe_pb2.ROW,
        "scale_rule": recipe_pb2.COMPRESSED_TENSORS,
    },
    "int8": {"format": recipe_pb2.INT8},
    "int8-row-gaussian": {
        "format": recipe_pb2.INT8,
        "granularity": recipe_pb2.ROW,
        "scale_rule": recipe_pb2.GAUSSIAN_MSE,
    },
    "fp8": {"format": recipe_pb2.FP8},
    "fp8-128x128": {"format": recipe_pb2.FP8, "granularity": recipe_pb2.BLOCK_128X128},
}
TRANSFORMS = {
    name: getattr(recipe_pb2, name.upper())
    for name in ("identity", "hadamard", "random", "wus", "wush")
}
CASES = [f"{fmt}.{transform}" for fmt in FORMATS for transform in TRANSFORMS] + [
    "mxfp4.wush.conditional",
    "int8.wus.conditional",
    *(f"{fmt}.{transform}.gptq" for fmt in FORMATS for transform in TRANSFORMS),
    "mxfp4.wush.gptq-conditional-descending",
    "nvfp4.identity.gptq-act_order",
]
OPTIONS: dict[str, dict[str, Any]] = {
    "conditional": {"solver": recipe_pb2.CONDITIONAL},
    "gptq": {"method": recipe_pb2.GPTQ},
    "gptq-conditional-descending": {
        "method": recipe_pb2.GPTQ,
        "solver": recipe_pb2.CONDITIONAL,
        "gptq": recipe_pb2.Gptq(order=recipe_pb2.DESCENDING),
    },
    "gptq-act_order": {
        "method": recipe_pb2.GPTQ,
        "gptq": recipe_pb2.Gptq(act_order=True),
    },
}


class Run:
    """One finished job with a layer for every case, and what the client sent."""

    def __init__(self, server: Server):
        api = server.api
        self.weight = rounded_to(gaussian(ROWS, COLS, 61), BF16)
        self.activations = rounded_to(activations_like(TOKENS, COLS, 62), BF16)
        self.moment = self.activations.T @ self.activations / TOKENS
        statistic = sealed_statistic(api, "numerics", self.activations, BF16, sample_rows=512)
        self.sample = export_statistic(api, statistic.name).sample()
        layers = []
        for case in CASES:
            fmt, transform, *option = case.split(".")
            options = OPTIONS[option[0]] if option else {}
            recipe = Recipe(**FORMATS[fmt], transform=TRANSFORMS[transform], seed=3, **options)
            layers.append(layer(case, ROWS, COLS, BF16, statistic=statistic.name, recipe=recipe))
        self.job = create_job(api, layers)
        for described in self.job.layers:
            upload(api, described.name, self.weight, BF16)
        ended = wait_for_job(api, self.job.name, 60)
        failed = {x.layer_id: x.error.message for x in ended.layers if x.error.code}
        assert ended.state == jobs_pb2.SUCCEEDED, failed
        self.recipes = {x.layer_id: x.recipe for x in ended.layers}
        self.tensors = {case: result_tensors(api, self.job.name, case) for case in CASES}
        self.reports = {case: error_report(api, self.job.name, case) for case in CASES}


@pytest.fixture(scope="module")
def run(server: Server) -> Run:
    return Run(server)


def _transform(tensors: dict[str, StoredTensor]) -> np.ndarray | None:
    """C/B x B x B, or None for the identity."""
    if "input_transform" not in tensors:
        return None
    return number_formats.dense(tensors["input_transform"])


def _apply(transform: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """x' = T x for every block of every row."""
    if transform is None:
        return rows
    blocks, size, _ = transform.shape
    parts = rows.reshape(len(rows), blocks, size)
    return np.einsum("bij,tbj->tbi", transform, parts).reshape(rows.shape)


def _relative(delta: np.ndarray, reference: np.ndarray, moment: np.ndarray) -> float:
    """tr(D M D^T) / tr(W M W^T)."""
    return float(
        np.einsum("ri,ij,rj->", delta, moment, delta)
        / np.einsum("ri,ij,rj->", reference, moment, reference)
    )


@pytest.mark.parametrize("case", CASES)
def test_reported_errors_are_those_of_the_stored_tensors(run: Run, case: str) -> None:
    tensors, report, recipe = run.tensors[case], run.reports[case], run.recipes[case]
    decoded = number_formats.decode_weight(tensors, recipe, ROWS, COLS)
    transform = _transform(tensors)
    # W' x' = W' T x: in the inputs' own coordinates the stored weight is T^T w' for every row.
    seen_by_inputs = _apply(None if transform is None else transform.transpose(0, 2, 1), decoded)
    weight_only = _relative(seen_by_inputs - run.weight, run.weight, run.moment)
    assert report["relative_output_error_weight_only"] == pytest.approx(weight_only, rel=1e-5)

    quantized = number_formats.quantize_activations(_apply(transform, run.sample), recipe)
    exact = run.sample @ run.weight.T
    both = float(((quantized @ decoded.T - exact) ** 2).sum() / (exact**2).sum())
    assert report["relative_output_error_weight_and_activation"] == pytest.approx(both, rel=2e-3)

    for kind in ("weight_only", "weight_and_activation"):
        error = report[f"relative_output_error_{kind}"]
        assert report[f"sqnr_db_{kind}"] == pytest.approx(-10 * np.log10(error), abs=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if ".gptq" not in case])
def test_stored_codes_are_the_nearest(run: Run, case: str) -> None:
    """The transformed weight, rounded here with the stored scales, gives the stored codes."""
    tensors, recipe = run.tensors[case], run.recipes[case]
    transform = _transform(tensors)
    weight = run.weight
    if transform is not None:
        # w' = T^-T w
        weight = _apply(np.linalg.inv(transform).transpose(0, 2, 1), run.weight)
    codes = number_formats.stored_codes(tensors, recipe, ROWS, COLS)
    expected = number_formats.round_with_scales(weight, tensors, recipe)
    assert np.mean(codes == expected) >= 0.999
    scales = number_formats.stored_scales(tensors, recipe)
    if recipe.scale_rule != recipe_pb2.MSE:  # which is chosen by search
        own = number_formats.scales_of(weight, recipe)
        assert np.mean(np.isclose(scales, own, rtol=1e-6)) >= 0.99


@pytest.mark.parametrize("case", [case for case in CASES if ".identity" not in case])
def test_transform_is_what_its_name_says(run: Run, case: str) -> None:
    transform = _transform(run.tensors[case])
    assert transform is not None
    blocks, size, _ = transform.shape
    assert blocks * size == COLS
    kind = case.split(".")[1]
    if kind in ("hadamard", "random"):
        gram = np.einsum("bij,bkj->bik", transform, transform)
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(size), gram.shape), atol=1e-5)
    if kind == "hadamard":
        np.testing.assert_allclose(np.abs(transform), 1 / np.sqrt(size), rtol=1e-6)
    if kind in ("wus", "wush") and "conditional" not in case:
        # Tx Mx Tx^T = Tw Mw Tw^T up to the damping, and with the Hadamard factor every channel of
        # the block has the same power.
        for block in range(blocks):
            part = slice(block * size, (block + 1) * size)
            t = transform[block]
            power = np.diag(t @ run.moment[part, part] @ t.T)
            if kind == "wush":
                assert power.std() / power.mean() < 0.2


@pytest.mark.parametrize("fmt", ["mxfp4", "nvfp4", "int4"])
def test_data_aware_transform_helps(run: Run, fmt: str) -> None:
    """On inputs with outlier channels: WUSH far below both others, Hadamard below identity where
    groups are large."""
    error = {
        name: run.reports[f"{fmt}.{name}"]["relative_output_error_weight_and_activation"]
        for name in ("identity", "hadamard", "wush")
    }
    assert error["wush"] < 0.8 * min(error["hadamard"], error["identity"]), error
    if fmt == "mxfp4":
        assert error["hadamard"] <= error["identity"], error


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_gptq_is_below_round_to_nearest(run: Run, fmt: str, transform: str) -> None:
    gptq, rtn = run.reports[f"{fmt}.{transform}.gptq"], run.reports[f"{fmt}.{transform}"]
    assert gptq["outcome"] == "EXACT"
    assert gptq["damping"] == 0.01
    figure = "relative_output_error_weight_only"
    assert gptq[figure] < rtn[figure]


@pytest.mark.parametrize("case", CASES)
def test_baselines_are_those_of_the_other_layers(run: Run, case: str) -> None:
    """Each report compares itself with plain and with Hadamard RTN: layers of this very job."""
    fmt = case.split(".")[0]
    recipe = run.recipes[case]
    for baseline in ("identity", "hadamard"):
        other = f"{fmt}.{baseline}"
        if run.recipes[other].transform_block_size != recipe.transform_block_size:
            continue
        for kind in ("weight_only", "weight_and_activation"):
            name = f"relative_output_error_{kind}"
            assert run.reports[case][f"baseline_{baseline}_rtn_{name}"] == pytest.approx(
                run.reports[other][name], rel=1e-4
            )


@pytest.mark.parametrize("case", CASES)
def test_bits_are_counted_from_the_stored_tensors(run: Run, case: str) -> None:
    tensors, report = run.tensors[case], run.reports[case]
    counted: dict[str, Any] = {
        "codes": len(tensors["weight_packed"].data),
        "scales": len(tensors["weight_scale"].data),
        "transform": len(tensors["input_transform"].data) if "input_transform" in tensors else 0,
    }
    for name, size in counted.items():
        assert report[f"bits_per_weight_{name}"] == pytest.approx(
            8 * size / (ROWS * COLS), abs=0.01
        ), name
    assert report["bits_per_weight"] == pytest.approx(
        8 * sum(counted.values()) / (ROWS * COLS), abs=0.02
    )


def test_block_diagonal_statistic_gives_the_same_transform(server: Server, run: Run) -> None:
    """The diagonal blocks are all that RTN with the marginal solver reads."""
    blocks = sealed_statistic(
        server.api,
        "numerics-blocks",
        run.activations,
        BF16,
        sample_rows=512,
        layout=calibration_pb2.BLOCK_DIAGONAL,
        block_size=32,
    )
    job = create_job(
        server.api,
        [layer("w", ROWS, COLS, BF16, statistic=blocks.name)],
        Recipe(format=recipe_pb2.MXFP4, transform=recipe_pb2.WUSH),
    )
    upload(server.api, job.layers[0].name, run.weight, BF16)
    assert wait_for_job(server.api, job.name).state == jobs_pb2.SUCCEEDED
    tensors = result_tensors(server.api, job.name, "w")
    expected = run.tensors["mxfp4.wush"]
    np.testing.assert_allclose(
        number_formats.dense(tensors["input_transform"]),
        number_formats.dense(expected["input_transform"]),
        rtol=1e-4,
        atol=1e-6,
    )
    assert tensors["weight_packed"] == expected["weight_packed"]
    report = error_report(server.api, job.name, "w")
    assert report["relative_output_error_weight_and_activation"] == pytest.approx(
        run.reports["mxfp4.wush"]["relative_output_error_weight_and_activation"], rel=1e-4
    )
