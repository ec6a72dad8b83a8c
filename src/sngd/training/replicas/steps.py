"""The steps of all replicas at once, with a norm and a learning rate for each.

Each rule is the arithmetic of one optimizer on the matrix of all weights. The replicas' own optimizers keep options and
state: their buffers are views of rows, and a row that needs more care takes its own optimizer's step.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from sngd.norms import L2, find_norm
from sngd.norms.global_norm import ROOM
from sngd.optim import SNGD, Perturbed
from sngd.optim.options import averages
from sngd.training.replicas.layout import Layout


class Rule:
    """Steps by the replicas' own optimizers, one after the other: in any norm, and with any groups of parameters.

    Args:
        optimizers: of all rows.
        layout: of the rows.
        weights: (R, width); the optimizers' parameters are views of it.
        gradient: (R, width); the parameters' gradients are views of it.

    Attributes:
        matrices: what a step changes beside the weights.
    """

    def __init__(self, optimizers: Sequence[Optimizer], layout: Layout, weights: Tensor, gradient: Tensor) -> None:
        self.optimizers, self.layout, self.weights, self.gradient = optimizers, layout, weights, gradient
        self.groups = [optimizer.param_groups[0] for optimizer in optimizers]
        self.matrices: list[Tensor] = []
        self._columns: dict[str, Tensor] = {}

    def step(self, rows: Sequence[int]) -> None:
        """Let ``rows`` take a step. Others may change too; see ``Stack``."""
        for row in rows:
            self.optimizers[row].step()

    def options_changed(self) -> None:
        """The optimizers' options are other ones than at the last step."""
        self._columns.clear()

    def settle(self) -> None:
        """Put into the optimizers' state what a checkpoint needs."""

    def column(self, name: str, of: Callable[[dict[str, Any]], float]) -> Tensor:
        """A number for each row, (R, 1), computed from the options of its optimizer; ``name`` is the column's own."""
        if name not in self._columns:
            self._columns[name] = self.numbers([of(group) for group in self.groups])
        return self._columns[name]

    def option(self, name: str) -> Tensor:
        """An option of the optimizers as a column."""
        return self.column(name, lambda group: group[name])

    def numbers(self, values: Sequence[float]) -> Tensor:
        """``values`` as a column."""
        return torch.tensor(values, dtype=self.weights.dtype, device=self.weights.device).unsqueeze(1)

    def has(self, name: str) -> bool:
        """Whether an option is other than zero in some row."""
        return any(group[name] for group in self.groups)

    def decayed(self) -> Tensor:
        """g + λw of all rows; the matrix of gradients itself if no row has a λ."""
        if not self.has("weight_decay"):
            return self.gradient
        return torch.addcmul(self.gradient, self.weights, self.option("weight_decay"))


class _Stacked(Rule):
    """A rule of all rows at once, with a matrix for each buffer of the optimizers' state."""

    def __init__(self, optimizers: Sequence[Optimizer], layout: Layout, weights: Tensor, gradient: Tensor) -> None:
        super().__init__(optimizers, layout, weights, gradient)
        self._adopted = False
        self.matrices = [self._matrix(name) for name in self.buffers]

    @property
    def buffers(self) -> tuple[str, ...]:
        """Their names in the optimizers' state; by default the momentum, if there is one."""
        return ("momentum_buffer",) if self.has("momentum") else ()

    def _matrix(self, name: str) -> Tensor:
        rows = []
        for optimizer in self.optimizers:
            saved = [optimizer.state.get(param, {}).get(name) for param in _params(optimizer)]
            rows.append(None if any(tensor is None for tensor in saved) else cast(list[Tensor], saved))
        return self.layout.matrix(rows)

    def step(self, rows: Sequence[int]) -> None:
        if not self._adopted:
            self._adopt()
        self.step_all(rows)

    def _adopt(self) -> None:
        """Make the optimizers' buffers views of rows; they have none before their first step."""
        for name, matrix in zip(self.buffers, self.matrices, strict=True):
            for row, optimizer in enumerate(self.optimizers):
                if self.groups[row].get("momentum") != 0:  # alone, such a run has no buffer; AdamW has no such option
                    for param, view in zip(_params(optimizer), self.layout.views(matrix[row]), strict=True):
                        optimizer.state[param][name] = view
        self._adopted = True

    def options_changed(self) -> None:
        super().options_changed()
        self._adopted = False

    def step_all(self, rows: Sequence[int]) -> None:
        """Let all rows take a step, of which only those of ``rows`` count."""
        raise NotImplementedError


class GradientRule(_Stacked):
    """``torch.optim.SGD``: d = g + λw, u ← βu + d, w ← w − αu."""

    def step_all(self, rows: Sequence[int]) -> None:  # noqa: ARG002
        vectors = self.decayed()
        if self.matrices:
            vectors = self.matrices[0].mul_(self.option("momentum")).add_(vectors)
        self.weights.addcmul_(vectors, self.option("lr"), value=-1)


