"""A user's own file: good factories work, and each way to go wrong has its own exact line."""

import pickle
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sngd.problems import load_problem

PRELUDE = """\
import torch
from torch import nn
from sngd.problems import Problem
x, y = torch.zeros(4, 3), torch.tensor([0, 1, 1, 0])
build_model = lambda: nn.Linear(3, 2)
loss = nn.functional.cross_entropy
"""
AT = PRELUDE.count("\n") + 1  # the line where a test's own code begins

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(code: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(PRELUDE + textwrap.dedent(code))
        return path

    return write


def refused(path: Path, name: str = "make") -> str:
    """The message, less the file it must begin with."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        load_problem(f"{path}:{name}")
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    return message.removeprefix(f"{path}:").removeprefix(" ")


# --- what works


def test_the_example_is_a_problem_that_can_be_learnt() -> None:
    spec = f"{Path(__file__).parents[2]}/examples/my_problem.py:spirals"
    problem = load_problem(spec)
    assert (problem.name, problem.n, problem.classifies) == (spec, 1000, True)
    assert problem.test is not None
    torch.manual_seed(0)
    model = problem.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        problem.loss(model(problem.train[0]), problem.train[1]).backward()
        optimizer.step()
    inputs, targets = problem.test
    assert (model(inputs).argmax(1) == targets).float().mean() > 0.9


def test_a_name_of_its_own_is_kept(write: Write) -> None:
    path = write("def make(): return Problem(build_model, loss, (x, y), name='four points')")
    assert load_problem(f"{path}:make").name == "four points"


def test_inputs_are_augmented_then_prepared(write: Write) -> None:
    path = write(
        """
        def augment(inputs, generator):
            return inputs + torch.randint(2, inputs.shape, generator=generator)
        def prepare(inputs):
            return inputs.float() / 2
        def make():
            return Problem(build_model, loss, (x.to(torch.uint8), y), augment=augment, prepare=prepare)
        """
    )
    assert load_problem(f"{path}:make").train[0].dtype == torch.uint8


def test_a_relative_path(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write("def make(): return Problem(build_model, loss, (x, y))").parent)
    assert load_problem("mine.py:make").name == "mine.py:make"


def test_imports_what_lies_beside_it(write: Write) -> None:
    write("SIZE = 7", "a_sibling.py")
    path = write(
        """
        import a_sibling
        def make():
            return Problem(build_model, loss, (torch.zeros(a_sibling.SIZE, 3), torch.ones(a_sibling.SIZE).long()))
        """
    )
    before = list(sys.path)
    assert load_problem(f"{path}:make").n == 7
    assert sys.path == before
    del sys.modules["a_sibling"]


def test_dataclasses_and_pickling_work_inside(write: Write) -> None:
    path = write(
        """
        from dataclasses import KW_ONLY, dataclass
        @dataclass
        class Build:
            inputs: "int"  # as text: dataclasses looks for its meaning in the module
            _: "KW_ONLY"
            classes: "int"
            def __call__(self): return nn.Linear(self.inputs, self.classes)
        def make(): return Problem(Build(3, classes=2), loss, (x, y))
        """
    )
    build = load_problem(f"{path}:make").build_model
    assert pickle.loads(pickle.dumps(build)) == build


def test_a_file_may_be_called_like_a_module(write: Write) -> None:
    path = write("def make(): return Problem(build_model, loss, (x, y))", "torch.py")
    assert load_problem(f"{path}:make").n == 4
    assert sys.modules["torch"] is torch


def test_random_samples_are_the_same_at_every_call_and_disturb_nothing(write: Write) -> None:
    path = write("def make(): return Problem(build_model, loss, (torch.randn(4, 3), y))")
    torch.manual_seed(3)
    first = load_problem(f"{path}:make")
    drawn = torch.rand(())
    assert torch.equal(load_problem(f"{path}:make").train[0], first.train[0])
    torch.manual_seed(3)
    assert torch.equal(torch.rand(()), drawn)


# --- what is refused


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine.py", "mine.py: names no function, must be path/to/file.py:factory"),
        ("mine.py:", "mine.py:: names no function, must be path/to/file.py:factory"),
        (":make", ":make: names no function, must be path/to/file.py:factory"),
        ("mine.txt:make", "mine.txt: is no Python file, its name must end in .py"),
        ("nowhere/mine.py:make", "nowhere/mine.py: no such file"),
    ],
)
def test_bad_spec(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_problem(spec)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def maker(): ...\ndef other(): ...\ndef _hidden(): ...",
            "has no 'make', must be one of its functions: build_model, maker, other",
        ),
        ("del build_model", "has no 'make', and no function at all"),
        (
            "make = Problem(build_model, loss, (x, y))",
            "make is a value of type Problem, must be one of its functions: build_model",
        ),
        (
            "def make(n, seed=0): ...",
            "make(n, seed=0) must take no arguments, but: missing a required argument: 'n'",
        ),
        (
            "def make(): ...",
            "make() returned None, must be a sngd.problems.Problem: it lacks build_model, loss, train",
        ),
        (
            "def make(): return {'build_model': build_model, 'train': (x, y)}",
            "make() returned a value of type dict, must be a sngd.problems.Problem: it lacks loss",
        ),
        (
            "def make(): return {'build_model': build_model, 'train': (x, y), 'loss': loss}",
            "make() returned a value of type dict, must be a sngd.problems.Problem: give its parts to Problem(...)",
        ),
        (
            "def make():\n    return 1 / 0",
            f"{AT + 1}: ZeroDivisionError in make(): division by zero",
        ),
        (
            "def make():\n\n    return Problem(build_model, loss)",
            f"{AT + 2}: TypeError in make(): Problem.__init__() missing 1 required positional argument: 'train'",
        ),
        (
            "def make(): return Problem(build_model, loss, (x, y[:3]))",
            f"{AT}: ValueError in make(): train has 4 inputs and 3 targets, must be as many",
        ),
        ("import sys\nsys.exit(3)", f"{AT + 1}: SystemExit while it was imported: 3"),
        (
            "\n\nundefined",
            f"{AT + 2}: NameError while it was imported: name 'undefined' is not defined",
        ),
        (
            "def make(:",
            f"{AT}: SyntaxError while it was imported: invalid syntax (mine.py, line {AT})",
        ),
        (
            "def make(): raise RuntimeError('one\\n  two')",
            f"{AT}: RuntimeError in make(): one two",
        ),
    ],
)
def test_bad_file(code: str, message: str, write: Write) -> None:
    assert refused(write(code)) == message


TRIED = "when the problem of make() was tried on two samples"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "lambda: 'net', loss, (x, y)",
            f"TypeError {TRIED}: build_model must return an nn.Module, got a value of type str",
        ),
        (
            "lambda net=build_model(): net, loss, (x, y)",
            f"ValueError {TRIED}: build_model must build a new model at each call, got the same one twice",
        ),
        (
            "build_model, lambda a, b: 0.5, (x, y)",
            f"TypeError {TRIED}: loss must return a scalar tensor, got a value of type float",
        ),
        (
            "build_model, nn.CrossEntropyLoss(reduction='none'), (x, y)",
            f"ValueError {TRIED}: loss must return a scalar, the batch's mean, got shape (2,)",
        ),
        (
            "build_model, loss, (x[:, :2], y)",
            f"RuntimeError {TRIED}: mat1 and mat2 shapes cannot be multiplied (2x2 and 3x2)",
        ),
        (
            "build_model, loss, (x, y), augment=lambda x, generator: None",
            f"TypeError {TRIED}: augment must return a tensor, got a value of type NoneType",
        ),
        (
            "build_model, loss, (x, y), augment=lambda x, generator: torch.cat([x, x])",
            f"ValueError {TRIED}: augment must return as many inputs as it is given, got shape (4, 3)",
        ),
        (
            "build_model, loss, (x, y), prepare=lambda x: x.mean()",
            f"ValueError {TRIED}: prepare must return as many inputs as it is given, got shape ()",
        ),
        (
            "build_model, lambda a, b: a.nothing, (x, y)",
            f"{AT}: AttributeError {TRIED}: 'Tensor' object has no attribute 'nothing'",
        ),
    ],
)
def test_bad_problem(arguments: str, message: str, write: Write) -> None:
    assert refused(write(f"def make(): return Problem({arguments})")) == message


def test_the_users_exception_is_the_cause(write: Write) -> None:
    path = write("def make(): raise KeyError('x')")
    with pytest.raises(ValueError, match="KeyError in make") as caught:
        load_problem(f"{path}:make")
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_failed_import_leaves_no_module(write: Write) -> None:
    path = write("raise RuntimeError")
    before = set(sys.modules)
    refused(path)
    assert set(sys.modules) == before
