"""Float64 NumPy reference of the WUSH numerics: codecs, transforms, RTN and error figures.

It is written for reading, not for speed: every function states one formula of
arXiv 2512.00956 or of the number formats, and the C++ library is compared with it.

Shapes: W is R x C (rows are outputs), X is T x C (one token a row), M is C x C (E[x x^T]),
a transform is (C/B) x B x B with x' = T[b] x_b for each block b of B consecutive inputs.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

import numpy as np

# ---------------------------------------------------------------------------------------------
# Element and scale codecs
# ---------------------------------------------------------------------------------------------

E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
# The 127 finite non-negative E4M3 values in code order; code 127 is NaN.
E4M3 = np.array(
    [
        m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7)
        for e in range(16)
        for m in range(8)
    ]
)[:127]
# Mean-squared-error optimal clipping of a unit Gaussian with 2^b uniform levels, b = 2..8.
GAUSSIAN_MSE = dict(
    zip(range(2, 9), (1.49353, 2.05107, 2.51393, 2.91609, 3.27660, 3.60105, 3.88494), strict=True)
)
BLOCK = {"mxfp4": 32, "nvfp4": 16}


def nearest_code(magnitude: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Index of the nearest entry of an ascending table; ties go to the even index; saturates."""
    upper = np.clip(np.searchsorted(table, magnitude), 1, len(table) - 1)
    below = magnitude - table[upper - 1]
    above = table[upper] - magnitude
    take_upper = (below > above) | ((below == above) & (upper % 2 == 0))
    return np.where(take_upper, upper, upper - 1).astype(np.uint8)


def encode_e2m1(x: np.ndarray) -> np.ndarray:
    """E2M1 codes 0..15; the sign bit is kept on zero."""
    return nearest_code(np.abs(x), E2M1) | (np.signbit(x).astype(np.uint8) << 3)


def decode_e2m1(codes: np.ndarray) -> np.ndarray:
    return np.where(codes & 8, -1.0, 1.0) * E2M1[codes & 7]


def encode_e4m3(x: np.ndarray) -> np.ndarray:
    """E4M3 codes of finite values; magnitudes above 448 saturate (never NaN)."""
    return nearest_code(np.abs(x), E4M3) | (np.signbit(x).astype(np.uint8) << 7)


