"""A step of SNGD against torch's bare calls that it needs, and against what else a user would write."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from sngd.bench.peers import Build, kahan_peers, missing_peers, other_peers, plain_peers
from sngd.bench.result import Comparison, Result, compared
from sngd.bench.timing import Call, interleaved
from sngd.norms import Spectral
from sngd.optim import SNGD
from sngd.param_groups import groups as groups_by_kind
from sngd.problems.gpt import GPT
from sngd.problems.models import mlp
from sngd.problems.resnet import cifar_resnet
from sngd.problems.shakespeare import SMALL

Shape = tuple[int, ...]


def _of(model: nn.Module) -> list[Shape]:
    return [tuple(p.shape) for p in model.parameters()]


def _gpt(case: str) -> GPT:
    """Without memory for its weights."""
    with torch.device("meta"):
        if case == "gpt2":
            return GPT(50257, context=1024, layers=12, heads=12, width=768)
        return GPT(65, context=SMALL.context, layers=SMALL.layers, heads=SMALL.heads, width=SMALL.width)


SHAPES: dict[str, Callable[[], list[Shape]]] = {  # of the weights
    "mlp": lambda: _of(mlp(784, 100, 10)),
    "resnet56": lambda: _of(cifar_resnet(56)),
    "shakespeare": lambda: _of(_gpt("shakespeare")),
    "gpt2": lambda: _of(_gpt("gpt2")),
    "tiny": lambda: _of(mlp(64, 32, 10)),
    **{f"{count} tensors of 1000": lambda count=count: [(1000,)] * count for count in (1, 10, 100, 1000)},  # type: ignore[misc]
    **{f"4 tensors of 10^{power}": lambda power=power: [(10, 10 ** (power - 1))] * 4 for power in (3, 4, 5, 6, 7)},  # type: ignore[misc]
}
GPTS = ("shakespeare", "gpt2")  # of which it is known which weight is an embedding, a hidden matrix, or the output's
MODELS = ("mlp", "resnet56", *GPTS)
GROWTH = tuple(name for name in SHAPES if " tensors of " in name)  # how time grows with tensors and entries
CASES = (*MODELS, *GROWTH)
SECONDS = 4.0
GOALS = {"mlp": 2.0, "resnet56": 1.15, "gpt2": 1.05}  # against the bare calls, without options
OPTION_GOAL = 0.75  # against clipping and SGD(foreach) with the same option

COPY_GOAL = 1.15  # on an accelerator, of the largest model

BARE, CLIP, FUSED, ADAMW = "bare calls", "clip + SGD(foreach)", "clip + SGD(fused)", "AdamW(fused)"
COPY = "copying 16 bytes an entry"  # which a step moves at least: the gradients twice, the weights there and back
_SIZE = 1e-4  # of weights and gradients, so that neither a step nor decay is lost in rounding when results are compared
_LIMIT = 1.37e-3  # of clipping: less than any of the gradients' norms, and not so round that SNGD warns of clipping
_LR = 0.1
_STILL = 1e-12  # a learning rate that leaves the weights as they are while steps are timed
_BETA, _DECAY = 0.9, 0.1
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}  # clipping divides by norm + 1e-6; bfloat16 has 8 bits


@dataclass(frozen=True)
class Group:
    """Steps with the same options: SNGD's, and others by name.

    ``others`` change the weights as SNGD's step does, and are checked to do so before anything is timed. ``different``
    are what a user may take instead; they compute something else.
    """

    name: str
    ours: Build
    others: dict[str, Build]
    different: dict[str, Build] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    products: torch.dtype | None = None  # if they are computed in another one
    goals: dict[str, float] = field(default_factory=dict)
    overwritten: bool = False  # others write into the gradients, so that each has its own


def bench_step(
    *,
    cases: Sequence[str] = CASES,
    device: str = "cpu",
    seconds: float = SECONDS,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Result:
    """Compare steps on weights of a few shapes. Without options only, on those of ``GROWTH``.

    Args:
        cases: names in ``SHAPES``.
        device: "cpu" or "cuda". A call is timed until an accelerator has done its work.
        seconds: for each group of steps of each case.
        on_progress: called with what is measured next, how many groups are done, and how many there are.

    Raises:
        ValueError: two steps that should do the same arithmetic do not, or there is no such case.
    """
    if unknown := [case for case in cases if case not in SHAPES]:
        raise ValueError(f"cases must be some of {', '.join(SHAPES)}, got {', '.join(unknown)}")
    comparisons: list[Comparison] = []
    sizes: dict[str, dict[str, Any]] = {}
    left_out = missing_peers()
    groups_of = {case: list(groups(case, device)) for case in cases}
    done, count = 0, sum(map(len, groups_of.values()))
    for case in cases:
        shapes = SHAPES[case]()
        parameters = sum(torch.Size(shape).numel() for shape in shapes)
        sizes[case] = {"tensors": len(shapes), "parameters": parameters, "rounds": {}}
        for group in groups_of[case]:
            on_progress(f"{case}, {group.name}", done, count)
            check(group, shapes, device)
            found, rounds = _measured(case, group, shapes, device, seconds, left_out)
            comparisons += found
            sizes[case]["rounds"][group.name] = rounds
            done += 1
    return Result("step", device, sizes, comparisons, left_out)


def groups(case: str, device: str = "cpu") -> Iterator[Group]:
    """The groups of steps for a case: without options, with each option, in each norm."""
    if case in GROWTH:
        yield Group("SNGD", _sngd(), {BARE: _bare, **_clipped()})
        return
    bare, other = {BARE: GOALS[case]} if case in GOALS else {}, _others()
    if device != "cpu":
        bare, other = {COPY: COPY_GOAL} if case == "gpt2" else {}, _others() | {COPY: _copy}
    yield Group("SNGD", _sngd(), {BARE: _bare, **_clipped(), **plain_peers(_LIMIT)}, other, goals=bare)
    momentum, goal = {"momentum": _BETA}, {CLIP: OPTION_GOAL}
    with_momentum = {BARE: _bare_momentum, **_clipped(**momentum)}
    others = {} if case == "gpt2" else other_peers(_LIMIT)  # of which one takes seconds for a step
    yield Group("SNGD momentum", _sngd(**momentum), with_momentum, others, goals=goal)
    average = _sngd(**momentum, normalize="momentum")
    averaged = _clipped(momentum=_BETA, dampening=1 - _BETA)
    yield Group("SNGD average", average, {BARE: _bare_average}, averaged)
    decay = {"weight_decay": _DECAY}
    yield Group("SNGD decay", _sngd(**decay), {BARE: _bare_decay}, _clipped(**decay), goals=goal)
    yield Group("SNGD capped", _capped, _clipped(), goals=goal)
    kahan = kahan_peers(_LIMIT)
    goals = dict.fromkeys(kahan, OPTION_GOAL)
    ours = _sngd(kahan_sum=True)
    narrow: dict[str, Any] = {"dtype": torch.bfloat16, "goals": goals, "overwritten": True}
    yield Group("SNGD Kahan", ours, {BARE: _bare_kahan}, kahan, **narrow)
    if case in MODELS and compiles(device):
        yield Group("SNGD Kahan compiled", _compiled(kahan_sum=True), {"SNGD Kahan": ours}, kahan, **narrow)
    for name, step in (("layer", _bare_layer), ("sign", _bare_sign), ("row", _bare_row), ("col", _bare_col)):
        yield Group(f"SNGD {name}", _sngd(norm=f"{name}(scaled=False)"), {BARE: step}, _others())
    if case != "gpt2":  # of its embedding it would take a minute
        products = None if device == "cpu" else torch.bfloat16
        ours = _sngd(norm="spectral(scaled=False)")
        yield Group("SNGD spectral", ours, {BARE: _bare_spectral}, _others(), products=products)
    if case in GPTS:
        yield Group("SNGD scion", _scion(case), {}, _others())


# --- the same arithmetic


def check(group: Group, shapes: Sequence[Shape], device: str = "cpu") -> None:
    """ValueError unless two steps of each of the others move the weights as two steps of SNGD do."""
    start = _weights(shapes, group.dtype, device)
    expected = _moved(group.ours, start)
    length = _length(expected)
    for name, build in group.others.items():
        moved = _moved(build, start)
        off = _length([a - b for a, b in zip(moved, expected, strict=True)]) / length
        if not off <= _TOLERANCE[group.products or group.dtype]:
            raise ValueError(f"{group.name} and {name} must do the same arithmetic, but differ by {off:.2g} of a step")


def _moved(build: Build, start: list[Tensor]) -> list[Tensor]:
    """How far two steps move the weights."""
    params: list[Tensor] = [nn.Parameter(p.detach().clone()) for p in start]
    for param, p in zip(params, start, strict=True):
        param.grad = None if p.grad is None else p.grad.clone()
    step = build(params, _LR)
    step()
    step()
    return [param.detach().float() - p.detach().float() for param, p in zip(params, start, strict=True)]


def _length(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt())


def _weights(shapes: Sequence[Shape], dtype: torch.dtype, device: str) -> list[Tensor]:
    """The same weights at each call, with gradients."""
    generator = torch.Generator(device).manual_seed(0)

    def drawn(shape: Shape) -> Tensor:
        return (_SIZE * torch.randn(shape, generator=generator, device=device)).to(dtype)

    params: list[Tensor] = [nn.Parameter(drawn(shape)) for shape in shapes]
    for p, shape in zip(params, shapes, strict=True):
        p.grad = drawn(shape)
    return params


# --- times


def _measured(
    case: str, group: Group, shapes: Sequence[Shape], device: str, seconds: float, left_out: dict[str, str]
) -> tuple[list[Comparison], int]:
    """The group's comparisons, and the number of rounds."""
    params = _weights(shapes, group.dtype, device)
    calls = {group.name: _finished(group.ours(params, _STILL), device)}
    for name, build in {**group.others, **group.different}.items():
        try:
            own = _weights(shapes, group.dtype, device) if group.overwritten else params
            calls[name] = _finished(build(own, _STILL), device)
            calls[name]()
        except (RuntimeError, TypeError, ValueError, AttributeError, ImportError) as error:
            if name in group.others:
                raise
            left_out[name] = " ".join(str(error).split())[:200]
            calls.pop(name, None)
    times = interleaved(calls, seconds=seconds, warm_up=3)
    if not _length(_grads(params)) > 0.9 * _LIMIT:  # to which clipping scales them
        raise ValueError(f"{group.name}: one of {', '.join(calls)} overwrites the gradients, which all steps share")
    rows = [
        compared(case, group.name, name, times, same=name in group.others, goal=group.goals.get(name))
        for name in calls
        if name != group.name
    ]
    return rows, len(times[group.name])


