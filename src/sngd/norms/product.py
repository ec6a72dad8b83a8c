"""The norm of all weights of a model together: a product of balls, one for each weight or for all l2 weights."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sngd.checks import positive
from sngd.norms.global_norm import global_norm, times_power_of_two
from sngd.norms.l2 import L2
from sngd.norms.names import find_norm
from sngd.norms.norm import Norm, inner
from sngd.norms.spectral import Spectral


class Block(NamedTuple):
    """Weights of one norm and one radius r: every one is a ball of its own, but for l2, which has one ball for all."""

    norm: Norm
    radius: float
    members: tuple[int, ...]  # positions in the list of weights


@dataclass(frozen=True)
class Product:
    r"""‖w‖ = max_B ‖w_B‖_B / r_B over the balls B; ‖v‖\* = Σ_B r_B ‖v_B‖_B\*; κ² = Σ_B r_B² κ_B².

    SNGD's steps of length α are unit steps of this norm with r_B = (learning rate of B's group)/α. All methods take
    lists of tensors, one for each weight in the same order. ``docs/theory.md`` derives the formulas.

        >>> import torch
        >>> norm = product_of([torch.zeros(2, 2), torch.zeros(3)], "sign(scaled=False)")
        >>> vs = [torch.tensor([[3.0, -1.0], [0.0, 2.0]]), torch.ones(3)]
        >>> norm.dual(vs).item(), norm.size(vs).item(), round(norm.kappa, 3)
        (9.0, 3.0, 2.646)
    """

    blocks: tuple[Block, ...]
    shapes: tuple[tuple[int, ...], ...]

    @torch.no_grad()
    def units(self, vs: Sequence[Tensor]) -> list[Tensor]:
        """u with ‖u‖ ≤ 1 and the largest ⟨v, u⟩, as SNGD's step takes it; float32 or wider."""
        units = list(vs)
        for norm, radius, members in self.blocks:
            own = [vs[i] for i in members]
            for i, unit in zip(members, _joint_units(own) if isinstance(norm, L2) else norm.units(own), strict=True):
                units[i] = unit * radius
        return units

    @torch.no_grad()
    def dual(self, vs: Sequence[Tensor]) -> Tensor:
        """‖v‖* = ⟨v, units(v)⟩, a 0-d tensor; nan if an entry of v is not finite."""
        if not all(bool(v.isfinite().all()) for v in vs):  # the SVD would fail
            return torch.tensor(torch.nan, dtype=torch.float64)
        return inner(vs, self.units(vs))

    @torch.no_grad()
    def size(self, ws: Sequence[Tensor]) -> Tensor:
        """‖w‖, a 0-d tensor."""
        sizes = []
        for norm, radius, members in self.blocks:
            own = [ws[i] for i in members]
            of_balls = [_joint_norm(own)] if isinstance(norm, L2) else [norm.size(w) for w in own if w.numel()]
            sizes += [size.double() / radius for size in of_balls]
        largest: Tensor = torch.stack(sizes).amax()
        return largest

    @property
    def kappa(self) -> float:
        """κ with ‖v‖* ≤ κ‖v‖₂ for all v."""
        squares = [
            (radius * (1.0 if isinstance(norm, L2) else norm.kappa(self.shapes[i]))) ** 2
            for norm, radius, members in self.blocks
            for i in (members[:1] if isinstance(norm, L2) else members)
        ]
        return sqrt(fsum(squares))

    @property
    def inexactness(self) -> tuple[float, float]:
        """ε and δ with ⟨v, units(v)⟩ ≥ (1 − ε)‖v‖* and ‖units(v)‖ ≤ 1 + δ, but for rounding; 0 for exact norms."""
        pairs = [norm.inexactness(self.shapes[i]) for norm, _, members in self.blocks for i in members]
        return max(shortfall for shortfall, _ in pairs), max(overshoot for _, overshoot in pairs)

    @property
    def exact(self) -> "Product":
        """The same norm without iterations: its ``dual`` and ``size`` are those of the definition."""
        blocks = (
            block._replace(norm=replace(block.norm, coefficients="svd")) if isinstance(block.norm, Spectral) else block
            for block in self.blocks
        )
        return replace(self, blocks=tuple(blocks))

    @property
    def is_euclidean(self) -> bool:
        """Whether it is ‖·‖₂ of all weights."""
        return all(isinstance(norm, L2) and radius == 1 for norm, radius, _ in self.blocks)

    def __str__(self) -> str:
        """The norms, each once, with radii that are not 1: ``spectral, 16 × sign``."""
        names = {str(norm) if radius == 1 else f"{radius:g} × {norm}": None for norm, radius, _ in self.blocks}
        return ", ".join(names)


