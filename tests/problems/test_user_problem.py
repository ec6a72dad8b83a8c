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
from sngd.training import RunConfig, train

PRELUDE = """\
import torch
from torch import nn
from sngd.problems import Problem
from sngd.training import RunConfig, train
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


def test_the_example_is_learnt_with_the_default_method(tmp_path: Path) -> None:
    """As ``sngd train examples/my_problem.py:spirals`` does it."""
    spec = f"{Path(__file__).parents[2]}/examples/my_problem.py:spirals"
    problem = load_problem(spec)
    assert (problem.name, problem.n) == (spec, 4000)
    row = train(RunConfig(spec, "sngd", threads=1), tmp_path)
    assert row["test_accuracy"] > 0.95


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


def test_an_augmentation_in_place_leaves_the_samples_as_they_are(write: Write) -> None:
    path = write("""
        def augment(inputs, generator):
            return inputs.neg_()

        def make():
            return Problem(lambda: nn.Linear(3, 3), loss, (torch.ones(5, 3), torch.arange(5) % 3), augment=augment)
    """)
    assert (load_problem(f"{path}:make").train[0] == 1).all()


@pytest.mark.parametrize(
    "arguments",
    [
        "build_model, loss, (x, y), prepare=lambda x: x.div_(2)",
        "lambda: nn.Sequential(nn.ReLU(inplace=True), build_model()), loss, (x, y)",
        "lambda: nn.Sequential(nn.Dropout(0.5, inplace=True), build_model()), loss, (x, y)",
        "build_model, lambda outputs, targets: loss(outputs, targets.clamp_(0)), (x, y)",
    ],
)
def test_samples_are_not_to_be_changed_in_place(write: Write, arguments: str) -> None:
    path = write(f"def make(): return Problem({arguments})")
    with pytest.raises(ValueError, match="must not change train's samples in place: work on a copy"):
        load_problem(f"{path}:make")


def test_a_layer_that_models_share_stays_in_training_mode(write: Write) -> None:
    path = write("""
        shared = nn.Dropout(0.5)

        def make():
            return Problem(lambda: nn.Sequential(build_model(), shared), loss, (x, y))
    """)
    assert all(module.training for module in load_problem(f"{path}:make").build_model().modules())


def test_targets_that_follow_from_augmented_inputs(write: Write) -> None:
    path = write(
        """
        def augment(inputs, generator):
            moved = inputs.roll(1 + int(torch.randint(2, (), generator=generator)), 1)
            return moved, moved.argmax(1)
        def make():
            inputs = torch.eye(3)
            return Problem(lambda: nn.Linear(3, 3), loss, (inputs, inputs.argmax(1)), augment=augment)
        """
    )
    problem = load_problem(f"{path}:make")
    inputs, targets = problem.augmented(problem.train, torch.Generator().manual_seed(1))
    assert torch.equal(targets, inputs.argmax(1))
    assert not torch.equal(targets, problem.train[1])


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


@pytest.mark.parametrize(
    "code",
    [
        "class_weights = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0])), (x, y)",
        "no_loss_at_all = lambda a, b: nn.functional.mse_loss(a, 0 * a.detach()) * 0, (x, y)",
        "contrastive = lambda a, b: nn.functional.cross_entropy(a @ a.T, torch.arange(len(a))), (x + 1, y)",
        "mean_and_penalty = lambda a, b: loss(a, b) + 100 * a.mean() ** 2, (x, y)",
        "sum_of_one_sample = nn.CrossEntropyLoss(reduction='sum'), (x[:1], y[:1])",
        "half = lambda a, b: loss(a, b).bfloat16(), (x + torch.randn(4, 3), y)",
        "double = lambda a, b: loss(a.double(), b), (x, y)",
        "ignored = nn.CrossEntropyLoss(ignore_index=-1), (x, torch.tensor([-1, -1, 0, 1]))",
    ],
)
def test_losses_of_many_kinds(code: str, write: Write) -> None:
    assert load_problem(f"{write(f'def make(): return Problem(build_model, {code.partition(chr(61))[2]})')}:make")


def test_batch_normalization_and_dropout(write: Write) -> None:
    net = "lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))"
    assert load_problem(f"{write(f'def make(): return Problem({net}, loss, (torch.randn(4, 3), y))')}:make").n == 4


@pytest.mark.parametrize("missing", ["x[:2] = torch.nan", "x[1:] = torch.nan"])
def test_missing_values_are_the_models_affair(missing: str, write: Write) -> None:
    """With all of the first two samples missing, too: the loss may leave out what is missing, in a batch of more."""
    path = write(f"{missing}\ndef make(): return Problem(build_model, loss, (x, y), prepare=torch.nan_to_num)")
    assert load_problem(f"{path}:make").n == 4
    path = write(
        f"""
        {missing}
        def present_only(outputs, targets):
            return (outputs - targets)[~targets.isnan()].mean()
        def make():
            return Problem(lambda: nn.Linear(1, 3), present_only, (torch.ones(4, 1), x))
        """
    )
    assert load_problem(f"{path}:make").n == 4


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
        (
            "class Mute(Exception):\n    def __str__(self): raise KeyError\ndef make(): raise Mute",
            f"{AT + 2}: Mute in make(): (its message cannot be had: KeyError)",
        ),
        (
            "class Mute(Exception):\n    def __str__(self): return 3\nraise Mute",
            f"{AT + 2}: Mute while it was imported: (its message cannot be had: TypeError)",
        ),
        (
            "def __getattr__(name): raise RuntimeError(f'no {name}')",
            f"{AT}: RuntimeError when make was looked up: no make",
        ),
        ("def __getattr__(name): return 5", "make is a value of type int, must be one of its functions: build_model"),
        (
            "def __getattr__(name): return lambda: name",
            "make() returned a value of type str, must be a sngd.problems.Problem: it lacks build_model, loss, train",
        ),
        (
            "class Shy:\n    def __getattribute__(self, name): raise RuntimeError('shy')\nshy = Shy()",
            "has no 'make', must be one of its functions: build_model, Shy",
        ),
        (
            "class Shy:\n    def __call__(self): ...\n"
            "    def __getattribute__(self, name): raise RuntimeError('shy')\nmake = Shy()",
            f"{AT + 2}: RuntimeError when make was looked up: shy",
        ),
        (
            "class Shy:\n    def __getattribute__(self, name): raise RuntimeError('shy')\ndef make(): return Shy()",
            f"{AT + 1}: RuntimeError when what make() returned was looked at: shy",
        ),
    ],
)
def test_bad_file(code: str, message: str, write: Write) -> None:
    assert refused(write(code)) == message


TRIED = "when the problem of make() was tried on two samples"
DETACHED = (
    "loss must depend on the model's weights, but is detached from them, as by .detach(), .item(), argmax or no_grad()"
)
SUMMED = (
    "loss must return the batch's mean, but grows with the batch as a sum does, {} for two samples and {} for the "
    "same two twice: for a loss of torch, use reduction='mean'"
)


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
            "build_model, lambda a, b: a.sum() * 1j, (x, y)",
            f"TypeError {TRIED}: loss must return a real floating-point number, got dtype torch.complex64",
        ),
        (
            "build_model, lambda a, b: (a.argmax(1) != b).sum(), (x, y)",
            f"TypeError {TRIED}: loss must return a real floating-point number, got dtype torch.int64",
        ),
        ("build_model, lambda a, b: loss(a.detach(), b), (x, y)", f"ValueError {TRIED}: {DETACHED}"),
        ("build_model, lambda a, b: torch.tensor(loss(a, b).item()), (x, y)", f"ValueError {TRIED}: {DETACHED}"),
        (
            "build_model, lambda a, b: loss(a.detach().requires_grad_(), b), (x, y)",
            f"ValueError {TRIED}: {DETACHED}",
        ),
        (
            "nn.Identity, lambda a, b: a.mean(), (x, y)",
            f"ValueError {TRIED}: build_model must return a model with at least one weight that requires a gradient",
        ),
        (
            "build_model, lambda a, b: len(a) + 0 * a.mean(), (x, y)",
            f"ValueError {TRIED}: {SUMMED.format(2, 4)}",
        ),
        (
            "build_model, lambda a, b: len(a) + 50 + 0 * a.mean(), (x, y)",
            f"ValueError {TRIED}: {SUMMED.format(52, 54)}",
        ),
        (
            "build_model, loss, (x + torch.nan, y)",
            f"ValueError {TRIED}: loss is nan: none of the numbers in train's inputs is finite",
        ),
        (
            "lambda: nn.Linear(3, 1), nn.functional.mse_loss, (x, y[:, None] * torch.inf)",
            f"ValueError {TRIED}: loss is nan: none of the numbers in train's targets is finite",
        ),
        (
            "build_model, loss, (x, y), (x[:3] * torch.inf, y[:3])",
            f"ValueError {TRIED}: loss is nan: none of the numbers in test's inputs is finite",
        ),
        (
            "build_model, loss, (x, y), (x[:, :2], y)",
            f"RuntimeError {TRIED}: mat1 and mat2 shapes cannot be multiplied (2x2 and 3x2)",
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
            "build_model, loss, (x, y), augment=lambda x, generator: (x, y)",
            f"ValueError {TRIED}: augment must return as many targets as it is given, got shape (4,)",
        ),
        (
            "build_model, loss, (x, y), augment=lambda x, generator: (x, y[:2], x)",
            f"ValueError {TRIED}: augment must return inputs or a pair (inputs, targets), got a tuple of 3",
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


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "multi_margin_loss"])
@pytest.mark.parametrize("weight", ["None", "torch.tensor([1.0, 5.0], dtype=torch.{dtype})"])
@pytest.mark.parametrize("dtype", ["float", "double"])
def test_a_summed_loss_passes_for_no_mean(name: str, weight: str, dtype: str, write: Write) -> None:
    def load(reduction: str) -> str:
        partial = f"partial(nn.functional.{name}, weight={weight.format(dtype=dtype)}, reduction={reduction!r})"
        return f"""
            from functools import partial
            def make():
                return Problem(lambda: nn.Linear(3, 2).{dtype}(), {partial}, (torch.randn(4, 3).{dtype}(), y))
            """

    assert "grows with the batch as a sum does" in refused(write(load("sum")))
    assert load_problem(f"{write(load('mean'))}:make").n == 4


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
