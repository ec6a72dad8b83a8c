"""Norms of a whole model as the command line spells them."""

from torch import nn

from sngd.norms import Product, find_norm, product_of
from sngd.param_groups import groups

BY_KIND = "groups"


def canonical(spelled: str) -> str:
    """The one spelling of this norm; ValueError if there is no such norm."""
    return spelled if spelled == BY_KIND else str(find_norm(spelled))


def norm_of_model(spelled: str, model: nn.Module) -> Product:
    """The norm of the model's trained weights: one for all of them, or for ``groups`` those of ``sngd.groups``.

    Raises:
        ValueError: there is no such norm, or ``sngd.groups`` cannot place a weight.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    return product_of(params, groups(model) if spelled == BY_KIND else find_norm(spelled))
