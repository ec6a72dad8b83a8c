"""The user's own problem, from `path/to/file.py:factory`.

The contract: the file is Python, `factory` is a function in it that takes no arguments and returns a
`sngd.problems.Problem`:

    def factory():
        x = torch.randn(500, 20)
        y = (x[:, 0] > 0).long()
        return Problem(lambda: nn.Linear(20, 2), nn.functional.cross_entropy, train=(x, y))

It must return the same samples at every call, or runs could be neither resumed nor compared. To help with
that, torch's CPU generator is seeded with 0 during the call and restored afterwards. Seed other generators yourself.
The file can import the modules in its folder.

The problem is tried on two samples, in eval mode. The loss must be a real number that depends on the model's weights.
It must be the *mean* over the batch, because a sum would make learning rates depend on the batch size. Numbers that are
not finite are allowed, because a model may handle missing values. But if all inputs or all targets are not finite and
the loss is not finite either, the problem is refused. So is one that changes samples in place, also in training mode.
"""

import copy
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise
from math import isclose
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sngd.problems.columns import materialized
from sngd.problems.eval_mode import in_eval_mode
from sngd.problems.problem import Problem, Samples, share_not_finite

_REQUIRED = ("build_model", "loss", "train")
_PARTS = ("inputs", "targets")


def load_user_problem(spec: str) -> Problem:
    """Imports the file, calls the factory and tries what it returns.

    Raises:
        ValueError: what is wrong, with the user's file and where possible the line in it; an exception of
            the user's own code is its cause.
    """
    path, name = _split(spec)
    with _beside(path), _seeded():
        with _users_code(path, "while it was imported"):
            module = _import(path)
        factory = _pick(module, path, name)
        with _users_code(path, f"in {name}()"):
            problem = factory()
        with _users_code(path, f"when what {name}() returned was looked at"):
            shortcoming = None if isinstance(problem, Problem) else _shortcoming(problem)
        if shortcoming:
            raise ValueError(f"{path}: {name}() returned {shortcoming}")
        assert isinstance(problem, Problem)
        with _users_code(path, f"when the problem of {name}() was tried on two samples"):
            _try(problem)
    return problem


def _split(spec: str) -> tuple[Path, str]:
    file, _, name = spec.rpartition(":")
    if not file or not name:
        raise ValueError(f"{spec}: names no function, must be path/to/file.py:factory")
    path = Path(file).expanduser()
    if path.suffix != ".py":
        raise ValueError(f"{path}: is no Python file, its name must end in .py")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return path, name


def _import(path: Path) -> ModuleType:
    """Imports the file under a name of sngd's, so that a file called `torch.py` or `test.py` hides no other module."""
    path = path.resolve()
    name = f"_sngd_user_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _pick(module: ModuleType, path: Path, name: str) -> Callable[[], object]:
    with _users_code(path, f"when {name} was looked up"):  # a module's __getattr__ is the user's code as well
        absent = not hasattr(module, name)
        factory: Any = None if absent else getattr(module, name)
        signature = inspect.signature(factory) if callable(factory) else None
        offer = _offer(module)
    if absent:
        raise ValueError(f"{path}: has no {name!r}, {offer}")
    if signature is None:
        raise ValueError(f"{path}: {name} is a value of type {type(factory).__name__}, {offer}")
    try:
        signature.bind()
    except TypeError as error:
        raise ValueError(f"{path}: {name}{signature} must take no arguments, but: {error}") from error
    return factory  # type: ignore[no-any-return]


def _offer(module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__ and name[0] != "_"
    ]
    return f"must be one of its functions: {', '.join(own)}" if own else "and no function at all"


def _try(problem: Problem) -> None:
    build_model: Callable[[], object] = problem.build_model  # not yet checked to return a model
    model = build_model()
    if not isinstance(model, nn.Module):
        raise TypeError(f"build_model must return an nn.Module, got a value of type {type(model).__name__}")
    if build_model() is model:
        raise ValueError("build_model must build a new model at each call, got the same one twice")
    with in_eval_mode(model):  # dropout would make the loss random, and few samples may be too few to normalize
        _try_samples(problem, model, "train", problem.train)
        if problem.test is not None:
            _try_samples(problem, model, "test", problem.test)
    _try_training_mode(problem, model)


