"""The paper's figures, one command each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sngd.studies import escape
from sngd.training.run_folder import environment, write_json


class Figure(NamedTuple):
    """How a figure is measured (by profile) and drawn (into a folder)."""

    claim: str
    measure: Callable[[str], dict[str, Any]]
    draw: Callable[[dict[str, Any], Path], list[Path]]
    profiles: tuple[str, ...]


FIGURES = {
    "fig1": Figure(
        "C8: SNGD leaves saddles and sharp minima faster than SGD", escape.measure, escape.draw, tuple(escape.PROFILES)
    ),
}


def reproduce(figure: str, profile: str, out: Path, command: str = "") -> list[Path]:
    """Measure and draw one figure; ``out`` gets measurements.json and the pictures.

    Args:
        figure: a key of ``FIGURES``.
        profile: how much is measured, ``quick`` or ``small``.
        out: folder, made if need be.
        command: the command line, kept with the measurements.

    Returns:
        The pictures' paths.

    Raises:
        ValueError: unknown figure or profile.
    """
    if figure not in FIGURES:
        raise ValueError(f"unknown figure {figure!r}; must be one of {', '.join(FIGURES)}")
    _, measure, draw, profiles = FIGURES[figure]
    if profile not in profiles:
        raise ValueError(f"unknown profile {profile!r}; {figure} has {', '.join(profiles)}")
    measurements = measure(profile)
    about = {"command": command, "profile": profile, "environment": environment()}
    write_json(out / "measurements.json", {**about, "measurements": measurements})
    return draw(measurements, out)
