"""The base class of norms: what a normalized step must know about a norm, and how a norm sees a weight as a matrix."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from math import prod, sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sngd.checks import shown
from sngd.norms.global_norm import (
    ROOM,
    at_least_float32,
    exponent_of_largest,
    has_room,
    host_may_read,
    is_long,
    ldexp,
    merged,
    norm_by_rows,
    times_power_of_two,
)
from sngd.norms.lengths import divisors, lengths

_SHORT, _PIECE = 2**14, 2**19  # entries of which a dot product is right, and of pieces of longer tensors
_SMALL = 2**12  # entries of tensors of which one is made
_TINY = 1e-300  # less than any norm of float32 numbers but 0


class Weight(NamedTuple):
    """The sizes of a weight as a map from ``d_in`` inputs, at each of ``kernel`` positions, to ``d_out`` outputs.

    A linear layer's weight (out, in) is such a map. A convolution's (out, in, k, …) has kernel k·…; as a matrix it is
    (out, in·kernel). A vector of d entries is a map from one input, and a scalar from one input to one output.
    """

    d_out: int
    d_in: int
    kernel: int

    @property
    def columns(self) -> int:
        """Columns of the matrix, in·kernel; the matrix has ``d_out`` rows."""
        return self.d_in * self.kernel


def weight_of(shape: Sequence[int]) -> Weight:
    """The sizes of a weight of this shape."""
    d_out, d_in, *kernel = [*shape, 1, 1][: max(2, len(shape))]
    return Weight(d_out, d_in, prod(kernel))


@dataclass(frozen=True)
class Norm(ABC):
    r"""A norm ‖·‖ of a weight; its unit step is the direction of length 1 that descends fastest.

    With ⟨v, u⟩ = Σ v_i u_i, the unit step along v is unit(v), a u with ‖u‖ ≤ 1 and the largest ⟨v, u⟩. This largest
    value is the dual norm ‖v‖\*. A step w ← w − α unit(g) has length α in the norm. Among all steps of this length it
    lowers the linear approximation of the loss most, by α‖g‖\*.

    A subclass defines the norm of a matrix: ``bare_unit``, ``bare_size``, ``bare_kappa`` and ``factor``. The base class
    sees every weight as a matrix (``Weight``), scales, and computes what follows from these four. ``by_entry`` and
    ``reduced`` spare sharded weights the gathering on one rank (``sngd.norms.sharded``). ``in_pieces`` spares a CPU
    temporary tensors as long as the weights (``sngd.optim.unit_pieces``).

        >>> import torch
        >>> from sngd.norms import Sign
        >>> v = torch.tensor([[3.0, -1.0], [0.0, 2.0]])
        >>> Sign().unit(v).tolist(), Sign().dual(v).item()
        ([[0.5, -0.5], [0.0, 0.5]], 3.0)

    Args:
        scaled: whether the unit step is multiplied by ``factor``, so that a step of length α changes the layer's
            outputs by at most about α at every width: if the inputs' root mean square (RMS) is 1, then the outputs
            change by at most α in RMS. The factors are those of Scion (Pethick et al. 2025, arXiv 2502.07529).
        table: whether the weight is a table with one row for each index, as ``torch.nn.Embedding`` stores it. An input
            selects a row, and the row is the output.
    """

    scaled: bool | str = True
    table: bool = False

    name: ClassVar[str]  # of a subclass that gives none: the class's, in lower case
    scalings: ClassVar[tuple[bool | str, ...]] = (True, False)  # allowed values of ``scaled``
    by_entry: ClassVar[bool] = False  # whether an entry of unit(v) depends on no other entry of v
    reduced: ClassVar[tuple[int, ...] | None] = None  # the ``dim`` for which ``bare_unit(m)`` is ``normalized(m, dim)``
    # Whether any rows of unit(v) follow from ``reduced``, or from ``unit_entries``. Each class says so for itself.
    in_pieces: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = vars(cls)
        if own.keys() & {"bare_unit", "unit", "units"}:  # of which a base class has said nothing
            cls.by_entry, cls.reduced = own.get("by_entry", False), own.get("reduced")
        cls.in_pieces = own.get("in_pieces", False)
        cls.name = getattr(cls, "name", cls.__name__.lower())

    def __post_init__(self) -> None:
        if self.scaled not in self.scalings:
            raise ValueError(f"scaled must be one of {', '.join(map(str, self.scalings))}, got {shown(self.scaled)}")
        if not isinstance(self.table, bool):
            raise ValueError(f"table must be True or False, got {shown(self.table)}")

    @abstractmethod
    def bare_unit(self, m: Tensor) -> Tensor:
        """The unit step for ``factor`` 1.

        Args:
            m: (…, rows, columns), one matrix or a batch, float32 or wider, with at least one entry. Entries may be as
                small or large as the dtype allows: see ``normalized``.

        Returns:
            Tensor of the shape and dtype of ``m``; 0 for a matrix of zeros.
        """

    @abstractmethod
    def bare_size(self, m: Tensor) -> Tensor:
        """The norm for ``factor`` 1 of each matrix of a batch (…, rows, columns), as a tensor (…); see ``length``."""

    @abstractmethod
    def bare_kappa(self, rows: int, columns: int) -> float:
        """The least κ with ‖v‖* ≤ κ‖v‖₂ for ``factor`` 1 and matrices of these sizes."""

    @abstractmethod
    def factor(self, weight: Weight) -> float:
        """What the unit step is multiplied by if ``scaled``."""

    @torch.no_grad()
    def unit(self, v: Tensor) -> Tensor:
        """u with ‖u‖ ≤ 1 and the largest ⟨v, u⟩; 0 for v = 0.

        Args:
            v: real floating-point tensor of any shape and strides.

        Returns:
            Contiguous tensor of v's shape, in float32 or wider.
        """
        m = as_matrix(v)
        if not m.numel():
            return torch.zeros_like(m).reshape(v.shape)
        unit = self.bare_unit(m).reshape(v.shape)
        factor = self.factor_of(v.shape)
        return (unit if factor == 1 else unit * factor).contiguous()

    @torch.no_grad()
    def units(self, vs: Sequence[Tensor]) -> list[Tensor]:
        """``unit`` of each tensor. A subclass may compute them together."""
        if not (vs and self.in_pieces):
            return [self.unit(v) for v in vs]
        wide = [v.to(at_least_float32(v.dtype)).contiguous() for v in vs]
        factors = self.factors_of(vs)
        if self.by_entry:
            return self.unit_entries(wide, factors)
        measured = None
        if all(v.is_cpu for v in vs) and not torch.compiler.is_compiling():
            measured = lengths(wide, self.reduced or ())
        found = divisors(measured, factors) if measured else None
        return list(torch._foreach_div(wide, found.each)) if found else [self.unit(v) for v in vs]

    def unit_entries(self, pieces: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor]:
        """The entries of unit(v) for pieces of tensors v, if the norm is ``by_entry`` and ``in_pieces``.

        Args:
            pieces: of any shapes, float32 or wider, on one device; not empty.
            factors: of each piece's whole tensor, see ``factor_of``.
        """
        raise NotImplementedError(f"{type(self).__name__} is by_entry and in_pieces, so it must define unit_entries")

    @torch.no_grad()
    def dual(self, v: Tensor) -> Tensor:
        """‖v‖* = ⟨v, unit(v)⟩, a 0-d tensor: what the unit step really attains, even if it is computed inexactly.

        It is nan or inf if an entry of v is. It is float64, but float32 on devices without float64.
        """
        dual = inner([v], [self.unit(v)])
        if not host_may_read(dual) or has_room(dual, [v.dtype], communicates=False):
            return dual
        exponent = exponent_of_largest([((None, ()), [v])])
        if exponent is None:
            return dual
        (scaled,) = times_power_of_two([v], -exponent)  # products with v itself would leave the dtype's range
        return torch.full_like(dual, ldexp(inner([scaled], [self.unit(scaled)]).item(), exponent))

    @torch.no_grad()
    def size(self, w: Tensor) -> Tensor:
        """‖w‖, a 0-d tensor in w's dtype, float32 or wider."""
        m = as_matrix(w)
        return self.bare_size(m) / self.factor_of(w.shape) if m.numel() else m.new_zeros(())

    def kappa(self, shape: Sequence[int]) -> float:
        """The least κ with ‖v‖* ≤ κ‖v‖₂ for all v of this shape."""
        weight = weight_of(shape)
        return self.factor_of(shape) * self.bare_kappa(weight.d_out, weight.columns)

    def inexactness(self, shape: Sequence[int]) -> tuple[float, float]:
        """ε and δ with ⟨v, unit(v)⟩ ≥ (1 − ε)‖v‖* and ‖unit(v)‖ ≤ 1 + δ for all v of this shape, but for rounding."""
        return 0.0, 0.0

    def factor_of(self, shape: Sequence[int]) -> float:
        """The factor of the unit step for weights of this shape; 1 for one without entries or if not ``scaled``."""
        return self.factor(weight_of(shape)) if self.scaled and 0 not in shape else 1.0

    def factors_of(self, vs: Sequence[Tensor]) -> list[float]:
        """``factor_of`` each tensor; remembered, because every step asks for the same shapes."""
        if torch.compiler.is_compiling():
            return [self.factor_of(v.shape) for v in vs]
        return _factors(self, tuple([v.shape for v in vs]))

    def __str__(self) -> str:
        """Name and options that are not the default, as ``find_norm`` reads them: ``row(table=True)``."""
        options = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{self.name}({', '.join(options)})" if options else self.name


