"""Naive twins of ``sngd.norms``: plain loops over rows, columns and singular values, in numpy's extended precision."""

import math

import numpy as np

WIDE = np.longdouble


def matrix(v):
    """(d_out, in·kernel) of a weight, and d_out, in, kernel."""
    v = np.asarray(v, dtype=WIDE)
    d_out = v.shape[0] if v.ndim else 1
    d_in = v.shape[1] if v.ndim > 1 else 1
    kernel = math.prod(v.shape[2:])
    return v.reshape(d_out, d_in * kernel), d_out, d_in, kernel


def length(x):
    return np.sqrt(np.sum(np.asarray(x, dtype=WIDE) ** 2))


def singular(m):
    """U, σ, V of the largest entry's multiple, because numpy decomposes float64 only; σ in the matrix's own size."""
    peak = np.abs(m).max()
    if peak == 0:
        return np.zeros((len(m), 1)), np.zeros(1, dtype=WIDE), np.zeros((1, m.shape[1]))
    u, s, vh = np.linalg.svd((m / peak).astype(np.float64), full_matrices=False)
    rank = s > s[0] * 1e-14
    return u[:, rank], s[rank].astype(WIDE) * peak, vh[rank]


def along(lines):
    """Each line divided by its length."""
    out = np.zeros_like(lines)
    for i, line in enumerate(lines):
        if length(line) > 0:
            out[i] = line / length(line)
    return out


def whole(m):
    return m / length(m) if length(m) > 0 else np.zeros_like(m)


def nearest_orthogonal(m):
    u, s, vh = singular(m)
    return (u @ vh).astype(WIDE) if s.any() else np.zeros_like(m)


UNIT = {
    "l2": whole,
    "layer": whole,
    "sign": np.sign,
    "spectral": nearest_orthogonal,
    "row": along,
    "col": lambda m: along(m.T).T,
}
SIZE = {
    "l2": length,
    "layer": length,
    "sign": lambda m: np.abs(m).max(),
    "spectral": lambda m: singular(m)[1].max(),
    "row": lambda m: max(length(row) for row in m),
    "col": lambda m: max(length(column) for column in m.T),
}
DUAL = {
    "l2": length,
    "layer": length,
    "sign": lambda m: np.abs(m).sum(),
    "spectral": lambda m: singular(m)[1].sum(),
    "row": lambda m: sum(length(row) for row in m),
    "col": lambda m: sum(length(column) for column in m.T),
}


def bare_kappa(name, rows, columns):
    return math.sqrt({"sign": rows * columns, "spectral": min(rows, columns), "row": rows, "col": columns}.get(name, 1))


def factor(name, scaled, table, d_out, d_in, kernel):
    """Scion's factors, case by case."""
    columns = d_in * kernel
    if name == "l2" or scaled is False:
        return 1.0
    if scaled == "max":
        return max(1.0, math.sqrt(d_out / columns))
    if scaled == "adamw":
        return 0.2 * math.sqrt(max(d_out, columns))
    if table:
        return {"sign": 1.0, "col": 1.0}.get(name, math.sqrt(columns))
    return {
        "layer": math.sqrt(d_out / d_in) / kernel,
        "spectral": math.sqrt(d_out / d_in) / kernel,
        "sign": 1 / columns,
        "row": 1 / math.sqrt(columns),
        "col": math.sqrt(d_out) / columns,
    }[name]


class NaiveNorm:
    """A norm of ``sngd.norms`` by name and options, for one tensor with at least one entry."""

    def __init__(self, name, scaled=True, table=False):
        self.name, self.scaled, self.table = name, scaled, table

    def unit(self, v):
        m, *sizes = matrix(v)
        return (factor(self.name, self.scaled, self.table, *sizes) * UNIT[self.name](m)).reshape(np.shape(v))

    def size(self, w):
        m, *sizes = matrix(w)
        return SIZE[self.name](m) / factor(self.name, self.scaled, self.table, *sizes)

    def dual(self, v):
        m, *sizes = matrix(v)
        return DUAL[self.name](m) * factor(self.name, self.scaled, self.table, *sizes)

    def kappa(self, shape):
        m, *sizes = matrix(np.zeros(shape))
        return factor(self.name, self.scaled, self.table, *sizes) * bare_kappa(self.name, *m.shape)
