"""The reference against the golden data: what the C++ library is later held to."""

import json
import pathlib

import numpy as np
import pytest
import watersic_reference as ref
from wush_reference import read_safetensors

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "watersic_golden.safetensors"
TENSORS, METADATA = read_safetensors(GOLDEN)
SPEC = json.loads(METADATA["spec"])
CASES = sorted(SPEC)


def golden(case, name):
    tensor = TENSORS.get(f"{case}/{name}")
    return None if tensor is None else tensor.astype(np.float64)


def solved(case):
    names = ("weight", "second_moment", "second_moment_hat", "cross_moment", "residual_moment")
    problem = ref.make_problem(*(golden(case, name) for name in names))
    # The published rate search estimates rates on its own terms; its result is given.
    used = SPEC[case]["binary_search_target_used"]
    return problem, ref.watersic(problem, used or SPEC[case]["target_rate"])


@pytest.mark.parametrize("case", CASES)
def test_reproduces_the_golden_case(case):
    problem, got = solved(case)
    spec = SPEC[case]
    assert np.array_equal(np.flatnonzero(~problem.alive), spec["dead"])
    assert np.array_equal(got.codes, golden(case, "codes"))
    np.testing.assert_allclose(got.alpha, golden(case, "spacing"), rtol=1e-12)
    shrunk = golden(case, "spacing_shrunk")
    np.testing.assert_allclose(got.gamma * got.alpha, shrunk, rtol=1e-4, atol=1e-7 * shrunk.max())
    np.testing.assert_allclose(got.t, golden(case, "row_scale"), rtol=1e-8)
    np.testing.assert_allclose(got.g, golden(case, "col_scale"), atol=1e-8)
    np.testing.assert_allclose(got.w_hat, golden(case, "reconstructed"), atol=1e-8)
    assert got.loss == pytest.approx(spec["loss"], rel=1e-9)
    assert got.entropy == pytest.approx(spec["entropy_bits"], abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_rescaling_lowers_the_loss(case):
    problem, got = solved(case)
    before = ref.loss(problem, got.codes * got.alpha * got.gamma)
    after = ref.loss(problem, got.w_hat[:, problem.alive])
    assert after < before


def test_waterfilling_of_a_flat_spectrum_is_the_gaussian_limit():
    assert ref.waterfilling_rate(2.0, np.ones(7), 2.0 * 2.0**-6) == pytest.approx(3.0)
    assert ref.waterfilling_rate(2.0, np.ones(7), 2.5) == 0.0


def test_waterfilling_meets_its_distortion():
    rng = np.random.default_rng(5)
    eigenvalues = rng.exponential(size=40) ** 3
    for tau in (1e-4, 0.1, 3.0):
        distortion = np.mean(np.minimum(eigenvalues, tau))
        want = np.mean(0.5 * np.log2(np.maximum(1, eigenvalues / tau)))
        assert ref.waterfilling_rate(1.0, eigenvalues, distortion) == pytest.approx(want)


@pytest.mark.parametrize("kind", ("white", "graded", "correlated"))
def test_gap_to_the_limit_is_that_of_the_cubic_lattice(kind):
    """Gaussian weights at high rate: 0.5 log2(2 pi e / 12) = 0.2546 bit, whatever the moment."""
    rng = np.random.default_rng(11)
    n, rows = 256, 1024
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0]
    m = {
        "white": np.eye(n),
        "graded": basis @ np.diag(np.exp(np.linspace(0, -4, n))) @ basis.T,
        "correlated": 0.9 ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))),
    }[kind]
    w = rng.standard_normal((rows, n))
    problem = ref.make_problem(w, m)
    got = ref.watersic(problem, 4.0)
    limit = ref.waterfilling_rate(np.mean(w**2), np.linalg.eigvalsh(m), got.loss)
    assert ref.class_entropy(got.codes, 16) - limit == pytest.approx(0.2546, abs=0.01)


def test_one_table_for_all_columns_is_far_from_the_limit():
    """Why columns are coded in classes: r2.0 loses half a bit to a joint table."""
    codes = TENSORS["r2.0/codes"]
    assert ref.class_entropy(codes, 16) < ref.entropy(codes) - 0.5
