"""Float64 NumPy reference of GPTQ with block transforms (docs/numerics.md, section 8).

Read with wush_reference: W is R x C, M is C x C, a transform is (C/B) x B x B.

One factorization serves both orders. Arrange the columns so that they are processed from last to
first: as they are (`descending`, the published code of WUSH) or reversed (`ascending`, its paper).
With the damped, arranged moment M = K D K^T, K unit lower triangular by units and D block diagonal,

    tr(dW M dW^T) = sum over units g of || W_g - What_g + sum_{j > g} (W_j - What_j) K_jg ||^2_{D_g}

so that unit g is solved as a layer of its own: weights W'_g = W_g + sum_j (W_j - What_j) K_jg,
moment D_g. In the paper's terms D_g = (L_ii L_ii^T)^-1 with L the Cholesky factor of M^-1; in the
published code's, D_g = A_gg^T A_gg with A^T A = M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import wush_reference as wush

DAMPING = 1e-2


def damped(m: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """M + damping * mean diagonal * I. A dead input (M_ii = 0) counts like an average one."""
    diagonal = np.diag(m)
    mean = diagonal.mean() or 1.0
    return m + np.diag(np.where(diagonal > 0, 0.0, mean) + damping * mean)


def block_ldl(m: np.ndarray, units: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """K and the D_g of M = K D K^T for consecutive units of columns (index arrays)."""
    lower = np.linalg.cholesky(m)
    k = np.zeros_like(m)
    d = []
    for unit in units:
        own = lower[np.ix_(unit, unit)]
        k[:, unit] = lower[:, unit] @ np.linalg.inv(own)
        d.append(own @ own.T)
    return k, d


def drift_target(w, hat, cross, damping: float = DAMPING) -> np.ndarray:
    """W* that minimizes E|W x - W* xhat|^2, for hat = E[xhat xhat^T] and cross = E[x xhat^T]: what
    GPTQ approximates when its inputs drift (GPTAQ, arXiv 2504.02692, without its masks)."""
    return w + w @ (cross - hat) @ np.linalg.inv(damped(hat, damping))


@dataclass
class Gptq:
    transform: np.ndarray  # (C/B) x B x B, float32 values
    codes: np.ndarray  # R x C
    scales: np.ndarray  # R x C/group, bytes
    decoded: np.ndarray  # R x C, transformed space
    dequantized: np.ndarray  # R x C


# Group scales of transformed weights (rows x group), and (codes, values) of columns given them.
Scales = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def mxfp4_scales(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    q = wush.quantize_mxfp4(z)
    return q.scales[:, 0], np.exp2(q.scales[:, 0].astype(float) - 127) / 3


def nvfp4_scales(global_scale: float, rule: str = "mse") -> Scales:
    def scales(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        q = wush.quantize_nvfp4(z, global_scale, rule)
        return q.scales[:, 0], wush.decode_e4m3(q.scales[:, 0]) / global_scale

    return scales


def round_column(z: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes = np.where(step > 0, wush.encode_e2m1(z / np.where(step > 0, step, 1)), 0)
    codes = codes.astype(np.uint8)
    return codes, wush.decode_e2m1(codes) * step


def solve_unit(z: np.ndarray, d: np.ndarray, step: np.ndarray, last_first: bool):
    """GPTQ on one group: z (R x B) against D (B x B), steps given. Codes and values."""
    order = np.arange(len(d))
    order = order if last_first else order[::-1]  # processed from last to first
    lower = np.linalg.cholesky(d[np.ix_(order, order)])
    k = lower / np.diag(lower)
    codes, values = np.zeros(z.shape, np.uint8), np.zeros(z.shape)
    error = np.zeros(z.shape)  # in the arranged order
    for i in range(len(d) - 1, -1, -1):
        c = order[i]
        updated = z[:, c] + error[:, i + 1 :] @ k[i + 1 :, i]
        codes[:, c], values[:, c] = round_column(updated, step)
        error[:, i] = z[:, c] - values[:, c]
    if last_first:  # the published code writes every zero as -0
        codes[codes == 0] = 8
    return codes, values


def gptq(
    w: np.ndarray,
    m: np.ndarray,
    block: int,
    scales: Scales,
    transform: Callable[[int, np.ndarray, np.ndarray], np.ndarray],
    descending: bool = False,
    damping: float = DAMPING,
) -> Gptq:
    """Units of `block` columns are transform block and scale group alike.
    transform(b, W'_b, D_b) is the block's B x B transform (rounded to float32 here)."""
    rows, cols = w.shape
    arranged = np.arange(cols) if descending else np.arange(cols)[::-1]
    md = damped(m, damping)[np.ix_(arranged, arranged)]
    units = [np.arange(i, i + block) for i in range(0, cols, block)]
    k, d = block_ldl(md, units)
    out = Gptq(
        np.zeros((cols // block, block, block)),
        np.zeros(w.shape, np.uint8),
        np.zeros((rows, cols // block), np.uint8),
        np.zeros(w.shape),
        np.zeros(w.shape),
    )
    error = np.zeros(w.shape)  # W - What, arranged
    for g in range(len(units) - 1, -1, -1):
        unit, later = units[g], slice((g + 1) * block, None)
        at = arranged[unit]
        b = at.min() // block
        natural = np.argsort(at)  # the unit's columns in the layer's order
        own = (w[:, at] + error[:, later] @ k[later, unit])[:, natural]
        hessian = d[g][np.ix_(natural, natural)]
        t = np.asarray(transform(b, own, hessian), np.float32).astype(float)
        z = own @ np.linalg.inv(t)
        out.scales[:, b], step = scales(z)
        codes, values = solve_unit(z, t @ hessian @ t.T, step, descending)
        span = slice(b * block, (b + 1) * block)
        out.transform[b] = t
        out.codes[:, span], out.decoded[:, span] = codes, values
        out.dequantized[:, span] = values @ t
        error[:, unit] = w[:, at] - out.dequantized[:, at]
    return out


# ---------------------------------------------------------------------------------------------
# Where a block's transform comes from
# ---------------------------------------------------------------------------------------------


def given(t: np.ndarray):
    return lambda b, own, hessian: t[b]


def hadamard(block: int):
    return lambda b, own, hessian: wush.hadamard(block)


def marginal(m: np.ndarray, block: int, damping: float, with_hadamard: bool = True):
    """The paper: Mw from the updated weights, Mx the block of the undamped moment."""

    def solve(b, own, hessian):
        span = slice(b * block, (b + 1) * block)
        return wush.marginal(own, m[span, span], block, damping, with_hadamard)[0]

    return solve


def conditional(with_hadamard: bool = True):
    """The published code: basis = A_bb, y = A_bb W'_b^T."""

    def solve(b, own, hessian):
        block = len(hessian)
        basis = np.linalg.cholesky(hessian).T
        v, sv, _ = np.linalg.svd(basis @ own.T, full_matrices=True)
        sv = np.concatenate([sv, np.zeros(block - len(sv))]) / np.sqrt(len(own))
        sv = sv + 0.01 * sv.mean()
        v = v * wush.fix_signs(v)
        t = np.sqrt(sv)[:, None] * np.linalg.solve(basis, v).T
        return wush.hadamard(block) @ t if with_hadamard else t

    return solve