def decode_e4m3(codes: np.ndarray) -> np.ndarray:
    return np.where(codes & 128, -1.0, 1.0) * E4M3[codes & 127]


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte, the even element in the low nibble."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def round_to_bf16(x: np.ndarray) -> np.ndarray:
    """Round to nearest even on the bf16 grid (finite input)."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


# ---------------------------------------------------------------------------------------------
# Group quantization: value = element * scale / global
# ---------------------------------------------------------------------------------------------


@dataclass
class Quantized:
    codes: np.ndarray  # rows x cols element codes
    scales: np.ndarray  # rows x cols/B scale bytes
    values: np.ndarray  # rows x cols decoded


def _groups(x: np.ndarray, size: int) -> np.ndarray:
    return x.reshape(x.shape[0], -1, size)


def _encode_groups(groups: np.ndarray, step: np.ndarray) -> np.ndarray:
    safe = np.where(step > 0, step, 1.0)
    return np.where(step[..., None] > 0, encode_e2m1(groups / safe[..., None]), 0).astype(np.uint8)


def quantize_mxfp4(x: np.ndarray, rule: str = "noclip") -> Quantized:
    """noclip: scale byte 127 + floor(log2 amax), step 2^(byte-127)/3, so amax maps to [3, 6).
    ocp: byte 127 + floor(log2 amax) - 2, step 2^(byte-127), elements saturate at 6."""
    groups = _groups(x, 32)
    amax = np.abs(groups).max(-1)
    exponent = np.frexp(amax)[1] - 1  # floor(log2 amax), exact
    low, high, offset, divisor = (2, 253, 0, 3.0) if rule == "noclip" else (0, 254, 2, 1.0)
    byte = np.where(amax > 0, np.clip(127 + exponent - offset, low, high), 0).astype(np.uint8)
    step = np.where(amax > 0, np.exp2(byte.astype(float) - 127) / divisor, 0)
    codes = _encode_groups(groups, step)
    values = decode_e2m1(codes) * step[..., None]
    return Quantized(codes.reshape(x.shape), byte, values.reshape(x.shape))


def nvfp4_global(x: np.ndarray) -> float:
    amax = np.abs(x).max()
    return 448.0 * 6.0 / amax if amax > 0 else 1.0


def quantize_nvfp4(
    x: np.ndarray, global_scale: float | None = None, rule: str = "amax"
) -> Quantized:
    """amax: scale = e4m3(amax_group * global / 6). mse: of the seven codes from 4 below to 2 above
    that one, the scale with the smallest squared error of the group (the amax code wins ties)."""
    groups = _groups(x, 16)
    amax = np.abs(groups).max(-1)
    global_scale = nvfp4_global(x) if global_scale is None else global_scale
    base = encode_e4m3(amax * global_scale / 6).astype(int)
    base = np.where(amax > 0, np.maximum(base, 1), 0)
    best = None
    for offset in (0,) if rule == "amax" else (0, 1, -1, 2, -2, -3, -4):
        byte = np.where(amax > 0, np.clip(base + offset, 1, 126), 0).astype(np.uint8)
        step = decode_e4m3(byte) / global_scale
        codes = _encode_groups(groups, step)
        values = decode_e2m1(codes) * step[..., None]
        error = ((values - groups) ** 2).sum(-1)
        if best is None:
            best = [error, byte, codes, values]
            continue
        better = error < best[0]
        for i, new in enumerate((error, byte, codes, values)):
            best[i] = np.where(better if new.ndim == 2 else better[..., None], new, best[i])
    return Quantized(best[2].reshape(x.shape), best[1], best[3].reshape(x.shape))


def quantize_int(x: np.ndarray, bits: int, group: int, rule: str = "absmax") -> Quantized:
    """Signed integer codes with bf16 scales (returned as values, not bytes)."""
    groups = _groups(x, group)
    amax = np.abs(groups).max(-1)
    scale = {
        "absmax": amax / (2 ** (bits - 1) - 1),
        "compressed-tensors": amax / ((2**bits - 1) / 2),
        "gaussian-mse": GAUSSIAN_MSE[bits] * 2 / (2**bits - 1) * np.sqrt((groups**2).mean(-1)),
    }[rule]
    scale = round_to_bf16(scale)
    ratio = groups / np.where(scale > 0, scale, 1)[..., None]
    half = 0.5 if rule == "gaussian-mse" else 0.0
    codes = np.floor(ratio) if half else np.rint(ratio)
    codes = np.clip(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    values = (codes + half) * scale[..., None]
    return Quantized(codes.astype(np.int8).reshape(x.shape), scale, values.reshape(x.shape))


def quantize(
    x: np.ndarray, fmt: str, global_scale: float | None = None, rule: str = "amax"
) -> Quantized:
    return quantize_mxfp4(x) if fmt == "mxfp4" else quantize_nvfp4(x, global_scale, rule)


# ---------------------------------------------------------------------------------------------
# Transforms
# ---------------------------------------------------------------------------------------------


def hadamard(n: int) -> np.ndarray:
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(n)


def fix_signs(u: np.ndarray) -> np.ndarray:
    """+-1 a column, such that the largest-magnitude entry of the column becomes positive
    (the first of equal magnitudes)."""
    largest = u[np.abs(u).argmax(0), np.arange(u.shape[1])]
    return np.where(largest < 0, -1.0, 1.0)


def marginal(
    w: np.ndarray, m: np.ndarray, block: int, damping: float, with_hadamard: bool
) -> np.ndarray:
    """The paper's transform. Besides the relative damping, each block gets 1e-12 of the layer's
    mean diagonal, which is invisible in a live block and makes an all-zero block well defined."""
    rows, cols = w.shape
    floor_w = 1e-12 * np.mean(w**2) if np.any(w) else 1.0
    floor_x = 1e-12 * np.trace(m) / cols if np.trace(m) > 0 else 1.0
    eye = np.eye(block)
    out = []
    for b in range(cols // block):
        s = slice(b * block, (b + 1) * block)
        mw = w[:, s].T @ w[:, s] / rows
        mx = m[s, s]
        lw = np.linalg.cholesky(mw + (damping * np.trace(mw) / block + floor_w) * eye)
        lx = np.linalg.cholesky(mx + (damping * np.trace(mx) / block + floor_x) * eye)
        u, sv, _ = np.linalg.svd(lw.T @ lx)
        u = u * fix_signs(u)
        t = sv[:, None] ** -0.5 * (u.T @ lw.T)
        out.append(hadamard(block) @ t if with_hadamard else t)
    return np.stack(out)


def conditional(w: np.ndarray, m: np.ndarray, block: int, with_hadamard: bool) -> np.ndarray:
    """The published code's transform for RTN. With A^T A = M + 1e-2 mean(diag M) I, A upper, what
    the later blocks used is A[b, later] W_later^T, so that y = A[b,b] W_b^T remains."""
    rows, cols = w.shape
    mean_diagonal = np.trace(m) / cols
    a = np.linalg.cholesky(m + 1e-2 * (mean_diagonal or 1.0) * np.eye(cols)).T
    # Mean square of all y, to keep an all-zero block invertible.
    floor = (
        1e-6
        * np.sqrt(
            sum(
                np.sum((a[s, s] @ w[:, s].T) ** 2)
                for s in (slice(b, b + block) for b in range(0, cols, block))
            )
            / (rows * cols)
        )
        or 1.0
    )
    out = []
    for b in range(cols // block):
        s = slice(b * block, (b + 1) * block)
        basis = a[s, s]
        v, sv, _ = np.linalg.svd(basis @ w[:, s].T, full_matrices=True)
        sv = np.concatenate([sv, np.zeros(block - len(sv))]) / np.sqrt(rows)
        sv = np.maximum(sv + 0.01 * sv.mean(), floor)
        v = v * fix_signs(v)
        t = np.sqrt(sv)[:, None] * np.linalg.solve(basis, v).T
        out.append(hadamard(block) @ t if with_hadamard else t)
    return np.stack(out)


def apply_blocks(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """x'_b = T[b] x_b for every row of x."""
    n, block, _ = t.shape
    return np.einsum("bij,rbj->rbi", t, x.reshape(len(x), n, block)).reshape(x.shape)