def _finished(call: Call, device: str) -> Call:
    """The call, until its device has done the work."""
    if device == "cpu":
        return call

    def finished() -> None:
        call()
        torch.cuda.synchronize()

    return finished


# --- steps


def _sngd(**options: Any) -> Build:
    return lambda params, lr: SNGD(params, lr, **options).step


@cache
def compiles(device: str) -> bool:
    """Whether ``torch.compile`` works there: on the CPU it wants a C++ compiler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        try:
            torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
        except Exception:  # the compiler's, of which there are many kinds
            return False
    return True


def _compiled(**options: Any) -> Build:
    """The step as ``torch.compile`` makes it, after one that makes the buffers: so it is compiled once."""

    def build(params: list[Tensor], lr: float) -> Call:
        rate = torch.tensor(0.0)  # at which the first step makes the buffers and moves nothing
        optimizer = SNGD(params, rate, **options)
        optimizer.step()
        rate.fill_(lr)
        torch._dynamo.reset()  # which compiles one function a few times only
        step: Call = torch.compile(optimizer.step)
        return step

    return build


def _capped(params: list[Tensor], lr: float) -> Call:
    return SNGD(params, lr, max_scale=lr / _LIMIT).step


def _scion(case: str) -> Build:
    """Normalized momentum with the norms of ``sngd.groups``: spectral for hidden matrices, row for positions, …"""

    def build(params: list[Tensor], lr: float) -> Call:
        model = _gpt(case)
        given = dict(zip(model.parameters(), params, strict=True))
        groups = [
            {"params": [given[p] for p in group["params"]], "norm": group["norm"], "lr": group["lr"]}
            for group in groups_by_kind(model, lr)
        ]
        return SNGD(groups, momentum=_BETA, normalize="momentum").step

    return build


def _adamw(params: list[Tensor], lr: float) -> Call:
    return torch.optim.AdamW(params, lr, fused=True).step


def _others() -> dict[str, Build]:
    return {ADAMW: _adamw}


def _copy(params: list[Tensor], _lr: float) -> Call:
    entries = sum(p.numel() for p in params)
    source, target = torch.zeros(2, 2 * entries, device=params[0].device)  # 8 bytes an entry, read and written

    def copy() -> None:
        target.copy_(source)

    return copy


def _clipped(**options: Any) -> dict[str, Build]:
    """``clip_grad_norm_`` and torch's SGD: a step of length lr while gradients are longer than the limit."""

    def build(params: list[Tensor], lr: float, **implementation: bool) -> Call:
        optimizer = torch.optim.SGD(params, lr / _LIMIT, **options, **implementation)

        def step() -> None:
            clip_grad_norm_(params, _LIMIT)
            optimizer.step()

        return step

    return {
        CLIP: lambda params, lr: build(params, lr, foreach=True),
        FUSED: lambda params, lr: build(params, lr, fused=True),
    }


