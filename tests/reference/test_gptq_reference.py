"""The GPTQ reference against the golden data and against the textbook recursion."""

import json
import pathlib

import gptq_reference as ref
import numpy as np
import pytest
import wush_reference as wush

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "wush_golden.safetensors"
TENSORS, METADATA = wush.read_safetensors(GOLDEN)
SPEC = json.loads(METADATA["spec"])
CASES = sorted(SPEC)
FORMATS = ("mxfp4", "nvfp4")
TRANSFORMS = ("identity", "hadamard", "wus", "wush")
# As the published code had them: a constant global for NVFP4.
PUBLISHED_SCALES = {"mxfp4": ref.mxfp4_scales, "nvfp4": ref.nvfp4_scales(10.0, "amax")}


def inputs(case):
    names = ("weight", "second_moment")
    return tuple(TENSORS[f"{case}/{name}"].astype(np.float64) for name in names)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_descending_codes_given_the_golden_transform(case, fmt, transform):
    w, m = inputs(case)
    key = f"{case}/{fmt}.{transform}.gptq"
    got = ref.gptq(
        w,
        m,
        wush.BLOCK[fmt],
        PUBLISHED_SCALES[fmt],
        ref.given(TENSORS[key + ".transform"]),
        descending=True,
    )
    assert np.mean(got.codes == wush.unpack_nibbles(TENSORS[key + ".codes"])) >= 0.995
    assert np.mean(got.scales == TENSORS[key + ".scales"]) >= 0.995
    want = SPEC[case]["results"][f"{fmt}.{transform}.gptq"]["rel_output_mse_weight_only"]
    assert wush.weight_only_error(w, m, got.dequantized) == pytest.approx(want, rel=1e-3)


# With a Hadamard matrix the singular vectors' signs, which are free, change the rounding errors and
# with them the next block's weights; without it they only change signs.
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("transform", ("wus", "wush"))
def test_conditional_solver_reproduces_the_golden_gram(case, fmt, transform):
    w, m = inputs(case)
    want = TENSORS[f"{case}/{fmt}.{transform}.gptq.transform"].astype(np.float64)
    solve = ref.conditional(transform == "wush")
    worst = 0.0

    def compared(b, own, hessian):
        nonlocal worst
        got = solve(b, own, hessian)
        gram = want[b].T @ want[b]
        worst = max(worst, np.linalg.norm(got.T @ got - gram) / np.linalg.norm(gram))
        return want[b]

    ref.gptq(w, m, wush.BLOCK[fmt], PUBLISHED_SCALES[fmt], compared, descending=True)
    assert worst <= 1e-6


def correlated(rows=24, cols=96, tokens=300, seed=5):
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((cols, cols)) / np.sqrt(cols) + np.eye(cols)
    x = rng.standard_normal((tokens, cols)) @ mix * np.exp(rng.standard_normal(cols))
    return rng.standard_normal((rows, cols)), x.T @ x / tokens


def textbook(w, m, block):
    """Frantar et al. 2022, columns from first to last, without any factorization."""
    w, h = w.copy(), ref.damped(m)
    codes = np.zeros(w.shape, np.uint8)
    for c in range(w.shape[1]):
        if c % block == 0:
            _, step = ref.mxfp4_scales(w[:, c : c + block])
        codes[:, c], value = ref.round_column(w[:, c], step)
        inverse = np.linalg.inv(h[c:, c:])
        w[:, c:] -= np.outer((w[:, c] - value) / inverse[0, 0], inverse[0])
    return codes


def test_ascending_is_the_textbook_recursion():
    w, m = correlated()
    got = ref.gptq(w, m, 32, ref.mxfp4_scales, lambda b, own, h: np.eye(32))
    assert np.mean(got.codes == textbook(w, m, 32)) == 1.0


@pytest.mark.parametrize("descending", (False, True))
@pytest.mark.parametrize("transform", ("identity", "hadamard", "wush", "conditional"))
def test_error_is_below_round_to_nearest(descending, transform):
    w, m = correlated()
    solve = {
        "identity": lambda b, own, h: np.eye(32),
        "hadamard": ref.hadamard(32),
        "wush": ref.marginal(m, 32, 1e-2),
        "conditional": ref.conditional(),
    }[transform]
    got = ref.gptq(w, m, 32, ref.mxfp4_scales, solve, descending)
    rounded = wush.quantize_mxfp4(wush.apply_blocks(w, wush.weight_transform(got.transform)))
    rtn = wush.transform_back(rounded.values, got.transform)
    assert wush.weight_only_error(w, m, got.dequantized) < wush.weight_only_error(w, m, rtn)


@pytest.mark.parametrize("descending", (False, True))
def test_diagonal_moment_is_round_to_nearest(descending):
    w, m = correlated()
    got = ref.gptq(
        w, np.diag(np.diag(m)), 32, ref.mxfp4_scales, lambda b, own, h: np.eye(32), descending
    )
    want = wush.quantize_mxfp4(w)
    assert np.array_equal(got.decoded, want.values)
    assert np.array_equal(got.scales, want.scales)


def published_gptaq(w, hat, cross, block):
    """Algorithm 1 of arXiv 2504.02692, with the sign of P for E|W x - What xhat|^2."""
    w = w.copy()
    lower = np.linalg.cholesky(np.linalg.inv(ref.damped(hat)))
    p = np.triu((cross - hat) @ lower, 1) @ lower.T
    out = np.zeros_like(w)
    for c in range(w.shape[1]):
        if c % block == 0:
            _, step = ref.mxfp4_scales(w[:, c : c + block])
        before = w[:, c].copy()
        _, out[:, c] = ref.round_column(before, step)
        w[:, c:] -= np.outer((before - out[:, c]) / lower[c, c], lower[c:, c])
        w[:, c + 1 :] += np.outer(before, p[c, c + 1 :])
    return out


@pytest.mark.parametrize("drift", (0.05, 0.1, 0.3))
def test_whole_drift_target_is_below_gptaqs_masked_one(drift):
    rng = np.random.default_rng(3)
    rows, cols, tokens = 32, 96, 700
    w = rng.standard_normal((rows, cols))
    mix = rng.standard_normal((cols, cols)) / np.sqrt(cols)
    x = rng.standard_normal((tokens, cols)) @ (mix + np.eye(cols))
    x_hat = x + drift * (rng.standard_normal(x.shape) + x @ rng.standard_normal(mix.shape) / 10)
    hat, cross = x_hat.T @ x_hat / tokens, x.T @ x_hat / tokens

    def loss(dequantized):
        return np.sum((x @ w.T - x_hat @ dequantized.T) ** 2)

    def solve(target):
        identity = np.eye(32)
        return ref.gptq(target, hat, 32, ref.mxfp4_scales, lambda b, own, h: identity).dequantized

    plain = loss(solve(w))
    masked = loss(published_gptaq(w, hat, cross, 32))
    assert loss(solve(ref.drift_target(w, hat, cross))) < masked < plain
    assert np.array_equal(ref.drift_target(w, hat, hat), w)
