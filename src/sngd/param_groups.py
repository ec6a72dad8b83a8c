"""Param groups with a norm for each kind of weight, found from the types of a model's modules."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from sngd.checks import check_one_of, count, cut, positive, shown, suggestion
from sngd.norms import L2, Norm, Spectral, find_norm

Number = float | Tensor

NORMS: dict[str, Norm] = {
    kind: find_norm(norm)
    for kind, norm in {
        "hidden": "spectral",
        "input": "spectral(scaled=max)",
        "convolution": "spectral",
        "embedding": "row(table=True)",
        "token": "sign(table=True)",
        "vector": "layer",
        "output": "sign",
    }.items()
}
RATIOS = dict.fromkeys(NORMS, 1.0) | {"convolution": 8.0, "output": 16.0}

# How many dimensions a weight of a kind may have: norms see shapes, and would see others wrongly.
_DIMENSIONS = {"hidden": {2}, "input": {2}, "convolution": {3, 4, 5}, "embedding": {2}, "vector": {0, 1}}


def groups(
    model: nn.Module,
    lr: Number = 0.03,
    *,
    norms: Mapping[str, str | Norm] | None = None,
    ratios: Mapping[str, float] | None = None,
    output: nn.Module | Iterable[nn.Module] | None = None,
    fused: Mapping[nn.Module, int] | None = None,
    kinds: Mapping[str | Tensor, str] | None = None,
) -> "ParamGroups":
    """Param groups of a model for ``SNGD``: a norm and a learning rate for each kind of weight.

        >>> import torch, sngd
        >>> model = torch.nn.Sequential(torch.nn.Linear(784, 100), torch.nn.ELU(), torch.nn.Linear(100, 10))
        >>> print(sngd.groups(model, lr=0.05))
        kind    norm                  lr    tensors  weights  first
        input   spectral(scaled=max)  0.05        1    78400  0.weight
        vector  layer                 0.05        2      110  0.bias
        output  sign                  0.8         1     1000  2.weight
        >>> optimizer = sngd.SNGD(sngd.groups(model, lr=0.05), momentum=0.9)

    A weight's kind follows from the type of the module that it is a parameter of, not from its name:

    | kind | weights | norm | ratio |
    |---|---|---|---|
    | hidden | `Linear`, `MultiheadAttention`, `LSTM`, other recurrent layers, transformers' `Conv1D` | `spectral` | 1 |
    | input | a `Linear` that is the model's first layer | `spectral(scaled=max)` | 1 |
    | convolution | `Conv1d` … `Conv3d` and `ConvTranspose1d` … | `spectral` | 8 |
    | embedding | `Embedding`, `EmbeddingBag` | `row(table=True)` | 1 |
    | vector | parameters of at most one dimension: biases, gains of normalization layers | `layer` | 1 |
    | output | a `Linear` that is the last layer, or that shares its weight with an embedding | `sign` | 16 |
    | token | what `kinds` says: class tokens, tables of positions | `sign(table=True)` | 1 |

    The norms are those that Scion recommends (Pethick et al. 2025, arXiv 2502.07529). All are scaled: a step of length
    1 changes a layer's outputs by about as much at every width.

    *The input and the output layer.* The layers (modules of the types above) are taken in the order in which the model
    registers them. The last one is the output layer, and the first one the input layer, if it is a ``Linear`` that
    stands alone: not inside an attention module or a layer of torch's transformer, and not inside a block of which the
    model has several beside each other. If a ``Linear`` shares its weight with an embedding, it is the output layer and
    the last one is not. A model may have neither, as one without its head. If a model registers its layers in another
    order than it calls them, name the output layer by ``output``; the table shows what was found.

    *Matrices that hold several.* The norm of such a weight gets ``parts``, so that each matrix takes the step that it
    would take alone: the weight of queries, keys and values of ``MultiheadAttention``; a ``Linear`` or ``Conv1D`` with
    2 or 3 times as many outputs as inputs, directly in a module whose class has "Attention" in its name; the gates of
    recurrent layers; the groups of a convolution. ``fused`` says it of other modules, or takes it back with 1.

    *Learning rates.* A group's lr is ``lr`` times the ratio of its kind. The norms bound how far a step moves a layer's
    outputs. The bound is loose for the sign norm, and for convolutions, whose factor divides by the kernel's size k²
    where k would do. The ratios make up for it, so that one lr serves different models: at 0.03 a small MLP, CNN and
    GPT, trained for 200 to 400 steps with one seed, ended near the best that they reached at 0.01, 0.03 and 0.1. With
    an output ratio of 4 the CNN and a GPT with tied weights were behind, and with 64 the MLP.
    Scion's ratios of output to hidden layers are 3.3 to 60 for GPTs, 20 for DeiT, 16 for a CNN and 1024 for an MLP.
    ``StagewiseLR`` and torch's schedulers keep the ratios between groups. The first group is that of hidden weights if
    there are any, so that a plan's learning rate is theirs.

    Parameters without ``requires_grad`` are left out. Sharded models (``fully_shard``, ``parallelize_module``), and
    models on the meta device, get the same groups as others.

    Args:
        model: the model with all that is trained. Its parameters may be tied.
        lr: learning rate, ≥ 0, of kinds with ratio 1.
        norms: norms by kind, in place of those above. A kind of your own, which ``kinds`` gives weights, needs one.
        ratios: lr of a kind over ``lr``, > 0, in place of those above; 1 for kinds of your own.
        output: the output layer, or several; () for a model without.
        fused: number of matrices in a module's weight, by module.
        kinds: kind of single parameters, by parameter or by its name in ``model.named_parameters()``.

    Returns:
        A list of dicts, as torch's optimizers take it, with "params", "param_names", "kind", "norm" and "lr". It prints
        as the table above.

    Raises:
        ValueError: a parameter cannot be placed; the error names it and its module. Or an argument names what is not in
            the model, or is out of its range.
    """
    norm_of = NORMS | {kind: find_norm(norm) for kind, norm in (norms or {}).items()}
    ratio_of = RATIOS | {kind: positive(f"the ratio of {kind}", ratio) for kind, ratio in (ratios or {}).items()}
    for option, given in (("a kind in ratios", ratios or {}), ("a kind in kinds", (kinds or {}).values())):
        for kind in given:
            check_one_of(option, kind, norm_of)
    order = list(norm_of)
    alike: dict[tuple[int, _Place], dict[str, Tensor]] = defaultdict(dict)
    for param, (name, place) in _places(model, kinds or {}, output, fused or {}).items():
        alike[order.index(place.kind), place][name] = param
    return ParamGroups(
        {
            "params": list(named.values()),
            "param_names": list(named),
            "kind": place.kind,
            "norm": _norm(norm_of[place.kind], place, next(iter(named))),
            "lr": lr * ratio_of.get(place.kind, 1.0),
        }
        for (_, place), named in sorted(alike.items(), key=lambda item: item[0])
    )


class ParamGroups(list[dict[str, Any]]):
    """Param groups as torch's optimizers take them, which print as a table."""

    def __str__(self) -> str:
        rows = [["kind", "norm", "lr", "tensors", "weights", "first"], *map(_row, self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(_aligned, row, widths, _RIGHT)).rstrip() for row in rows)

    __repr__ = __str__


