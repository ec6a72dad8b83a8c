"""What is measured and drawn to reproduce the paper: its figures and its claims, one command each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sngd.studies import conformance, escape, relaxed, scaling, variance
from sngd.training.run_folder import environment, read_json, write_json

PROFILES = ("quick", "small")


class Figure(NamedTuple):
    """A study of a claim: how it is measured (by profile) and drawn (into a folder)."""

    claim: str
    measure: Callable[[str], dict[str, Any]]
    draw: Callable[[dict[str, Any], Path], list[Path]]


FIGURES = {
    "fig1": Figure("C8: SNGD leaves saddles and sharp minima faster than SGD", escape.measure, escape.draw),
    "conformance": Figure("C7: the bounds of Theorems 1–4 hold", conformance.measure, conformance.draw),
    "scaling": Figure("C7: how oracle calls grow as the target falls", scaling.measure, scaling.draw),
    "relaxed": Figure("C9: SNGD handles (L0, L1)-smooth objectives without clipping", relaxed.measure, relaxed.draw),
    "variance": Figure(
        "C10: the variance of SPIDER's estimator grows with α, that of SNGD's does not", variance.measure, variance.draw
    ),
}


def reproduce(figure: str, profile: str, out: Path, command: str = "", *, reuse: bool = False) -> list[Path]:
    """Measure and draw one figure; ``out`` gets measurements.json and the pictures.

    Args:
        figure: a key of ``FIGURES``.
        profile: how much is measured, ``quick`` or ``small``.
        out: folder, made if need be.
        command: the command line, kept with the measurements.
        reuse: draw the measurements that ``out`` holds, if they are of this profile, and measure only if not.

    Returns:
        The pictures' paths.

    Raises:
        ValueError: unknown figure or profile, or ``reuse`` met a file that is no JSON.
    """
    if figure not in FIGURES:
        raise ValueError(f"unknown figure {figure!r}; must be one of {', '.join(FIGURES)}")
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; {figure} has {', '.join(PROFILES)}")
    _, measure, draw = FIGURES[figure]
    measurements = stored(out, profile) if reuse else None
    if measurements is None:
        with _one_thread():
            measurements = measure(profile)
        about = {"command": command, "profile": profile, "environment": environment()}
        write_json(out / "measurements.json", {**about, "measurements": measurements})
    return draw(measurements, out)


@contextmanager
def _one_thread() -> Iterator[None]:
    """These studies work on vectors so short that several threads would mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stored(folder: Path, profile: str | None = None) -> dict[str, Any] | None:
    """The measurements that ``folder`` holds, or None: there are none, or not of this profile (None: any).

    Raises:
        ValueError: measurements.json is no JSON object, or has no measurements.
    """
    path = folder / "measurements.json"
    if not path.exists():
        return None
    content = read_json(path)
    measurements = content.get("measurements")
    if not isinstance(measurements, dict):
        raise ValueError(f"{path}: has no 'measurements'")
    return measurements if profile in (None, content.get("profile")) else None
