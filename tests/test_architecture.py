"""The rooms import as they should, the picture of them is fresh, and the page answers with files that are there."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
sys.path.insert(0, str(ROOT / "docs"))

import draw_architecture as architecture  # noqa: E402

LIBRARY = ["diagnose", "monitor", "param_groups", "estimators", "optim", "theory", "iterates", "norms", "stages"]
LIBRARY += ["state", "sharding", "checks"]
PACKAGES = {  # that a room's import may import; any other waits until it is used
    **{room: {"torch"} for room in LIBRARY},
    **{room: set() for room in ("theory", "stages", "checks", "cost", "files", "slug")},
    **{room: {"torch", "numpy"} for room in ("problems", "training", "studies", "paper", "bench")},
    "cli": {"torch", "numpy", "typer", "rich"},
}

# Names of torch that it does not promise to keep. Whoever adds one looks it up in torch 2.6, the oldest supported one.
PRIVATE = {
    *(f"torch._foreach_{name}" for name in ("add", "add_", "addcdiv_", "copy_", "div", "lerp", "lerp_", "mul", "mul_")),
    *(f"torch._foreach_{name}" for name in ("neg", "norm", "sign", "sub", "sub_")),
    "torch._C._autograd._profiler_enabled",
    "torch._C._current_graph_task_id",
    "torch._dynamo.reset",
    "torch._fused_sgd_",
    "torch._utils._flatten_dense_tensors",
    "torch.nn.modules.batchnorm._BatchNorm",
    "torch.nn.modules.conv._ConvNd",
    "torch.optim.optimizer._global_optimizer_post_hooks",
    "torch.optim.optimizer._global_optimizer_pre_hooks",
    "torch.utils._pytree.tree_leaves",
    "torch.utils._pytree.tree_map",
    *(f"torch.nn.modules.module._global_{name}_hooks" for name in ("backward", "backward_pre")),
    *(f"torch.nn.modules.module._global_{name}_hooks" for name in ("forward", "forward_pre")),
}


def test_every_room_stands_on_a_floor_and_imports_from_those_below():
    assert architecture.misplaced() == []


def test_an_import_that_leads_up_is_seen(monkeypatch):
    monkeypatch.setattr(architecture, "graph", lambda: {"studies": {"paper", "training"}, "iterates": {"norms"}})
    assert architecture.misplaced() == [
        "iterates imports norms, which does not stand on a floor below",
        "studies imports paper, which does not stand on a floor below",
    ]


@pytest.mark.parametrize(
    ("room", "above"),
    [
        ("studies", {"paper", "cli"}),
        *((room, {"problems", "training", "studies", "paper", "bench", "cli"}) for room in LIBRARY),
    ],
)
def test_what_no_room_may_import(room, above):
    """The two rules that matter most, spelled out beside the floors, which somebody may move."""
    assert not architecture.graph()[room] & above


def test_the_package_itself_gives_the_library_alone():
    names = architecture.imports([ROOT / "src" / "sngd" / "__init__.py"])
    assert {name.split(".")[1] for name in names} <= set(LIBRARY)


@pytest.mark.parametrize("room", sorted(architecture.FLOOR))
def test_importing_a_room_needs_few_packages(room):
    assert architecture.packages(room) <= PACKAGES[room]


def names_of_torch(source):
    """Dotted names, as imported from torch or written out; not those of objects."""
    nodes = [*ast.walk(ast.parse(source))]
    imported = {"torch": "torch"}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    yield from imported.values()
    for node in nodes:
        if isinstance(node, ast.Attribute) and re.fullmatch(r"\w+(\.\w+)+", name := ast.unparse(node)):
            first, _, rest = name.partition(".")
            if first in imported:
                yield f"{imported[first]}.{rest}"


def test_private_names_of_torch_are_those_that_were_looked_up_in_its_oldest_version():
    sources = (ROOT / "src" / "sngd").rglob("*.py")
    names = {name for path in sources for name in names_of_torch(path.read_text(encoding="utf-8"))}
    used = {name for name in names if re.search(r"\._[a-zA-Z]", name)}
    beginnings = {name for name in used if any(known.startswith(f"{name}.") for known in PRIVATE)}
    assert used - beginnings == PRIVATE


def test_imports_are_read_wherever_they_stand(tmp_path):
    (file := tmp_path / "some.py").write_text(
        "import os.path\nimport torch.nn as nn\nfrom sngd import stages\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ray import ObjectRef\n"
        "def late():\n    import scipy.stats\n    from sngd.paper.claims import judge\n"
    )
    at_once = {"torch.nn", "sngd.stages"}
    assert architecture.imports([file], at_once=True) == at_once
    assert architecture.imports([file]) == at_once | {"ray", "scipy.stats", "sngd.paper.claims"}


def test_arrows_that_others_imply_are_left_out():
    whole = {"cli": {"paper", "theory", "checks"}, "paper": {"theory"}, "theory": {"checks"}, "checks": set()}
    assert architecture.essential(whole) == {
        "cli": {"paper"},
        "paper": {"theory"},
        "theory": {"checks"},
        "checks": set(),
    }


def test_the_committed_picture_is_the_one_that_the_code_gives():
    picture = architecture.PICTURE.read_text(encoding="utf-8")
    assert picture == architecture.drawn(), "docs/architecture.svg is stale: make docs"
    assert all(f">{room}</tspan>" in picture for room in architecture.rooms())


# --- the page

TEXT = PAGE.read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`((?:src|tests|docs|examples)/[^`\s]*)`", TEXT)))
QUESTIONS = re.findall(r"^(\d+)\. (.+\?) `([^`]+)`, see `([^`]+)`$", TEXT, flags=re.M)


@pytest.mark.parametrize("path", PATHS)
def test_every_file_named_is_there(path):
    assert (ROOT / path).exists()


def test_there_are_twenty_questions():
    assert [int(number) for number, *_ in QUESTIONS] == list(range(1, 21))
    assert len({question for _, question, *_ in QUESTIONS}) == 20


@pytest.mark.parametrize(("path", "word"), [question[2:] for question in QUESTIONS])
def test_every_question_is_answered_in_the_file_named(path, word):
    assert word in (ROOT / path).read_text(encoding="utf-8")


def test_every_room_is_explained():
    missing = [room for room in architecture.rooms() if f"`{room}`" not in TEXT]
    assert not missing