@lru_cache(maxsize=256)
def _factors(norm: Norm, shapes: tuple[torch.Size, ...]) -> list[float]:
    return [norm.factor_of(shape) for shape in shapes]


def as_matrix(v: Tensor) -> Tensor:
    """The weight as a matrix (d_out, in·kernel), in float32 or wider."""
    wide = v.to(at_least_float32(v.dtype))
    weight = weight_of(v.shape)
    return wide.reshape(weight.d_out, weight.columns)


def normalized(m: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """m / ‖m‖₂ with the norm over ``dim``; 0 where it is 0. It is right for the smallest and largest entries too."""
    recorded = torch.compiler.is_compiling() or (m.requires_grad and torch.is_grad_enabled())
    if m.is_cuda and m.dtype == torch.float32 and not recorded:
        return normalized_in_float64(m, dim)
    norm, peak = _norm_and_peak(m, dim)
    unit: Tensor = m / norm if peak is None else m / peak / torch.where(norm == 0, 1, norm)
    return unit


def normalized_in_float64(m: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """``normalized`` of a float32 tensor in three operations, because no square leaves the range of float64.

    Autograd cannot differentiate it.
    """
    norm = torch.linalg.vector_norm(m, dim=dim, keepdim=True, dtype=torch.float64).clamp_min_(_TINY)
    return torch.div(m, norm, out=torch.empty_like(m))


def length(m: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """‖m‖₂ over ``dim``, right for the smallest and largest entries too."""
    norm, peak = _norm_and_peak(m, dim)
    return (norm if peak is None else norm * peak).squeeze(dim)


def _norm_and_peak(m: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """‖m / peak‖₂ over ``dim``, and the peak, which is the largest absolute entry; 0 and 1 for zeros.

    Squares of m / peak stay in the dtype's range. Where those of m do so too, ‖m‖₂ and None.
    """
    norm = _norm(m, dim)
    low, high = ROOM[torch.float32]
    if host_may_read(norm) and bool(((norm > low) & (norm < high)).all()):
        return norm, None
    peak = m.abs().amax(dim, keepdim=True)
    peak = torch.where(peak == 0, 1, peak)
    return _norm(m / peak, dim), peak


def _norm(m: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """‖m‖₂ over ``dim``, which is kept; of a long matrix row by row, for the digits that one sum would lose."""
    long = m.is_cpu and is_long(m.numel(), m.itemsize) and not torch.compiler.is_compiling()
    if long and m.dim() == 2 and dim == (-2, -1):
        return norm_by_rows(m, m.dtype).view(1, 1)
    norm: Tensor = torch.linalg.vector_norm(m, dim=dim, keepdim=True)
    return norm


def inner(vs: Sequence[Tensor], us: Sequence[Tensor]) -> Tensor:
    """Σ ⟨v, u⟩ over all pairs, 0-d; float64 where the device has it, else float32.

    On the CPU the products of a pair, of long tensors those of a piece, are first summed in the dtype of u. In float32
    this is wrong by about 1e-7 of the sum of their sizes, and if all are equal by up to 2e-5.
    """
    device = vs[0].device
    dtype = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
    if device.type != "cpu" or torch.compiler.is_compiling():
        products = torch._foreach_mul(list(us), list(vs)) if len(us) > 1 else [us[0] * vs[0]]
        return torch.stack([product.sum(dtype=dtype) for product in merged(products)]).sum()
    pairs = _flat_pairs(vs, us)
    sums = torch.stack([_sum_of_products(v, u) for v, u in pairs])
    if not sums.isfinite().all():  # they may be too large for this dtype alone
        sums = torch.stack([(v * u).sum(dtype=dtype) for v, u in pairs])
    return sums.sum(dtype=dtype)


def _flat_pairs(vs: Sequence[Tensor], us: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The pairs of tensors as flat ones of one dtype; one pair of all small ones, and long ones in pieces."""
    small = [i for i, v in enumerate(vs) if v.numel() <= _SMALL]
    pairs = [(vs[i].reshape(-1), us[i].reshape(-1)) for i in sorted({*range(len(vs))} - {*small})]
    if small:  # one sum of all is quicker than a sum of each
        v, u = (torch.cat([ts[i].reshape(-1) for i in small]) for ts in (vs, us))
        pairs.append((v, u))
    pieces = (piece for pair in pairs for piece in _pieces(pair, _PIECE))
    return [(v if v.dtype is u.dtype else v.to(u.dtype), u) for v, u in pieces]


def _sum_of_products(v: Tensor, u: Tensor) -> Tensor:
    """In their dtype. A dot product loses digits if there are more than 2¹⁴ or gaps; of fewer, it needs no memory."""
    return torch.dot(v.contiguous(), u.contiguous()) if len(v) <= _SHORT else (v * u).sum()


def _pieces(pair: tuple[Tensor, Tensor], size: int) -> Iterable[tuple[Tensor, Tensor]]:
    return [pair] if len(pair[0]) <= size else zip(*[flat.split(size) for flat in pair], strict=True)


def per_output(weight: Weight, table: bool) -> float:
    """√(d_out/d_in)/kernel, or √d for a table: the factor of norms in which ‖W‖ = 1 means ‖Wx‖₂ ≤ ‖x‖₂."""
    return sqrt(weight.columns) if table else sqrt(weight.d_out / weight.d_in) / weight.kernel
