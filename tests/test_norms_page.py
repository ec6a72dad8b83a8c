"""`docs/norms.md`: its picture is fresh, and its measurements are those of today."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sngd.norms import NORMS, Spectral

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "norms.md").read_text(encoding="utf-8")
sys.path.insert(0, str(DOCS))

import draw_norms  # noqa: E402

MEASURED = re.findall(
    r"^\| `([\w-]+)`[^|]*\| (\d) \| ([\d.]+) … ([\d.]+) \| ([\d.]+) … ([\d.]+) \| 0 … ([\d.]+) \|$", PAGE, re.M
)


def ends(coefficients, steps, least):
    """Where singular values go that are between ``least`` and all of the Frobenius norm."""
    parts = torch.from_numpy(np.geomspace(least, np.sqrt(0.5), 1500))
    matrices = torch.diag_embed(torch.stack([(1 - parts**2).sqrt(), parts], 1))
    return Spectral(scaled=False, coefficients=coefficients, steps=steps).bare_unit(matrices).diagonal(dim1=-2, dim2=-1)


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row[0]}-{row[1]}")
def test_the_inexactness_shown_is_measured(row):
    coefficients, steps = row[0], int(row[1])
    percent, permille, every = (ends(coefficients, steps, least) for least in (1e-2, 1e-3, 1e-9))
    now = [percent.min(), percent.max(), permille.min(), permille.max(), every.max()]
    assert [f"{value:.3f}" for value in now] == list(row[2:])
    assert 0 <= every.min() < 1e-3


def test_all_rows_were_read():
    assert len(MEASURED) == 4


def test_every_norm_is_explained():
    assert all(f"| `{name}`" in PAGE for name in NORMS)


def test_the_norm_of_ones_own_takes_at_most_fifteen_lines():
    (lines,) = re.findall(r"^class Total.*?(?=\n\n\n)", PAGE, flags=re.M | re.S)
    assert len([line for line in lines.splitlines() if line]) <= 15


def test_the_committed_picture_is_the_one_that_the_code_gives():
    picture = draw_norms.PICTURE.read_text(encoding="utf-8")
    assert len(picture) < 60_000
    assert numbers(picture) == pytest.approx(numbers(draw_norms.drawn()), abs=0.11)  # other processors round otherwise
    assert re.sub(r"[\d.]+", "", picture) == re.sub(r"[\d.]+", "", draw_norms.drawn())


def numbers(text):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
