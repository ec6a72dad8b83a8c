"""Lemmas 1 and 2: what one normalized step, w₊ = w − α unit(g) for any g ≠ 0, says about ‖∇F(w)‖*.

unit(g) is the direction of length one, ‖unit(g)‖ = 1, with the largest ⟨g, unit(g)⟩, which is the dual norm ‖g‖*. For
the Euclidean norm it is g/‖g‖, and ‖g‖* = ‖g‖. For another norm, L (L0 and L1) and the error are those of that norm.
"""

from math import exp

from sngd.checks import finite, non_negative, positive
from sngd.theory.inexact import EXACT, Inexact
from sngd.theory.smoothness import RelaxedSmooth, Smooth


def lemma1(
    smoothness: Smooth, value: float, next_value: float, lr: float, error: float, step: Inexact = EXACT
) -> float:
    """Upper bound on ‖∇F(w)‖* for L-smooth F (Lemma 1): (F(w) − F(w₊))/α + Lα/2 + 2‖∇F(w) − g‖*.

    An inexact step has ((F(w) − F(w₊))/α + Lα(1 + δ)²/2 + (2 + δ − ε)‖∇F(w) − g‖*)/(1 − ε).

    Args:
        smoothness: L.
        value: F(w).
        next_value: F(w₊).
        lr: α > 0, the length of the step.
        error: ‖∇F(w) − g‖* ≥ 0; 0 for a full gradient.
        step: ε and δ of an inexact step.

    Raises:
        ValueError: if an argument is out of its range, or `smoothness` is (L0, L1), the class of Lemma 2.

    Examples:
        F(w) = w² has L = 2. A step of length ½ from w = 1 leads to ½, and |F′(1)| = 2:

        >>> lemma1(Smooth(2), value=1, next_value=0.25, lr=0.5, error=0)
        2.0
    """
    _check_class(smoothness, Smooth, "Smooth(L)")
    lr = positive("lr", lr)
    curvature = smoothness.L * lr * step.length**2 / 2
    return (_decrease(value, next_value, lr) + curvature + step.error * non_negative("error", error)) / step.share


def lemma2(
    smoothness: RelaxedSmooth, value: float, next_value: float, lr: float, error: float, step: Inexact = EXACT
) -> float:
    """Upper bound on ‖∇F(w)‖* for (L0, L1)-smooth F (Lemma 2).

    With x = αL1 e^{αL1} it is `((F(w) − F(w₊))/α + (1 + x) L0 α/2 + 2‖∇F(w) − g‖*) / (1 − x/2)`. For an inexact step,
    with s = 1 + δ and x = αsL1 e^{αsL1}, it is
    `((F(w) − F(w₊))/α + (1 + x) L0 α s²/2 + (2 + δ − ε)‖∇F(w) − g‖*) / (1 − ε − sx/2)`.

    Args:
        smoothness: L0 and L1.
        value: F(w).
        next_value: F(w₊).
        lr: α > 0, the length of the step, with αL1 e^{αL1} < 2, which is αL1 < 0.8526; Theorem 2 wants αL1 ≤ ½. An
            inexact step needs sx/2 < 1 − ε.
        error: ‖∇F(w) − g‖* ≥ 0; 0 for a full gradient.
        step: ε and δ of an inexact step.

    Raises:
        ValueError: if an argument is out of its range, or `smoothness` is L, the class of Lemma 1.

    Examples:
        F(w) = cosh w has F″ ≤ 1 + |F′|. A step of length ½ from w = 1, where |F′(1)| = 1.175:

        >>> from math import cosh
        >>> round(lemma2(RelaxedSmooth(1, 1), cosh(1), cosh(0.5), lr=0.5, error=0), 3)
        2.189
    """
    _check_class(smoothness, RelaxedSmooth, "RelaxedSmooth(L0, L1)")
    lr = positive("lr", lr)
    growth = lr * step.length * smoothness.L1
    x = growth * exp(min(growth, 1))  # at growth = 1 it is e, which is too much for any step
    left = step.share - step.length * x / 2
    if left <= 0:
        if step == EXACT:
            raise ValueError(f"lr must be below 0.8526/L1 = {0.8526 / smoothness.L1:g} for {smoothness}, got {lr!r}")
        raise ValueError(f"lr must be shorter for {smoothness} and {step}: (1 + δ)x/2 must be below 1 − ε, got {lr!r}")
    curvature = (1 + x) * smoothness.L0 * lr * step.length**2 / 2
    return (_decrease(value, next_value, lr) + curvature + step.error * non_negative("error", error)) / left


def capped_lemma(
    smoothness: Smooth, value: float, next_value: float, lr: float, max_scale: float, error: float
) -> float:
    """Upper bound on ‖∇F(w)‖* for L-smooth F after a capped step, w₊ = w − min{α, β‖g‖*} unit(g).

    With φ = 1 − Lβ/2 it is ((F(w) − F(w₊))/α + ‖∇F(w) − g‖*)/φ + α/(4β) + ‖∇F(w) − g‖*.

    Args:
        smoothness: L.
        value: F(w).
        next_value: F(w₊).
        lr: α > 0, the greatest length of the step.
        max_scale: β in (0, 2/L).
        error: ‖∇F(w) − g‖* ≥ 0; 0 for a full gradient.

    Raises:
        ValueError: if an argument is out of its range.

    Examples:
        F(w) = w² has L = 2. From w = 1, with |F′(1)| = 2 and β = ¼, a step of length ½ leads to ½:

        >>> capped_lemma(Smooth(2), value=1, next_value=0.25, lr=1, max_scale=0.25, error=0)
        2.0
    """
    lr, beta = positive("lr", lr), positive("max_scale", max_scale)
    kept = kept_share(smoothness, beta)
    error = non_negative("error", error)
    return (_decrease(value, next_value, lr) + error) / kept + lr / (4 * beta) + error


def kept_share(smoothness: Smooth, max_scale: float) -> float:
    """φ = 1 − Lβ/2, the share of η‖g‖* that a capped step of length η ≤ β‖g‖* decreases F by at least, if exact."""
    _check_class(smoothness, Smooth, "Smooth(L)")
    if not smoothness.L * max_scale < 2:
        limit = 2 / smoothness.L
        raise ValueError(f"max_scale must be below 2/L = {limit!r} for a capped step, got {max_scale!r}")
    return 1 - smoothness.L * max_scale / 2


def _check_class(smoothness: object, wanted: type, spelling: str) -> None:
    if not isinstance(smoothness, wanted):
        lemma = {Smooth: ", which lemma1 is for", RelaxedSmooth: ", which lemma2 is for"}.get(type(smoothness), "")
        raise ValueError(f"smoothness must be a {spelling}, got {smoothness!r}{lemma}")


def _decrease(value: float, next_value: float, lr: float) -> float:
    return (finite("value", value) - finite("next_value", next_value)) / lr