def _joint_norm(vs: Sequence[Tensor]) -> Tensor:
    return global_norm([v.double() for v in vs])


def _joint_units(vs: Sequence[Tensor]) -> list[Tensor]:
    norm = _joint_norm(vs)
    wide = times_power_of_two(vs, 0)
    return [torch.where(norm > 0, v / norm.to(v.dtype), 0) for v in wide]


NormLike = str | Norm | Product | Iterable[Mapping[str, Any]]


def product_of(params: Sequence[Tensor], norm: NormLike = "l2", *, lr: float | None = None) -> Product:
    """The product norm of these weights.

    Args:
        params: the weights, in the order of all later lists of tensors.
        norm: a norm or its name, for all weights; or param groups with "params", "norm" and "lr", as ``sngd.groups``
            gives them and ``SNGD.param_groups`` has them; or a ``Product`` of as many weights, which is returned.
        lr: α > 0 of which param groups' learning rates are multiples, r = lr of the group/α; None: the first group's.

    Raises:
        ValueError: the groups have a parameter that is not in ``params``, or lack one; a learning rate is not above 0;
            or groups of norm l2, which share one ball, have different learning rates.
    """
    shapes = tuple(tuple(p.shape) for p in params)
    if isinstance(norm, Product):
        if norm.shapes != shapes:
            raise ValueError(f"norm must be one of the model's {len(shapes)} weights, got one of {len(norm.shapes)}")
        return norm
    if isinstance(norm, str | Norm):
        return Product((Block(find_norm(norm), 1.0, tuple(range(len(params)))),), shapes)
    groups = [trained for group in norm if (trained := _trained(group))["params"]]
    if not groups:
        raise ValueError("norm must have at least one param group with weights that are trained")
    position = {param: i for i, param in enumerate(params)}
    lr = positive("lr", float(groups[0].get("lr", 1.0)) if lr is None else lr)
    blocks = [_block(group, position, lr) for group in groups]
    members = sorted(i for block in blocks for i in block.members)
    if members != list(range(len(params))):
        raise ValueError(f"norm must have every one of the model's {len(params)} weights once, got {len(members)}")
    joint = [block for block in blocks if isinstance(block.norm, L2)]
    if len({block.radius for block in joint}) > 1:
        rates = ", ".join(f"{block.radius * lr:g}" for block in joint)
        raise ValueError(f"lr must be the same in all groups of norm l2, which share one ball, got {rates}")
    others = [block for block in blocks if not isinstance(block.norm, L2)]
    if joint:
        others.append(joint[0]._replace(members=tuple(i for block in joint for i in block.members)))
    return Product(tuple(others), shapes)


def _trained(group: Mapping[str, Any]) -> dict[str, Any]:
    return {**group, "params": [param for param in group["params"] if param.requires_grad]}


def _block(group: Mapping[str, Any], position: Mapping[Tensor, int], lr: float) -> Block:
    for param in group["params"]:
        if param not in position:
            raise ValueError(f"norm has a weight of shape {tuple(param.shape)} that is none of the model's")
    radius = positive("lr of a param group", float(group.get("lr", lr))) / lr
    return Block(
        find_norm(group.get("norm", "l2")),
        float(f"{radius:.12g}"),  # 16 · 0.1/0.1 is 16
        tuple(position[param] for param in group["params"]),
    )
