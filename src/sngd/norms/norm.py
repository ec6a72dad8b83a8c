"""The base class of norms: what a normalized step must know about a norm, and how a norm sees a weight as a matrix."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import prod, sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sngd.checks import shown
from sngd.norms.global_norm import host_may_read


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
    return Weight(d_out, d_in, prod(map(int, kernel)))


@dataclass(frozen=True)
class Norm(ABC):
    r"""A norm ‖·‖ of a weight; its unit step is the direction of length 1 that descends fastest.

    With ⟨v, u⟩ = Σ v_i u_i, the unit step along v is unit(v), a u with ‖u‖ ≤ 1 and the largest ⟨v, u⟩. This largest
    value is the dual norm ‖v‖\*. A step w ← w − α unit(g) has length α in the norm. Among all steps of this length it
    lowers the linear approximation of the loss most, by α‖g‖\*.

    A subclass defines the norm of a matrix: ``bare_unit``, ``bare_size``, ``bare_kappa`` and ``factor``. The base class
    sees every weight as a matrix (``Weight``), scales, and computes what follows from these four.

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

    name: ClassVar[str]
    scalings: ClassVar[tuple[bool | str, ...]] = (True, False)  # allowed values of ``scaled``
    by_entry: ClassVar[bool] = False  # whether an entry of unit(v) depends on no other entry of v

    def __post_init__(self) -> None:
        if self.scaled not in self.scalings:
            raise ValueError(f"scaled must be one of {', '.join(map(str, self.scalings))}, got {shown(self.scaled)}")
        if not isinstance(self.table, bool):
            raise ValueError(f"table must be True or False, got {shown(self.table)}")

    @abstractmethod
    def bare_unit(self, m: Tensor) -> Tensor:
        """The unit step for ``factor`` 1.

        Args:
            m: (…, rows, columns), one matrix or a batch, float32 or wider. Entries may be as small or large as the
                dtype allows: see ``normalized``.

        Returns:
            Tensor of the shape and dtype of ``m``; 0 for a matrix of zeros.
        """

    @abstractmethod
    def bare_size(self, m: Tensor) -> Tensor:
        """The norm for ``factor`` 1 of each matrix of a batch (…, rows, columns), as a tensor (…)."""

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
        unit = self.bare_unit(as_matrix(v)).reshape(v.shape)
        factor = self.factor_of(v.shape)
        return unit if factor == 1 else unit * factor

    def units(self, vs: Sequence[Tensor]) -> list[Tensor]:
        """``unit`` of each tensor. A subclass may compute them together."""
        return [self.unit(v) for v in vs]

    @torch.no_grad()
    def dual(self, v: Tensor) -> Tensor:
        """‖v‖* = ⟨v, unit(v)⟩, a 0-d tensor: what the unit step really attains, even if it is computed inexactly.

        It is nan or inf if an entry of v is.
        """
        return inner([v], [self.unit(v)])

    @torch.no_grad()
    def size(self, w: Tensor) -> Tensor:
        """‖w‖, a 0-d tensor."""
        return self.bare_size(as_matrix(w)) / self.factor_of(w.shape)

    def kappa(self, shape: Sequence[int]) -> float:
        """κ with ‖v‖* ≤ κ‖v‖₂ for all v of this shape."""
        weight = weight_of(shape)
        return self.factor_of(shape) * self.bare_kappa(weight.d_out, weight.columns)

    def inexactness(self, shape: Sequence[int]) -> tuple[float, float]:
        """ε and δ with ⟨v, unit(v)⟩ ≥ (1 − ε)‖v‖* and ‖unit(v)‖ ≤ 1 + δ for all v of this shape, but for rounding."""
        return 0.0, 0.0

    def factor_of(self, shape: Sequence[int]) -> float:
        """The factor of the unit step for weights of this shape; 1 for one without entries or if not ``scaled``."""
        return self.factor(weight_of(shape)) if self.scaled and 0 not in shape else 1.0

    def __str__(self) -> str:
        """Name and options that are not the default, as ``find_norm`` reads them: ``row(table=True)``."""
        options = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{self.name}({', '.join(options)})" if options else self.name


def as_matrix(v: Tensor) -> Tensor:
    """The weight as a matrix (d_out, in·kernel), in float32 or wider."""
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    weight = weight_of(v.shape)
    return wide.reshape(weight.d_out, weight.columns)


def normalized(m: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """m / ‖m‖₂ with the norm over ``dim``; 0 where it is 0. It is right for the smallest and largest entries too."""
    norm = torch.linalg.vector_norm(m, dim=dim, keepdim=True)
    if host_may_read(norm) and bool(((norm > _LOW) & (norm < _HIGH)).all()):
        quick: Tensor = m / norm
        return quick
    peak = m.abs().amax(dim, keepdim=True)  # the squares of m / peak stay in the dtype's range
    below_one = m / torch.where(peak > 0, peak, 1)
    norm = torch.linalg.vector_norm(below_one, dim=dim, keepdim=True)
    unit: Tensor = below_one / torch.where(norm > 0, norm, 1)
    return unit


_LOW, _HIGH = 1e-15, 1e15  # norms between them lose no digits to squares outside float32's range


def inner(vs: Sequence[Tensor], us: Sequence[Tensor]) -> Tensor:
    """Σ ⟨v, u⟩ over all pairs, 0-d; summed in float64 where the device has it, else in float32."""
    device = vs[0].device
    dtype = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
    products = torch._foreach_mul(list(us), list(vs)) if len(us) > 1 else [us[0] * vs[0]]
    return torch.stack([product.sum(dtype=dtype) for product in products]).sum()


def per_output(weight: Weight, table: bool) -> float:
    """√(d_out/d_in)/kernel, or √d for a table: the factor of norms in which ‖W‖ = 1 means ‖Wx‖₂ ≤ ‖x‖₂."""
    return sqrt(weight.d_in) if table else sqrt(weight.d_out / weight.d_in) / weight.kernel