def weight_transform(t: np.ndarray) -> np.ndarray:
    return np.linalg.inv(t).transpose(0, 2, 1)


def transform_back(values: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The matrix that the original inputs see: What_b = Q_b T[b]."""
    return apply_blocks(values, t.transpose(0, 2, 1))


# ---------------------------------------------------------------------------------------------
# Error figures
# ---------------------------------------------------------------------------------------------


def weight_only_error(w: np.ndarray, m: np.ndarray, w_hat: np.ndarray) -> float:
    d = w_hat - w
    return float(np.sum((d @ m) * d) / np.sum((w @ m) * w))


def weight_and_activation_error(w, x, x_quantized, w_quantized) -> float:
    """Both quantized matrices live in the transformed space."""
    y = x @ w.T
    return float(np.sum((x_quantized @ w_quantized.T - y) ** 2) / np.sum(y**2))


GLOBAL_OCTAVE = 2.0 ** (-np.arange(8) / 8)


@dataclass
class Rtn:
    transform: np.ndarray
    weight: Quantized
    weight_global: float
    activation_global: float
    weight_only: float
    weight_and_activation: float


def rtn(
    w, m, x, transform, fmt, *, fixed_global=None, rule="mse", search_activation_global=False
) -> Rtn:
    """Round to nearest. The transform is rounded to float32 first, and the weights are solved
    against the rounded one. With search_activation_global the activations' global is the best of
    eight within one octave below 448*6/amax, judged by the output error on x."""
    t = transform.astype(np.float32).astype(np.float64)
    z = apply_blocks(w, weight_transform(t))
    xt = apply_blocks(x, t)
    if fmt == "mxfp4":
        wq, xq, gw, gx = quantize_mxfp4(z), quantize_mxfp4(xt), 3.0, 3.0
    elif fixed_global is not None:
        gw = gx = fixed_global
        wq, xq = quantize_nvfp4(z, gw), quantize_nvfp4(xt, gx)
    else:
        gw = nvfp4_global(z)
        wq = quantize_nvfp4(z, gw, rule)
        tries = nvfp4_global(xt) * (
            GLOBAL_OCTAVE if search_activation_global else GLOBAL_OCTAVE[:1]
        )
        y = x @ w.T
        gx = min(tries, key=lambda g: np.sum((quantize_nvfp4(xt, g).values @ wq.values.T - y) ** 2))
        xq = quantize_nvfp4(xt, gx)
    return Rtn(
        t,
        wq,
        gw,
        gx,
        weight_only_error(w, m, transform_back(wq.values, t)),
        weight_and_activation_error(w, x, xq.values, wq.values),
    )


AUTO_DAMPINGS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def marginal_auto(w, m, sample, fmt, with_hadamard, **kwargs) -> tuple[float, Rtn]:
    """The damping with the smallest weight+activation error on the sample (at most 512 rows);
    the smaller damping wins ties."""
    sample = sample[:512]
    results = [
        (l, rtn(w, m, sample, marginal(w, m, BLOCK[fmt], l, with_hadamard), fmt, **kwargs))
        for l in AUTO_DAMPINGS
    ]
    return min(results, key=lambda r: r[1].weight_and_activation)


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
}


def read_safetensors(path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[begin:end], _DTYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
    return tensors, metadata
