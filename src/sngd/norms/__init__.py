"""The norms by which steps are normalized."""

from sngd.norms.col import Col
from sngd.norms.l2 import L2
from sngd.norms.layer import Layer
from sngd.norms.names import NORMS, find_norm, spelled
from sngd.norms.norm import Norm
from sngd.norms.product import Product, product_of
from sngd.norms.row import Row
from sngd.norms.sign import Sign
from sngd.norms.spectral import Spectral

__all__ = [
    "L2",
    "NORMS",
    "Col",
    "Layer",
    "Norm",
    "Product",
    "Row",
    "Sign",
    "Spectral",
    "find_norm",
    "product_of",
    "spelled",
]