# --- the bare calls: the least that computes the step with torch's lists of tensors


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))))


def _grads(params: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def _bare(params: list[Tensor], lr: float) -> Call:
    @torch.no_grad()
    def step() -> None:
        grads = _grads(params)
        torch._foreach_add_(params, grads, alpha=-lr / _norm(grads))

    return step


def _bare_momentum(params: list[Tensor], lr: float) -> Call:
    buffers = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step() -> None:
        grads = _grads(params)
        torch._foreach_mul_(buffers, _BETA)
        torch._foreach_add_(buffers, grads, alpha=1 / _norm(grads))
        torch._foreach_add_(params, buffers, alpha=-lr)

    return step


def _bare_average(params: list[Tensor], lr: float) -> Call:
    buffers = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step() -> None:
        torch._foreach_lerp_(buffers, _grads(params), 1 - _BETA)
        torch._foreach_add_(params, buffers, alpha=-lr / _norm(buffers))

    return step


def _bare_decay(params: list[Tensor], lr: float) -> Call:
    @torch.no_grad()
    def step() -> None:
        sums = torch._foreach_add(_grads(params), params, alpha=_DECAY)
        torch._foreach_add_(params, sums, alpha=-lr / _norm(list(sums)))

    return step


def _bare_kahan(params: list[Tensor], lr: float) -> Call:
    dropped = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step() -> None:
        grads = [g.float() for g in _grads(params)]
        news = [k.float() for k in dropped]
        torch._foreach_add_(news, grads, alpha=-lr / _norm(grads))
        torch._foreach_add_(news, [p.float() for p in params])
        torch._foreach_copy_(params, news)
        torch._foreach_sub_(news, [p.float() for p in params])
        torch._foreach_copy_(dropped, news)

    return step


def _bare_layer(params: list[Tensor], lr: float) -> Call:
    @torch.no_grad()
    def step() -> None:
        grads = _grads(params)
        torch._foreach_add_(params, torch._foreach_div(grads, torch._foreach_norm(grads)), alpha=-lr)

    return step


def _bare_sign(params: list[Tensor], lr: float) -> Call:
    @torch.no_grad()
    def step() -> None:
        torch._foreach_add_(params, torch._foreach_sign(_grads(params)), alpha=-lr)

    return step


def _by_length(params: list[Tensor], lr: float, dim: int) -> Call:
    @torch.no_grad()
    def step() -> None:
        for p, grad in zip(params, _grads(params), strict=True):
            matrix = grad.reshape(len(grad), -1)
            units = matrix / torch.linalg.vector_norm(matrix, dim=dim, keepdim=True)
            p.add_(units.view_as(p), alpha=-lr)

    return step


def _bare_row(params: list[Tensor], lr: float) -> Call:
    return _by_length(params, lr, dim=1)


def _bare_col(params: list[Tensor], lr: float) -> Call:
    return _by_length(params, lr, dim=0)


def _bare_spectral(params: list[Tensor], lr: float) -> Call:
    norm = Spectral(scaled=False)

    @torch.no_grad()
    def step() -> None:
        for p, grad in zip(params, _grads(params), strict=True):
            p.add_(norm.unit(grad), alpha=-lr)

    return step
