"""Unit steps of DTensors: of each whole tensor, although every rank holds only a part of it.

What must be communicated depends on the norm (``Norm.by_entry``, ``Norm.reduced``):

* sign: an entry's step depends on no other entry. Nothing is communicated.
* layer, row, col: entries are divided by the norm of their tensor, row or column. For those of them that are split over
  ranks, the largest entries and then the sums of squares are reduced: two small all-reduces of a whole list of tensors
  for each mesh dimension that splits. Rows of ``Shard(0)`` are whole, and nothing is communicated.
* all others, as spectral: each tensor is gathered on one rank, which computes its step and sends every rank its part:
  two all-to-alls of a whole list of tensors for each mesh dimension over which they are sharded. Ranks share the work.

Over a mesh dimension that replicates, nothing is communicated: replicas do the same work and get the same bits.
Messages are in float32 or wider. All ranks of a mesh must call with the same tensors in the same order.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from heapq import heapreplace
from itertools import product
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sngd.norms.global_norm import at_least_float32, square
from sngd.norms.norm import Norm, as_matrix, normalized, weight_of
from sngd.sharding import is_dtensor, sharding_of

if TYPE_CHECKING:  # slow to import, and of no use to one process
    from torch.distributed import ProcessGroup, ReduceOp
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.placement_types import Placement

Shape = tuple[int, ...]
Coordinate = tuple[int, ...]  # of a rank, along those mesh dimensions over which tensors are sharded
Item = tuple[int, Coordinate]  # the part that this rank had at first of the tensor with this index


class Layout(NamedTuple):
    """How one DTensor lies on a mesh.

    Attributes:
        shape: of the whole tensor.
        mesh: the DTensor's.
        placements: one for each mesh dimension.
        dims: the mesh dimensions, of more than one process, over which it is sharded.
    """

    shape: Shape
    mesh: "DeviceMesh"
    placements: "tuple[Placement, ...]"
    dims: tuple[int, ...]

    @property
    def here(self) -> Coordinate:
        """This rank's coordinate along ``dims``."""
        coordinate = self.mesh.get_coordinate()
        assert coordinate is not None  # ``sharding_of`` has refused a rank outside of the mesh
        return tuple(coordinate[dim] for dim in self.dims)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of ranks along each of ``dims``."""
        return tuple(self.mesh.size(dim) for dim in self.dims)

    def box(self, coordinate: Coordinate) -> "tuple[slice, ...] | None":
        """Where a rank's part lies in the whole tensor; None if it is not one contiguous box, or may not be."""
        return _box(self.shape, tuple(self.placements[dim] for dim in self.dims), self.sizes, coordinate)


def layout_of(tensor: Tensor) -> Layout:
    """The layout of a DTensor."""
    sharding = sharding_of(tensor)
    assert is_dtensor(tensor)
    assert sharding is not None
    mesh, dims = sharding
    return Layout(tuple(tensor.shape), mesh, tuple(tensor.placements), dims)


@torch.no_grad()
def sharded_units(
    norm: Norm,
    parts: Sequence[Tensor],
    layouts: Sequence[Layout],
    units: Callable[[Sequence[Tensor]], Sequence[Tensor]],
) -> list[Tensor]:
    """This rank's part of ``norm.unit`` of each whole tensor.

    Args:
        norm: the norm.
        parts: this rank's part of each tensor, all on one device.
        layouts: of each tensor; they have the same mesh and ``dims``.
        units: ``norm.units``, or another function that computes the unit steps of a list of whole tensors.

    Returns:
        Contiguous tensors of the parts' shapes, in float32 or wider.
    """
    if not layouts:
        return []
    if not layouts[0].dims:
        return list(units(parts))
    if norm.by_entry:
        return _scaled(norm, [norm.bare_unit(as_matrix(part)) for part in parts], parts, layouts)
    if torch.compiler.is_compiling():  # torch 2.13 has been seen to leave out all-reduces that the placements need
        raise RuntimeError(
            f"torch.compile cannot take a step with norm {norm.name} on sharded weights, because ranks exchange "
            "parts of them: call this optimizer's step without it (the norms l2 and sign can be compiled)"
        )
    if norm.reduced is not None and all(_splits(layout) is not None for layout in layouts):
        return _scaled(norm, _normalized(parts, layouts, norm.reduced), parts, layouts)
    if any(layout.box(layout.here) is None for layout in layouts):
        return _units_of_full_tensors(parts, layouts, units)
    return _units_on_owners(parts, layouts, units)