class NormalizedRule(_Stacked):
    """``sngd.SNGD`` in the ℓ2 norm. A row whose norm is zero, or hardly a number of its dtype, steps by itself."""

    def step_all(self, rows: Sequence[int]) -> None:
        group = self.groups[0]
        decoupled, mean = group["decoupled_weight_decay"], any(map(averages, self.groups))
        vectors = self.gradient if decoupled else self.decayed()
        if mean:
            vectors = self.matrices[0].lerp(vectors, self.column("1 − β", lambda group: 1 - group["momentum"]))
        norms = self.layout.norms(vectors)
        alone = self._out_of_range(rows, norms)
        before = [(matrix, matrix[alone]) for matrix in (self.weights, *self.matrices)] if alone else []

        scale = norms.reciprocal().unsqueeze(1)
        if any(group["max_scale"] < inf for group in self.groups):
            scale = torch.minimum(scale, self.column("cap", lambda group: group["max_scale"] / group["lr"]))
        if decoupled and self.has("weight_decay"):
            self.weights.mul_(self.column("1 − αλ", lambda group: 1 - group["lr"] * group["weight_decay"]))
        if mean:
            self.matrices[0].copy_(vectors)
        elif self.matrices:
            vectors = self.matrices[0].mul_(self.option("momentum")).addcmul_(vectors, scale)
            scale = torch.ones_like(scale)
        self.weights.addcmul_(vectors, scale.mul_(self.option("lr")), value=-1)

        for matrix, old in before:
            matrix[alone] = old
        for row in alone:
            self.optimizers[row].step()

    def _out_of_range(self, rows: Sequence[int], norms: Tensor) -> list[int]:
        """Those of ``rows`` whose squares, or whose 1/‖v‖, may have lost digits."""
        low, high = ROOM[norms.dtype]
        each = norms.tolist()
        return [row for row in rows if not low < each[row] < high]


class AdamRule(_Stacked):
    """``torch.optim.AdamW``: w ← (1 − αλ)w − α m̂/(√v̂ + ε)."""

    def __init__(self, optimizers: Sequence[Optimizer], layout: Layout, weights: Tensor, gradient: Tensor) -> None:
        super().__init__(optimizers, layout, weights, gradient)
        self.steps = [int(o.state.get(_params(o)[0], {}).get("step", 0)) for o in optimizers]

    @property
    def buffers(self) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq"

    def step_all(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.steps[row] += 1
        mean, square = self.matrices
        self.weights.mul_(self.column("1 − αλ", lambda group: 1 - group["lr"] * group["weight_decay"]))
        mean.lerp_(self.gradient, self.column("1 − β₁", lambda group: 1 - group["betas"][0]))
        new = self.gradient * self.column("1 − β₂", lambda group: 1 - group["betas"][1])
        square.mul_(self.column("β₂", lambda group: group["betas"][1])).addcmul_(new, self.gradient)
        below = (square.sqrt() / self._left(1).sqrt()).add_(self.option("eps"))
        self.weights.sub_((mean / below).mul_(self.option("lr") / self._left(0)))

    def _left(self, moment: int) -> Tensor:
        """1 − β^t, which corrects a running mean that began at zero; a column."""
        pairs = zip(self.groups, self.steps, strict=True)
        return self.numbers([1 - group["betas"][moment] ** max(1, step) for group, step in pairs])

    def settle(self) -> None:
        for optimizer, step in zip(self.optimizers, self.steps, strict=True):
            for param in _params(optimizer) if step else []:
                optimizer.state[param]["step"] = torch.tensor(float(step))


class PerturbedRule(Rule):
    """``sngd.Perturbed``: the wrapped optimizers' rule, and then noise from each replica's own generator."""

    def __init__(self, optimizers: Sequence[Optimizer], layout: Layout, weights: Tensor, gradient: Tensor) -> None:
        super().__init__(optimizers, layout, weights, gradient)
        self.perturbed = cast(Sequence[Perturbed], optimizers)
        self.wrapped = rule_of([o.optimizer for o in self.perturbed], layout, weights, gradient)
        self.matrices = self.wrapped.matrices

    def step(self, rows: Sequence[int]) -> None:
        self.wrapped.step(rows)
        for optimizer in (self.perturbed[row] for row in rows):
            if optimizer.std > 0 and optimizer.steps % optimizer.every == 0:
                optimizer._perturb()
            optimizer.steps += 1

    def options_changed(self) -> None:
        self.wrapped.options_changed()

    def settle(self) -> None:
        self.wrapped.settle()


def rule_of(optimizers: Sequence[Optimizer], layout: Layout, weights: Tensor, gradient: Tensor) -> Rule:
    """The rule of optimizers that a built-in step rule made; their own steps if there is no quicker one."""
    return _kind_of(optimizers, layout, weights)(optimizers, layout, weights, gradient)


def _kind_of(optimizers: Sequence[Optimizer], layout: Layout, weights: Tensor) -> type[Rule]:
    first = optimizers[0]
    if isinstance(first, Perturbed):
        return PerturbedRule
    if not all(_moves_all(optimizer, layout.views(row)) for optimizer, row in zip(optimizers, weights, strict=True)):
        return Rule
    if isinstance(first, SNGD) and not isinstance(find_norm(first.param_groups[0]["norm"]), L2):
        return Rule
    return _RULES.get(type(first), Rule)


def _moves_all(optimizer: Optimizer, views: Sequence[Tensor]) -> bool:
    """Whether it has one group, of all parameters of a row in their order."""
    in_order = [param.data_ptr() for param in _params(optimizer)] == [view.data_ptr() for view in views]
    return in_order and len(optimizer.param_groups) == 1


_RULES: dict[type[Optimizer], type[Rule]] = {SGD: GradientRule, SNGD: NormalizedRule, AdamW: AdamRule}


def _params(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]