_RIGHT = (False, False, False, True, True, False)


def _row(group: dict[str, Any]) -> list[str]:
    weights = sum(param.numel() for param in group["params"])
    lr = f"{float(group['lr']):g}"
    return [group["kind"], str(group["norm"]), lr, str(len(group["params"])), str(weights), group["param_names"][0]]


def _aligned(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


class _Place(NamedTuple):
    """What a weight is: its kind, how many matrices it holds, whether it is stored as (d_in, d_out, …)."""

    kind: str
    parts: int = 1
    transposed: bool = False


def _norm(norm: Norm, place: _Place, name: str) -> Norm:
    """The norm for weights that are stored so."""
    if place.parts == 1 and not place.transposed:
        return norm
    if isinstance(norm, Spectral):
        return replace(norm, parts=place.parts, transposed=place.transposed)
    if place.transposed and not isinstance(norm, L2):
        raise ValueError(
            f"{name} is stored as (d_in, d_out, …), which only spectral and l2 know, not the norm {norm}: give it "
            "a kind of its own by kinds, and this kind one of the two by norms"
        )
    return norm


def _places(
    model: nn.Module,
    kinds: Mapping[str | Tensor, str],
    output: nn.Module | Iterable[nn.Module] | None,
    fused: Mapping[nn.Module, int],
) -> dict[Tensor, tuple[str, _Place]]:
    """Name and place of every parameter that is trained, each once.

    Raises:
        ValueError: as ``groups``.
    """
    modules = dict(model.named_modules())
    layers = [path for path in modules if _is_layer(modules, path)]
    outputs = _output_layers(modules, layers) if output is None else _members(modules, layers, "output", output)
    roles = dict.fromkeys(_alone(modules, layers[:1]), "input") | dict.fromkeys(outputs, "output")
    _members(modules, layers, "fused", fused)
    parts = {module: count("a number in fused", number) for module, number in fused.items()}
    said = _said(model, kinds)
    places: dict[Tensor, dict[str, _Place | None]] = defaultdict(dict)  # by each name that the parameter has
    for path, module in modules.items():
        for own, param in _own(path, module).items():
            place = _by_type(modules, path, param)
            if place and param.dim() > 1:
                place = place._replace(kind=roles.get(module, place.kind), parts=parts.get(module, place.parts))
            places[param][f"{path}.{own}" if path else own] = place

    found: dict[Tensor, tuple[str, _Place]] = {}
    nowhere: list[str] = []
    for weight, named in places.items():
        place = _agreed(set(named.values()))
        if weight in said:
            place = (place or _Place(""))._replace(kind=said[weight])
        if place:
            found[weight] = next(iter(named)), place
            _check_shape(*found[weight], weight)
        else:
            nowhere += [f"{name} {tuple(weight.shape)} of {type(modules[_parent(name)]).__name__}" for name in named]
    if nowhere:
        example = nowhere[0].split()[0]
        raise ValueError(
            f"groups cannot place {cut(', '.join(nowhere))}: say what it is, as in kinds={{{example!r}: 'token'}}; a "
            f"kind is one of {', '.join(NORMS)}, or one of your own that you give a norm by norms"
        )
    return found


def _said(model: nn.Module, kinds: Mapping[str | Tensor, str]) -> dict[Tensor, str]:
    """The kinds that the caller gives, by parameter."""
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    params = set(named.values())
    said: dict[Tensor, str] = {}
    for key, kind in kinds.items():
        if isinstance(key, str) and key not in named:
            raise ValueError(f"kinds has {shown(key)}, which is no parameter of the model{suggestion(key, named)}")
        if isinstance(key, Tensor) and key not in params:
            raise ValueError(f"kinds has a tensor of shape {tuple(key.shape)}, which is no parameter of the model")
        said[named[key] if isinstance(key, str) else key] = kind
    return said


def _agreed(places: set[_Place | None]) -> _Place | None:
    """The one place of a parameter that several modules may share; None if there is none, or more than one.

    An output layer that shares its weight with an embedding is an output layer.
    """
    if {place.kind for place in places if place} == {"embedding", "output"}:
        places = {place for place in places if place and place.kind == "output"}
    return places.pop() if len(places) == 1 else None


def _check_shape(name: str, place: _Place, param: Tensor) -> None:
    dims = _DIMENSIONS.get(place.kind)
    if dims and param.dim() not in dims:
        raise ValueError(
            f"{name} of shape {tuple(param.shape)} cannot be of kind {place.kind}, which is for tensors of "
            f"{' or '.join(map(str, sorted(dims)))} dimensions"
        )
    if param.dim() > 1 and (outputs := param.shape[place.transposed]) % place.parts:
        raise ValueError(f"fused must divide the {outputs} outputs of {name}, got {place.parts}")


# --- what a module's type says


def _own(path: str, module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module itself that are trained."""
    own = {name: param for name, param in module.named_parameters(recurse=False) if param.requires_grad}
    for name, param in own.items():
        if isinstance(param, nn.UninitializedParameter):
            raise ValueError(f"{name} of {type(module).__name__} {path!r} has no shape yet: run the model once first")
    return own


def _by_type(modules: Mapping[str, nn.Module], path: str, param: Tensor) -> _Place | None:
    """The place of a parameter by the type of its module; None if that does not tell."""
    module = modules[path]
    if param.dim() <= 1:
        return _Place("vector")
    if isinstance(module, nn.modules.conv._ConvNd):
        groups_are_columns = module.transposed and module.groups > 1
        return None if groups_are_columns else _Place("convolution", module.groups, module.transposed)
    if param.dim() != 2:
        return None
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return _Place("embedding")
    if isinstance(module, nn.Linear):
        return _Place("hidden", _fused_in_attention(modules, path, *param.shape))
    if _is_conv1d(module):
        return _Place("hidden", _fused_in_attention(modules, path, *reversed(param.shape)), transposed=True)
    if isinstance(module, nn.MultiheadAttention):
        return _Place("hidden", 3 if param is module.in_proj_weight else 1)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return _Place("hidden", max(1, param.shape[0] // module.hidden_size))  # a projection has fewer rows
    return None


def _is_conv1d(module: nn.Module) -> bool:
    """Whether it is the linear layer of the package transformers that stores its weight as (d_in, d_out)."""
    kinds = type(module).__mro__
    return any(kind.__name__ == "Conv1D" and kind.__module__.split(".")[0] == "transformers" for kind in kinds)


def _fused_in_attention(modules: Mapping[str, nn.Module], path: str, rows: int, columns: int) -> int:
    """3 for queries, keys and values in one matrix, 2 for keys and values, else 1."""
    return rows // columns if _is_attention(modules[_parent(path)]) and rows in (2 * columns, 3 * columns) else 1


def _is_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


# --- the first and the last layer


def _is_layer(modules: Mapping[str, nn.Module], path: str) -> bool:
    """Whether a module has a trained weight of at least two dimensions whose place its type tells."""
    return any(param.dim() > 1 and _by_type(modules, path, param) for param in _own(path, modules[path]).values())


def _output_layers(modules: Mapping[str, nn.Module], layers: list[str]) -> set[nn.Module]:
    """The layers that share their weight with an embedding; if there are none, the last one if it stands alone."""
    tables = {modules[path].weight for path in layers if isinstance(modules[path], nn.Embedding | nn.EmbeddingBag)}
    linear = {modules[path] for path in layers if isinstance(modules[path], nn.Linear)}
    return {layer for layer in linear if layer.weight in tables} or _alone(modules, layers[-1:])


def _alone(modules: Mapping[str, nn.Module], paths: list[str]) -> set[nn.Module]:
    """Those that are a ``Linear`` outside attention, layers of torch's transformer and repeated blocks."""
    return {modules[path] for path in paths if isinstance(modules[path], nn.Linear) and not _in_block(modules, path)}


def _in_block(modules: Mapping[str, nn.Module], path: str) -> bool:
    names = path.split(".")
    around = [".".join(names[:depth]) for depth in range(1, len(names))]
    return any(isinstance(modules[block], _TORCH_BLOCKS) for block in ["", *around]) or any(
        _is_attention(modules[block]) or _is_repeated(modules, block) for block in around
    )


_TORCH_BLOCKS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def _is_repeated(modules: Mapping[str, nn.Module], path: str) -> bool:
    """Whether several modules of this type lie beside each other; a plain container says nothing by its type."""
    kind = type(modules[path])
    plain = issubclass(kind, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return not plain and sum(type(module) is kind for module in modules[_parent(path)].children()) > 1


def _members(
    modules: Mapping[str, nn.Module], layers: list[str], option: str, given: nn.Module | Iterable[nn.Module]
) -> set[nn.Module]:
    """The modules that the caller names; ValueError if one is no layer of the model."""
    members = {given} if isinstance(given, nn.Module) else set(given)
    for module in members - {modules[path] for path in layers}:
        raise ValueError(
            f"{option} has a module of type {type(module).__name__}, which is no layer of the model with a trained "
            "weight of its own"
        )
    return members
