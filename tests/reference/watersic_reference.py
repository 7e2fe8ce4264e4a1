"""Float64 NumPy reference of WaterSIC (arXiv 2603.04956): one statement a formula, for reading.

Shapes: W is R x C, M = E[x x^T] and Mhat = E[xhat xhat^T] are C x C, Mx = E[x xhat^T] is C x C, the
residual moment is R x C. Without drift Mhat = Mx = M and the residual is zero. The C++ library is
compared with this; details that the paper leaves open are in docs/numerics.md, section 9.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

DEAD_RATIO = 1e-3  # of the median diagonal
DAMPING = 1e-4  # of the mean diagonal
RIDGE = 1e-8  # of the mean of what it is added to
CLIP = (-0.1, 1.5)  # bounds of a column rescaler
LEAST_GAIN = 3e-4  # relative decrease of the loss that is worth another round
MAX_ROUNDS = 25


@dataclass
class Problem:
    """A layer without its dead inputs, factored."""

    w: np.ndarray  # R x C
    m: np.ndarray
    m_hat: np.ndarray
    cross: np.ndarray
    residual: np.ndarray
    alive: np.ndarray  # bool, over the layer's own columns
    lower: np.ndarray = field(init=False)  # L L^T = Mhat + d I
    target: np.ndarray = field(init=False)  # Y
    correlation: np.ndarray = field(init=False)  # K, without damping

    def __post_init__(self):
        damped = DAMPING * np.mean(np.diag(self.m_hat)) * np.eye(len(self.m_hat))
        self.lower = np.linalg.cholesky(self.m_hat + damped)
        self.correlation = self.w @ self.cross + self.residual
        self.target = np.linalg.solve(self.lower, (self.correlation + self.w @ damped).T).T


def make_problem(w, m, m_hat=None, cross=None, residual=None) -> Problem:
    diagonal = np.diag(m)
    alive = ~(diagonal < DEAD_RATIO * np.median(diagonal))
    square = np.ix_(alive, alive)
    return Problem(
        w[:, alive],
        m[square],
        (m if m_hat is None else m_hat)[square],
        (m if cross is None else cross)[square],
        np.zeros_like(w)[:, alive] if residual is None else residual[:, alive],
        alive,
    )


def spacing_for(problem: Problem, r: float) -> float:
    """c of the nominal rate r."""
    energy = np.mean(problem.w**2, 0)
    scale = 12 * energy * np.diag(problem.lower) ** 2
    return 2.0**-r * np.exp(np.mean(np.log(scale)) / 2)


def cancel(target, lower, c) -> tuple[np.ndarray, np.ndarray]:
    """Successive cancellation (ZSIC) with LMMSE shrinkage: integer codes Z and gamma."""
    y = target.copy()
    codes = np.zeros(y.shape, np.int64)
    gamma = np.zeros(y.shape[1])
    for i in reversed(range(y.shape[1])):
        z = np.rint(y[:, i] / c)
        if np.any(z):
            gamma[i] = z @ y[:, i] / (c * (z @ z))
        y[:, :i] -= np.outer(z, gamma[i] * c / lower[i, i] * lower[i, :i])
        codes[:, i] = z
    return codes, gamma


def loss(problem: Problem, w_hat, with_residual=True) -> float:
    """tr(W M W^T) - 2 tr(W Mx What^T) + tr(What Mhat What^T), a weight; without drift it is
    tr(dW M dW^T). The residual enters as -2 tr(residual What^T)."""
    p = problem
    cross = p.correlation if with_residual else p.w @ p.cross
    total = np.sum((p.w @ p.m) * p.w) - 2 * np.sum(cross * w_hat)
    return (total + np.sum((w_hat @ p.m_hat) * w_hat)) / p.w.size


def rescale(problem: Problem, codes, alpha, gamma) -> tuple[np.ndarray, np.ndarray]:
    """Row scales t and column scales g of What = diag(t) Z diag(alpha g), from t = 1, g = gamma."""
    p, w0 = problem, codes * alpha
    t, g = np.ones(len(codes)), gamma.copy()
    best = loss(p, w0 * g)
    for _ in range(MAX_ROUNDS):
        old = t, g
        normal = p.m_hat * (w0.T @ (t[:, None] ** 2 * w0))
        ridge = RIDGE * np.mean(np.diag(normal)) * np.eye(len(g))
        g = np.linalg.solve(normal + ridge, np.sum(w0 * t[:, None] * p.correlation, 0))
        g = np.clip(g, *CLIP)
        columns = w0 * g
        energy = np.sum((columns @ p.m_hat) * columns, 1)
        t = np.sum(p.correlation * columns, 1) / (energy + RIDGE * np.mean(energy))
        mean = np.mean(np.abs(t))
        t, g = t / mean, g * mean
        now = loss(p, t[:, None] * w0 * g)
        if not now <= best:
            return old
        if best - now < LEAST_GAIN * best:
            break
        best = now
    return t, g


def entropy(codes) -> float:
    """Empirical entropy of all codes, in bits."""
    share = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-np.sum(share * np.log2(share)))


def class_entropy(codes, classes: int) -> float:
    """The entropy when columns are coded in classes of like spread, a table each. Column i of Y / c
    has spread ~ s L_ii / c, so this, not the joint entropy, is what the theory speaks of."""
    spread = np.log(np.sqrt(np.mean(codes.astype(float) ** 2, 0)) + 0.05)
    width = np.ptp(spread) / classes + 1e-12
    of = np.minimum(((spread - spread.min()) / width).astype(int), classes - 1)
    return sum(np.mean(of == k) * entropy(codes[:, of == k]) for k in np.unique(of))


@dataclass
class Result:
    codes: np.ndarray  # R x live columns
    alpha: np.ndarray
    gamma: np.ndarray
    t: np.ndarray
    g: np.ndarray
    w_hat: np.ndarray  # R x C, dead columns zero
    loss: float  # without the residual term
    entropy: float


def watersic(problem: Problem, r: float) -> Result:
    p, c = problem, spacing_for(problem, r)
    codes, gamma = cancel(p.target, p.lower, c)
    alpha = c / np.diag(p.lower)
    t, g = rescale(p, codes, alpha, gamma)
    w_hat = t[:, None] * codes * (alpha * g)
    full = np.zeros((len(codes), len(p.alive)))
    full[:, p.alive] = w_hat
    return Result(codes, alpha, gamma, t, g, full, loss(p, w_hat, False), entropy(codes))


def waterfilling_rate(variance: float, eigenvalues, distortion: float) -> float:
    """R_WF(D), bits a weight: mean max(0, log2(s^2 lambda / tau)) / 2 with tau so that
    D = mean min(s^2 lambda, tau)."""
    levels = np.sort(variance * np.maximum(eigenvalues, 0))
    below = np.concatenate([[0], np.cumsum(levels)[:-1]])  # sum of the smaller ones
    n = len(levels)
    # tau between levels k-1 and k drowns the k smallest ones.
    reached = (below + levels * (n - np.arange(n))) / n
    k = int(np.searchsorted(reached, distortion))
    if k == n:
        return 0.0
    tau = (n * distortion - below[k]) / (n - k)
    return float(np.sum(0.5 * np.log2(levels[k:] / tau)) / n)
