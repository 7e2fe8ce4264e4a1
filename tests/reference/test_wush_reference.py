"""The reference against the golden data: what the C++ library is later held to."""

import json
import pathlib

import numpy as np
import pytest
import wush_reference as ref

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "wush_golden.safetensors"
TENSORS, METADATA = ref.read_safetensors(GOLDEN)
SPEC = json.loads(METADATA["spec"])
CASES = sorted(SPEC)
FORMATS = ("mxfp4", "nvfp4")
TRANSFORMS = ("identity", "hadamard", "wus", "wush")
PUBLISHED_GLOBAL = {"mxfp4": 3.0, "nvfp4": 10.0}


def inputs(case):
    names = ("weight", "second_moment", "activations")
    return tuple(TENSORS[f"{case}/{name}"].astype(np.float64) for name in names)


def golden(case, fmt, transform):
    key = f"{case}/{fmt}.{transform}.rtn"
    figures = SPEC[case]["results"][f"{fmt}.{transform}.rtn"]
    return (
        TENSORS[key + ".transform"],
        ref.unpack_nibbles(TENSORS[key + ".codes"]),
        TENSORS[key + ".scales"],
        figures["rel_output_mse_weight_only"],
        figures["rel_output_mse_weight_and_activation"],
    )


@pytest.mark.parametrize("case", CASES)
def test_second_moment_is_the_uncentred_mean(case):
    _, m, x = inputs(case)
    np.testing.assert_allclose(x.T @ x / len(x), m, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_codes_scales_and_errors_given_the_golden_transform(case, fmt, transform):
    w, m, x = inputs(case)
    t, codes, scales, weight_only, both = golden(case, fmt, transform)
    got = ref.rtn(w, m, x, t, fmt, fixed_global=PUBLISHED_GLOBAL[fmt])
    assert np.array_equal(got.weight.scales, scales)
    if transform in ("wus", "wush"):
        assert np.array_equal(got.weight.codes, codes)
        assert got.weight_only == pytest.approx(weight_only, rel=1e-5)
        if np.isfinite(both):
            assert got.weight_and_activation == pytest.approx(both, rel=1e-5)
    else:  # exact ties of weights on a bf16 grid
        assert np.mean(got.weight.codes == codes) >= 0.995
        assert got.weight_only == pytest.approx(weight_only, rel=0.02)
    assert np.isfinite(got.weight_and_activation)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("transform", ("wus", "wush"))
def test_conditional_solver_reproduces_the_golden_gram(case, fmt, transform):
    w, m, _ = inputs(case)
    want = golden(case, fmt, transform)[0].astype(np.float64)
    got = ref.conditional(w, m, ref.BLOCK[fmt], transform == "wush")
    for b in range(len(want)):
        gram = want[b].T @ want[b]
        assert np.linalg.norm(got[b].T @ got[b] - gram) <= 1e-6 * np.linalg.norm(gram)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_default_rules_are_within_two_percent_of_golden_or_lower(case, fmt, transform):
    w, m, x = inputs(case)
    t, _, _, weight_only, both = golden(case, fmt, transform)
    got = ref.rtn(w, m, x, t, fmt)
    assert got.weight_only <= 1.02 * weight_only
    assert np.isfinite(got.weight_and_activation)
    if np.isfinite(both):
        assert got.weight_and_activation <= 1.02 * both


def test_marginal_auto_beats_golden():
    ratios = []
    for case in CASES:
        w, m, x = inputs(case)
        for fmt in FORMATS:
            want = golden(case, fmt, "wush")[4]
            ratios.append(ref.marginal_auto(w, m, x, fmt, True)[1].weight_and_activation / want)
    assert max(ratios) <= 1.02
    assert np.exp(np.mean(np.log(ratios))) <= 0.90


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("kind", ("few_rows", "rank_deficient", "zero_blocks", "all_zero", "tiny"))
def test_degenerate_layers_give_balanced_finite_transforms(fmt, kind):
    rng = np.random.default_rng(7)
    block = ref.BLOCK[fmt]
    w = rng.standard_normal((5 if kind == "few_rows" else 40, 64))
    x = rng.standard_normal((80, 64))
    if kind == "rank_deficient":
        w, x = w[:, :3] @ rng.standard_normal((3, 64)), x[:, :2] @ rng.standard_normal((2, 64))
    if kind == "zero_blocks":
        w[:, :block], x[:, block : 2 * block] = 0, 0
    if kind == "all_zero":
        w, x = 0 * w, 0 * x
    if kind == "tiny":
        w, x = w * 1e-30, x * 1e-20
    m = x.T @ x / len(x)
    for damping in (1e-4, 1e-1):
        t = ref.marginal(w, m, block, damping, True)
        assert np.all(np.isfinite(t.astype(np.float32)))
        tw = ref.weight_transform(t)
        gram = tw.transpose(0, 2, 1) @ t
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(block), gram.shape), atol=1e-6)
    t = ref.conditional(w, m, block, True)
    assert np.all(np.isfinite(t.astype(np.float32))) and np.all(np.linalg.cond(t) < 1e8)


def test_balance_identities():
    rng = np.random.default_rng(3)
    w, x = (
        rng.standard_normal((50, 32)) * np.exp(rng.standard_normal(32)),
        rng.standard_normal((90, 32)) ** 3,
    )
    m, damping = x.T @ x / 90, 1e-3
    mw = w.T @ w / 50
    t = ref.marginal(w, m, 32, damping, True)[0]
    tw = np.linalg.inv(t).T
    a = tw @ (mw + damping * np.trace(mw) / 32 * np.eye(32)) @ tw.T
    b = t @ (m + damping * np.trace(m) / 32 * np.eye(32)) @ t.T
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9 * np.abs(a).max())
    np.testing.assert_allclose(np.diag(a), np.trace(a) / 32, rtol=1e-8)


def test_element_codecs_round_trip_and_break_ties_to_even():
    assert np.array_equal(
        ref.encode_e2m1(ref.decode_e2m1(np.arange(16, dtype=np.uint8))), np.arange(16)
    )
    midpoints = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0])
    assert np.array_equal(ref.encode_e2m1(midpoints), [0, 2, 2, 4, 4, 6, 6, 7])
    codes = np.array([c for c in range(256) if c & 127 != 127], np.uint8)
    assert np.array_equal(ref.encode_e4m3(ref.decode_e4m3(codes)), codes)
    assert np.array_equal(ref.encode_e4m3(np.array([1e9, 2.0**-10, 1.0625])), [126, 0, 56])