def _scaled(norm: Norm, bare: list[Tensor], parts: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
    """Bare unit steps, as matrices, times the factors of the whole tensors, in the parts' shapes."""
    factors = [norm.factor_of(layout.shape) for layout in layouts]
    units = torch._foreach_mul(bare, factors)
    return [unit.reshape(part.shape) for unit, part in zip(units, parts, strict=True)]


def _splits(layout: Layout) -> tuple[int, ...] | None:
    """For each of the layout's ``dims``, the dimension of the matrix that it splits, -2 or -1; None if unknown."""
    dims = _sharded_dims([layout.placements[dim] for dim in layout.dims], len(layout.shape))
    return None if dims is None else tuple(-2 if dim == 0 else -1 for dim in dims)


def _sharded_dims(placements: "Sequence[Placement]", ndim: int) -> list[int] | None:
    """The dimension of the tensor that each placement shards; None if one is neither a Shard nor a _StridedShard."""
    dims = [getattr(placement, "dim", None) for placement in placements]
    known = [dim % ndim for dim in dims if isinstance(dim, int)]
    return known if len(known) == len(dims) else None


def _normalized(parts: Sequence[Tensor], layouts: Sequence[Layout], reduced: tuple[int, ...]) -> list[Tensor]:
    """``normalized`` of each whole matrix, by the same formula; the matrix dimensions ``reduced`` may be split."""
    matrices = [as_matrix(part) for part in parts]
    units = list(matrices)
    split: dict[int, list[int]] = {}  # tensor: mesh dimensions that split what is reduced
    for i, layout in enumerate(layouts):
        over = [dim for dim, along in zip(layout.dims, _splits(layout) or (), strict=True) if along in reduced]
        if over:
            split[i] = over
        else:
            units[i] = normalized(matrices[i], reduced)
    if not split:
        return units

    from torch.distributed import ReduceOp

    mesh = layouts[0].mesh
    peaks = {i: _peak(matrices[i], reduced) for i in split}
    peaks = _all_reduced(peaks, split, ReduceOp.MAX, mesh)
    below_one = {i: matrices[i] / torch.where(peaks[i] > 0, peaks[i], 1) for i in split}
    squares = {i: square(torch.linalg.vector_norm(m, dim=reduced, keepdim=True)) for i, m in below_one.items()}
    squares = _all_reduced(squares, split, ReduceOp.SUM, mesh)
    for i, m in below_one.items():
        norm = squares[i].sqrt().to(m.dtype)
        units[i] = m / torch.where(norm > 0, norm, 1)
    return units


def _peak(m: Tensor, reduced: tuple[int, ...]) -> Tensor:
    """The largest absolute entry over ``reduced``; 0 if this rank has no entries there."""
    if any(m.shape[dim] == 0 for dim in reduced):
        return m.sum(reduced, keepdim=True)
    return m.abs().amax(reduced, keepdim=True)


def _all_reduced(
    values: dict[int, Tensor], over: dict[int, list[int]], op: "ReduceOp.RedOpType", mesh: "DeviceMesh"
) -> dict[int, Tensor]:
    """Each value reduced over its mesh dimensions, by one all-reduce for each mesh dimension."""
    import torch.distributed as dist

    values = dict(values)
    for dim in sorted({dim for dims in over.values() for dim in dims}):
        chosen = [i for i, dims in over.items() if dim in dims]
        flat = torch.cat([values[i].reshape(-1) for i in chosen])
        together = flat.to(mesh.device_type)
        if flat.numel():
            dist.all_reduce(together, op, group=mesh.get_group(dim))
        reduced = together.to(flat.device).split([values[i].numel() for i in chosen])
        values.update((i, value.view(values[i].shape)) for i, value in zip(chosen, reduced, strict=True))
    return values


def _units_of_full_tensors(
    parts: Sequence[Tensor], layouts: Sequence[Layout], units: Callable[[Sequence[Tensor]], Sequence[Tensor]]
) -> list[Tensor]:
    """Every rank gathers and computes everything: for placements of which `_box` does not know the order."""
    from torch.distributed.tensor import DTensor, Replicate

    wholes = []
    for part, (shape, mesh, placements, _) in zip(parts, layouts, strict=True):
        sharded = DTensor.from_local(
            part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=_strides(shape)
        )
        wholes.append(sharded.full_tensor())
    own = []
    for unit, (_, mesh, placements, _) in zip(units(wholes), layouts, strict=True):
        replicated = DTensor.from_local(unit, mesh, [Replicate()] * mesh.ndim, run_check=False)
        own.append(replicated.redistribute(placements=placements).to_local().contiguous())
    return own


def _strides(shape: Shape) -> tuple[int, ...]:
    return tuple(max(1, prod(shape[i + 1 :])) for i in range(len(shape)))


def _units_on_owners(
    parts: Sequence[Tensor], layouts: Sequence[Layout], units: Callable[[Sequence[Tensor]], Sequence[Tensor]]
) -> list[Tensor]:
    """Each tensor is gathered on its owner, which computes its unit step and sends each rank its part."""
    for part, layout in zip(parts, layouts, strict=True):
        _check_part(part, layout)
    wide = at_least_float32(parts[0].dtype)
    route, here = _Route(layouts, wide), layouts[0].here
    gathered = route.to_owners({(i, here): part.to(route.nothing) for i, part in enumerate(parts)})
    items = list(gathered)
    wholes = {i: route.nothing.new_empty(layouts[i].shape) for i, _ in items}
    for i, coordinate in items:
        place = wholes[i][_known_box(layouts[i], coordinate)]
        place.copy_(gathered[i, coordinate].view(place.shape))
    gathered.clear()  # which frees memory
    whole_units = dict(zip(wholes, units(list(wholes.values())) if wholes else [], strict=True))
    wholes.clear()
    own = route.back({(i, coordinate): whole_units[i][_known_box(layouts[i], coordinate)] for i, coordinate in items})
    return [own[i, here].view(part.shape).to(part.device) for i, part in enumerate(parts)]


def _check_part(part: Tensor, layout: Layout) -> None:
    expected = tuple(span.stop - span.start for span in _known_box(layout, layout.here))
    if part.numel() != prod(expected):
        raise RuntimeError(
            f"this rank's part of a tensor of shape {layout.shape} has shape {tuple(part.shape)}, but by its "
            f"placements {layout.placements} on {layout.mesh} it should have {expected}"
        )


def _known_box(layout: Layout, coordinate: Coordinate) -> tuple[slice, ...]:
    box = layout.box(coordinate)
    assert box is not None
    return box


class _Route:
    """The way of each tensor's parts to the tensor's owner and back, along one mesh dimension after the other.

    There is a level for each of the k sharded mesh dimensions, and one more. On level k an item lies on the rank that
    had it at first. From level j + 1 to level j it moves along dimension j to the owner's coordinate there, so that on
    level 0 it lies on its owner. Every rank knows all owners and shapes, so only the numbers themselves are sent.
    """

    def __init__(self, layouts: Sequence[Layout], dtype: torch.dtype) -> None:
        self.layouts, self.mesh, self.dims = layouts, layouts[0].mesh, layouts[0].dims
        self.here, self.sizes = layouts[0].here, layouts[0].sizes
        self.nothing = torch.empty(0, dtype=dtype, device=self.mesh.device_type)
        self.owners = owners(tuple(layout.shape for layout in layouts), self.sizes)

    def to_owners(self, parts: dict[Item, Tensor]) -> dict[Item, Tensor]:
        for j in reversed(range(len(self.dims))):
            parts = self._moved(parts, j, self._held(j), lambda item: self.owners[item[0]], lambda item: item[1])
        return parts

    def back(self, parts: dict[Item, Tensor]) -> dict[Item, Tensor]:
        for j in range(len(self.dims)):
            parts = self._moved(parts, j, self._held(j + 1), lambda item: item[1], lambda item: self.owners[item[0]])
        return parts

    def _held(self, level: int) -> list[Item]:
        """This rank's items on a level."""
        others = product(*(range(size) for size in self.sizes[level:]))
        coordinates = [(*self.here[:level], *rest) for rest in others]
        owned = [i for i, owner in enumerate(self.owners) if owner[level:] == self.here[level:]]
        return [(i, coordinate) for i in owned for coordinate in coordinates]

    def _moved(
        self,
        parts: dict[Item, Tensor],
        j: int,
        coming: list[Item],
        to: Callable[[Item], Coordinate],
        source: Callable[[Item], Coordinate],
    ) -> dict[Item, Tensor]:
        """The items ``coming`` to this rank along dimension ``j``, by one all-to-all of flat tensors."""
        import torch.distributed as dist

        group = self.mesh.get_group(self.dims[j])
        ranks = _ranks_along(self.mesh, self.dims[j], group)
        going = sorted(parts, key=lambda item: (ranks[to(item)[j]], item))
        coming = sorted(coming, key=lambda item: (ranks[source(item)[j]], item))
        sent, received = [0] * len(ranks), [0] * len(ranks)
        for item in going:
            sent[ranks[to(item)[j]]] += parts[item].numel()
        for item in coming:
            received[ranks[source(item)[j]]] += self._numel(item)
        outgoing = torch.cat([self.nothing, *(parts[item].reshape(-1) for item in going)])
        incoming = outgoing.new_empty(sum(received))
        dist.all_to_all_single(incoming, outgoing, received, sent, group=group)
        return dict(zip(coming, incoming.split([self._numel(item) for item in coming]), strict=True))

    def _numel(self, item: Item) -> int:
        i, coordinate = item
        return prod(span.stop - span.start for span in _known_box(self.layouts[i], coordinate))


def _ranks_along(mesh: "DeviceMesh", dim: int, group: "ProcessGroup") -> list[int]:
    """The rank within the process group of each coordinate along a mesh dimension."""
    from torch.distributed import get_group_rank

    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    line = mesh.mesh[tuple(slice(None) if d == dim else at for d, at in enumerate(coordinate))]
    return [get_group_rank(group, rank) for rank in line.tolist()]


@lru_cache(maxsize=256)
def owners(shapes: tuple[Shape, ...], sizes: tuple[int, ...]) -> tuple[Coordinate, ...]:
    """The rank that computes each tensor's unit step, as its coordinate in a grid of ranks of these sizes.

    The tensor with the largest cost goes to the rank with the least work so far, and so on. The cost of a matrix is the
    number of its entries times its shorter side, to which the matrix products of ``Spectral`` are proportional.
    """
    costs = [prod(shape) * min(weight_of(shape).d_out, weight_of(shape).columns) for shape in shapes]
    work = [(0, rank) for rank in range(prod(sizes))]  # a heap
    found: list[Coordinate] = [()] * len(shapes)
    for i in sorted(range(len(shapes)), key=lambda i: -costs[i]):
        done, rank = work[0]
        heapreplace(work, (done + costs[i], rank))
        coordinate = []
        for size in reversed(sizes):
            rank, at = divmod(rank, size)
            coordinate.append(at)
        found[i] = tuple(reversed(coordinate))
    return tuple(found)


@lru_cache(maxsize=2**16)
def _box(
    shape: Shape, placements: "tuple[Placement, ...]", sizes: tuple[int, ...], coordinate: Coordinate
) -> tuple[slice, ...] | None:
    """The part of a tensor on the rank at ``coordinate``; None for placements whose parts may be no contiguous boxes.

    Like ``torch.chunk``, ``Shard`` makes parts of equal length, rounded up, of which the last may be shorter or empty.
    Where several mesh dimensions shard one dimension of the tensor, they do so from left to right. A ``_StridedShard``,
    which FSDP2 makes of parameters that tensor parallelism has sharded, comes after those to its right.
    """
    dims = _sharded_dims(placements, len(shape))
    if dims is None:
        return None
    spans = [(0, size) for size in shape]
    strided: dict[int, int] = {}  # dimension of the tensor: mesh dimension of its _StridedShard
    for i, placement in enumerate(placements):
        dim = dims[i]
        if hasattr(placement, "split_factor"):
            to_the_right = [size for d, size in zip(dims[i + 1 :], sizes[i + 1 :], strict=True) if d == dim]
            if dim in strided or placement.split_factor != prod(to_the_right):
                return None
            strided[dim] = i
    for i in (*(i for i in range(len(placements)) if i not in strided.values()), *strided.values()):
        dim = dims[i]
        start, stop = spans[dim]
        length = -(-(stop - start) // sizes[i])
        first = min(start + coordinate[i] * length, stop)
        spans[dim] = (first, min(first + length, stop))
    return tuple(slice(start, stop) for start, stop in spans)
