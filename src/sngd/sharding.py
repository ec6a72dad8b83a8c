"""Parameters that are spread over processes: this rank's part of a ``DTensor``, and sums over all ranks' parts.

FSDP2 (``fully_shard``) and tensor parallelism (``parallelize_module``) turn parameters into DTensors. A DTensor has a
mesh of processes and, for each of the mesh's dimensions, a placement: sharded, replicated, or partial (to be summed
first). Methods here compute on this rank's local tensors; only norms need numbers of other ranks. Under DDP parameters
are plain tensors, equal on all ranks. With pipeline stages, experts and ``ZeroRedundancyOptimizer`` ranks have plain
tensors that differ, and only the process groups of SNGD's ``norm_group`` say that other ranks have more.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import inf
from typing import TYPE_CHECKING, Literal, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # slow to import, and of no use to one process
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

# None for a plain tensor. For a DTensor, its mesh and the mesh dimensions over which it is sharded (perhaps none).
Sharding = tuple["DeviceMesh", tuple[int, ...]] | None

# Process groups whose ranks hold different parameters, the outermost first: pipeline stages before a stage's experts.
Groups = tuple["ProcessGroup", ...]

# How parameters are spread over ranks: over those of their own mesh, and over those of process groups.
Spread = tuple[Sharding, Groups]


PLAIN = frozenset({Tensor, nn.Parameter})  # the types that are surely no DTensor


def is_plain(tensor: Tensor) -> bool:
    """Whether the tensor's type alone shows that it is no DTensor. This is the quickest check."""
    kind = type(tensor)
    return kind is Tensor or kind is nn.Parameter  # a set of them would break torch 2.6's compiled graph


def are_plain(tensors: Iterable[Tensor]) -> bool:
    """Whether ``is_plain`` holds for all tensors; quicker than asking one by one."""
    if torch.compiler.is_compiling():
        return all(map(is_plain, tensors))
    return {*map(type, tensors)} <= PLAIN


def is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether the tensor is a ``DTensor``. The check does not import DTensor, which is slow."""
    return not is_plain(tensor) and hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, detached and sharing memory; a plain tensor as it is."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():  # with a graph it would cost ten times as much
        return tensor.to_local()


def all_local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """`local` of each tensor. List kernels do not support all of DTensor, nor DTensors mixed with plain tensors."""
    return [local(tensor) for tensor in tensors]


def sharding_of(tensor: Tensor) -> Sharding:
    """The mesh and those of its dimensions, of more than one process, over which the tensor is sharded.

    Raises:
        RuntimeError: the tensor has a partial placement, or this rank is not in its mesh.
    """
    if not is_dtensor(tensor):
        return None
    mesh, placements = tensor.device_mesh, tensor.placements
    if any(placement.is_partial() for placement in placements):
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} has placements {placements}, but a partial sum has no norm: "
            "redistribute it to Replicate() or Shard() first"
        )
    if mesh.get_coordinate() is None:
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} lies on {mesh}, which this rank is not part of, so that the "
            "global norm cannot be known here: give every rank the same parameters"
        )
    dims = (dim for dim, placement in enumerate(placements) if not placement.is_replicate() and mesh.size(dim) > 1)
    return mesh, tuple(dims)


def may_have_gradients_elsewhere(param: Tensor) -> bool:
    """Whether other ranks have shards of the parameter, of which one may have a gradient although this one has none."""
    return not is_plain(param) and param.requires_grad and is_shared((sharding_of(param), ()))


def gradient(param: Tensor) -> Tensor:
    """``param.grad``, with the parameter's placement; a partial gradient is summed.

    Sequence parallelism is an example that leaves partial gradients.

    Raises:
        RuntimeError: one of parameter and gradient is a DTensor and the other is not, or their meshes differ.
    """
    grad = param.grad
    assert grad is not None
    if is_dtensor(param) and is_dtensor(grad) and param.device_mesh == grad.device_mesh:
        same = param.placements == grad.placements
        return grad if same else grad.redistribute(placements=param.placements)
    if is_dtensor(param) or is_dtensor(grad):
        raise RuntimeError(
            f"a parameter of shape {tuple(param.shape)} is {_described(param)} but its gradient is {_described(grad)}"
        )
    return grad


def _described(tensor: Tensor) -> str:
    return f"a DTensor on {tensor.device_mesh}" if is_dtensor(tensor) else "a plain tensor"


@torch.no_grad()
def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor of ``like``'s shape with ``like``'s placements, device and dtype; communicates only to move shards.

    Args:
        tensor: the whole tensor, equal on all ranks, or a DTensor on ``like``'s mesh.
        like: a plain tensor or a DTensor.

    Raises:
        ValueError: ``tensor`` is a DTensor and ``like`` is not on its mesh.
    """
    if is_dtensor(tensor):
        if not (is_dtensor(like) and tensor.device_mesh == like.device_mesh):
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} is {_described(tensor)}, but wanted is {_described(like)}: "
                "load sharded states with torch.distributed.checkpoint"
            )
        placed: Tensor = tensor.redistribute(placements=like.placements)
    elif is_dtensor(like):
        from torch.distributed.tensor import DTensor, Replicate

        whole = DTensor.from_local(tensor, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)
        placed = whole.redistribute(placements=like.placements)
    else:
        placed = tensor
    return placed.to(like.device, like.dtype)


