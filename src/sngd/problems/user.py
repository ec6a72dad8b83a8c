"""The user's own problem, from `path/to/file.py:factory`.

The contract: the file is Python, `factory` is a function in it that takes no arguments and returns a
`sngd.problems.Problem`::

    def factory():
        x = torch.randn(500, 20)
        y = (x[:, 0] > 0).long()
        return Problem(lambda: nn.Linear(20, 2), nn.functional.cross_entropy, train=(x, y))

It must return the same samples at every call, or runs could be neither resumed nor compared. To help with
that, torch's CPU generator is seeded with 0 for the duration and restored after; seed any other yourself.
The file can import the modules that lie beside it. What the factory returns is tried on two samples.
"""

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from sngd.problems.problem import Problem

_REQUIRED = ("build_model", "loss", "train")


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
        if not isinstance(problem, Problem):
            raise ValueError(f"{path}: {name}() returned {_shortcoming(problem)}")
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
    """Imports under a name of our own, so that a file called `torch.py` or `test.py` hides nothing."""
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
    if not hasattr(module, name):
        raise ValueError(f"{path}: has no {name!r}, {_offer(module)}")
    factory = getattr(module, name)
    if not callable(factory):
        raise ValueError(f"{path}: {name} is a value of type {type(factory).__name__}, {_offer(module)}")
    signature = inspect.signature(factory)
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
    build_model: Callable[[], object] = problem.build_model  # what it is meant to return is yet to be seen
    model = build_model()
    if not isinstance(model, nn.Module):
        raise TypeError(f"build_model must return an nn.Module, got a value of type {type(model).__name__}")
    if build_model() is model:
        raise ValueError("build_model must build a new model at each call, got the same one twice")
    inputs, targets = (part[:2] for part in problem.train)
    if problem.augment is not None:
        inputs = _tried("augment", problem.augment(inputs, torch.Generator().manual_seed(0)), len(inputs))
    if problem.prepare is not None:
        inputs = _tried("prepare", problem.prepare(inputs), len(inputs))
    with torch.no_grad():  # and in eval mode, because batch normalization may not train on so few samples
        loss: object = problem.loss(model.eval()(inputs), targets)
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss must return a scalar tensor, got a value of type {type(loss).__name__}")
    if loss.dim() != 0:
        raise ValueError(f"loss must return a scalar, the batch's mean, got shape {tuple(loss.shape)}")


def _tried(field: str, inputs: object, count: int) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise TypeError(f"{field} must return a tensor, got a value of type {type(inputs).__name__}")
    if inputs.shape[:1] != (count,):
        raise ValueError(f"{field} must return as many inputs as it is given, got shape {tuple(inputs.shape)}")
    return inputs


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
        text = " ".join(str(error).split())
        raise ValueError(f"{where}: {type(error).__name__} {doing}: {text}") from error


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