def _try_samples(problem: Problem, model: nn.Module, field: str, samples: Samples) -> None:
    inputs, targets = materialized(tuple(part[:2] for part in samples))
    if problem.augment is not None and field == "train":
        count, varied = len(inputs), problem.augmented((inputs, targets), torch.Generator().manual_seed(0))
        if len(varied) != len(_PARTS):
            raise ValueError(f"augment must return inputs or a pair (inputs, targets), got a tuple of {len(varied)}")
        inputs, targets = (_tried("augment", part, count, what) for part, what in zip(varied, _PARTS, strict=True))

    def loss_of(times: int) -> Tensor:
        """The loss of the samples, `times` times each."""
        given, labels = torch.cat([inputs] * times), torch.cat([targets] * times)
        prepared = given
        if problem.prepare is not None:
            prepared = _tried("prepare", problem.prepare(given), len(given), "inputs")
        loss = problem.loss(model(prepared), labels)
        _check_unchanged(given, labels, field)
        return loss

    loss = loss_of(1)
    _check_loss(loss, model)
    if not loss.isfinite():
        for part, numbers in zip(_PARTS, samples, strict=True):
            if share_not_finite(numbers) == 1:
                raise ValueError(f"loss is {loss.item()}: none of the numbers in {field}'s {part} is finite")
    if len(samples[0]) > 1:  # of one sample, the sum is the mean
        _check_mean(loss_of)


def _try_training_mode(problem: Problem, model: nn.Module) -> None:
    """ValueError if samples are changed in place: full gradients are of the stored ones."""
    inputs, targets = (part.clone() for part in materialized(tuple(part[:2] for part in problem.train)))
    with torch.random.fork_rng(devices=[]), torch.no_grad(), suppress(Exception):  # two may be too few to normalize
        problem.mean_loss(copy.deepcopy(model), (inputs, targets))
    _check_unchanged(inputs, targets, "train")


def _check_unchanged(inputs: Tensor, targets: Tensor, field: str) -> None:
    """ValueError if copies of samples were changed in place."""
    if inputs._version or targets._version:
        raise ValueError(f"prepare, the model and loss must not change {field}'s samples in place: work on a copy")


def _check_loss(loss: object, model: nn.Module) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss must return a scalar tensor, got a value of type {type(loss).__name__}")
    if loss.dim() != 0:
        raise ValueError(f"loss must return a scalar, the batch's mean, got shape {tuple(loss.shape)}")
    if not loss.is_floating_point():
        raise TypeError(f"loss must return a real floating-point number, got dtype {loss.dtype}")
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise ValueError("build_model must return a model with at least one weight that requires a gradient")
    gradients = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else [None]
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            "loss must depend on the model's weights, but is detached from them, "
            "as by .detach(), .item(), argmax or no_grad()"
        )


def _check_mean(loss_of: Callable[[int], Tensor]) -> None:
    """ValueError for a sum. Repeating a batch leaves a mean unchanged, but what a sum gains doubles each time."""
    with torch.no_grad():
        losses = [loss_of(times).item() for times in (1, 2, 4, 8)]
    gains = [after - before for before, after in pairwise(losses)]
    noticeable = abs(gains[-1]) > 0.02 * abs(losses[-1])  # more than bfloat16's rounding
    if noticeable and all(isclose(after, 2 * before, rel_tol=0.05) for before, after in pairwise(gains)):
        raise ValueError(
            f"loss must return the batch's mean, but grows with the batch as a sum does, {losses[0]:.4g} for two "
            f"samples and {losses[1]:.4g} for the same two twice: for a loss of torch, use reduction='mean'"
        )


def _tried(field: str, part: object, count: int, what: str) -> Tensor:
    if not isinstance(part, Tensor):
        raise TypeError(f"{field} must return a tensor, got a value of type {type(part).__name__}")
    if part.shape[:1] != (count,):
        raise ValueError(f"{field} must return as many {what} as it is given, got shape {tuple(part.shape)}")
    return part


def _shortcoming(result: object) -> str:
    def has(field: str) -> bool:
        return field in result if isinstance(result, Mapping) else hasattr(result, field)

    missing = [field for field in _REQUIRED if not has(field)]
    kind = "None" if result is None else f"a value of type {type(result).__name__}"
    what = f"it lacks {', '.join(missing)}" if missing else "give its parts to Problem(...)"
    return f"{kind}, must be a sngd.problems.Problem: {what}"


@contextmanager
def _users_code(path: Path, doing: str) -> Iterator[None]:
    """Turns any exception of the user's code into one line that says where in the user's file it arose."""
    try:
        yield
    except (Exception, SystemExit) as error:
        line = _line(error, str(path.resolve()))
        where = f"{path}:{line}" if line else str(path)
        raise ValueError(f"{where}: {type(error).__name__} {doing}: {_text(error)}") from error


def _text(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())
    except (Exception, SystemExit) as failure:
        return f"(its message cannot be had: {type(failure).__name__})"


def _line(error: BaseException, file: str) -> int | None:
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == file), None)


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Puts the file's folder first on sys.path, as Python does for a script."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield
