"""What ``torch.hub`` loads from a copy of this repository that is not installed.

    SNGD = torch.hub.load("REPO_DIR", "sngd", source="local")

Afterwards ``import sngd`` finds the whole library.
"""

import sys
from pathlib import Path as _Path

dependencies = ["torch"]

_source = str(_Path(__file__).resolve().parent / "src")
if _source not in sys.path:
    sys.path.insert(0, _source)  # for good, because sngd imports some of its parts when they are first used


def sngd():  # type: ignore[no-untyped-def]
    """The optimizer class ``sngd.SNGD``."""
    from sngd import SNGD

    return SNGD


def groups(model, lr, **options):  # type: ignore[no-untyped-def]
    """Param groups of ``model`` for ``SNGD``: a norm and a learning rate by kind of weight, see ``sngd.groups``."""
    from sngd import groups

    return groups(model, lr, **options)