def is_shared(spread: Spread) -> bool:
    """Whether a norm over such tensors needs numbers of other ranks."""
    sharding, groups = spread
    return bool(groups) or (sharding is not None and bool(sharding[1]))


def accelerator_or_cpu(devices: Iterable[torch.device]) -> torch.device:
    """The first accelerator among at least one device, else the CPU.

    Numbers are collected there, because moving them from an accelerator to the CPU would make the host wait.
    """
    devices = list(devices)
    for device in devices:
        if device.type != "cpu":
            return device
    return devices[0]


def sum_over_ranks(values: dict[Spread, Tensor]) -> Tensor:
    """Σ over all spreads and over all ranks that hold parts: one all-reduce for each mesh dimension and process group.

    Every rank must call it. In one mesh all ranks give the same spreads in the same order. In a process group ranks may
    give different spreads: values with the same process groups are first added up, and only their sum is reduced. The
    last process group of a tuple is reduced first, so a rank with (stages,) alone works together with one that also has
    (stages, experts). All ranks get the same bits, provided that unshared values are equal on all ranks.

    Args:
        values: tensors of one dtype and shape, of at least one spread.

    Returns:
        Tensor of that shape, on an accelerator if any value is.

    Raises:
        ValueError: a process group is also one of a mesh, so that its ranks would count twice.
    """
    return _over_ranks(values, "sum")


def max_over_ranks(values: dict[Spread, Tensor]) -> Tensor:
    """The largest value, called like `sum_over_ranks`; nan counts as inf, because all-reduces may lose it."""
    return _over_ranks({spread: value.nan_to_num(inf, inf, -inf) for spread, value in values.items()}, "max")


def _over_ranks(values: dict[Spread, Tensor], operation: Literal["sum", "max"]) -> Tensor:
    import torch.distributed as dist

    combine, op = (torch.sum, dist.ReduceOp.SUM) if operation == "sum" else (torch.amax, dist.ReduceOp.MAX)
    home = accelerator_or_cpu(value.device for value in values.values())
    meshes = {spread: _mesh_groups(spread) for spread in values}
    totals = dict(values)
    for group, device in dict.fromkeys(pair for pairs in meshes.values() for pair in pairs):
        sharded = [spread for spread in values if (group, device) in meshes[spread]]
        together = torch.stack([totals[spread].to(device) for spread in sharded])
        dist.all_reduce(together, op, group=group)
        totals.update(zip(sharded, together.unbind(), strict=True))

    waiting: dict[Groups, list[Tensor]] = defaultdict(list)
    for (_, groups), total in totals.items():
        waiting[groups].append(total.to(home))
    for depth in range(max([len(groups) for groups in waiting]), 0, -1):
        for groups in [groups for groups in waiting if len(groups) == depth]:
            whole = combine(torch.stack(waiting[groups]), 0).to(_device_of(groups[-1], home))
            dist.all_reduce(whole, op, group=groups[-1])
            waiting[groups[:-1]].append(whole.to(home))
    return combine(torch.stack(waiting[()]), 0)


def _mesh_groups(spread: Spread) -> "list[tuple[ProcessGroup, str]]":
    """The process groups of a mesh to reduce over, each with the type of device that it communicates through."""
    sharding, groups = spread
    if sharding is None:
        return []
    mesh, dims = sharding
    own = [(mesh.get_group(dim), mesh.device_type) for dim in dims]
    if any(group in groups for group, _ in own):
        raise ValueError(
            f"norm_group has a process group of {mesh}, whose DTensors are added up anyway: leave it out, or its ranks "
            "count twice"
        )
    return own


def _device_of(group: "ProcessGroup", home: torch.device) -> torch.device:
    """The device for a process group's messages: ``home`` if it supports that, else its first type of device."""
    if torch.compiler.is_compiling():  # a compiled graph cannot query a process group
        return home
    types = [device.type for device in group._device_types]
    return home if home.type in types or not types else torch.device(types[0])


def own_generator(params: Sequence[Tensor]) -> torch.Generator:
    """A CPU generator seeded from torch's global one; in a distributed run all ranks use rank 0's seed."""
    return torch.Generator().manual_seed(shared_seed(int(torch.randint(2**62, (), device="cpu")), params))


def shared_seed(seed: int, params: Sequence[Tensor]) -> int:
    """Rank 0's seed, on all ranks; a single process keeps its own.

    Ranks often seed torch differently, for their data. But what is drawn for replicas or for shards of one tensor must
    be equal on all ranks. The function communicates, so every rank must call it.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return seed
    device = params[0].device_mesh.device_type if is_dtensor(params[0]) else params[0].device
    shared = torch.tensor(seed % 2**63, dtype=torch.int64, device=device)
    dist.broadcast(shared, src=0)
    return int(shared)


def refuse_flat_shards(params: Iterable[Tensor]) -> None:
    """ValueError for parameters of FSDP's first version, whose shards look like plain tensors."""
    for param in params:
        if getattr(param, "_fsdp_flattened", False):
            raise ValueError(
                f"params has one of shape {tuple(param.shape)} that FullyShardedDataParallel flattened, which hides "
                "how it is sharded: use torch.distributed.fsdp.fully_shard"
            )
