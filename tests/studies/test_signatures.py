"""What studies and the paper hand on is typed: ``Any`` stands in a signature only where its reason stands beside it."""

import ast
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from sngd.training.config import RunConfig, StoredConfig

SOURCE = Path(__file__).parents[2] / "src" / "sngd"
FILES = sorted(path for room in ("studies", "paper") for path in (SOURCE / room).rglob("*.py"))


def unexplained(text):
    """(line, annotation) of every annotation in which ``Any`` has no comment ``Any: why`` on its line or above it."""
    lines = text.splitlines()
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            annotations = [argument.annotation for argument in every if argument]
            annotations.append(node.returns)
        elif isinstance(node, ast.AnnAssign):
            annotations = [node.annotation]
        elif isinstance(node, ast.Assign):  # an alias
            annotations = [node.value] if isinstance(node.value, ast.Name) else []
        else:
            continue
        for annotation in filter(None, annotations):
            names = {part.id for part in ast.walk(annotation) if isinstance(part, ast.Name)}
            beside = lines[max(0, annotation.lineno - 2) : annotation.end_lineno]
            if "Any" in names and not any("# Any: " in line for line in beside):
                found.append((annotation.lineno, ast.unparse(annotation)))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_any_has_a_reason_beside_it(path):
    assert unexplained(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "def f(x: Any): ...",
        "def f(*, x: dict[str, Any]): ...",
        "def f() -> Any: ...",
        "def f(**settings: Any): ...",
        "x: list[Any] = []",
        "Alias = Any",
    ],
)
def test_an_any_without_a_reason_is_found(text):
    assert len(unexplained(text)) == 1
    assert unexplained(f"{text}  # Any: nobody knows") == unexplained(f"# Any: nobody knows\n{text}") == []


def test_stored_settings_are_those_of_a_run():
    declared, hints = get_type_hints(StoredConfig), get_type_hints(RunConfig)
    assert declared == {field.name: hints[field.name] for field in fields(RunConfig)}
    assert StoredConfig.__required_keys__ == {"problem", "method"}
