"""Lemmas 1 and 2: what one normalized step, w₊ = w − α g/‖g‖ for any g ≠ 0, says about ‖∇F(w)‖."""

from math import exp

from sngd.checks import finite, non_negative, positive
from sngd.theory.smoothness import RelaxedSmooth, Smooth


def lemma1(smoothness: Smooth, value: float, next_value: float, lr: float, error: float) -> float:
    """Upper bound on ‖∇F(w)‖ for L-smooth F (Lemma 1): (F(w) − F(w₊))/α + Lα/2 + 2‖∇F(w) − g‖.

    Args:
        smoothness: L.
        value: F(w).
        next_value: F(w₊).
        lr: α > 0, the length of the step.
        error: ‖∇F(w) − g‖ ≥ 0; 0 for a full gradient.

    Raises:
        ValueError: if an argument is out of its range, or `smoothness` is (L0, L1), the class of Lemma 2.

    Example:
        F(w) = w² has L = 2. A step of length ½ from w = 1 leads to ½, and |F′(1)| = 2:

        >>> lemma1(Smooth(2), value=1, next_value=0.25, lr=0.5, error=0)
        2.0
    """
    _check_class(smoothness, Smooth, "Smooth(L)")
    lr = positive("lr", lr)
    return _decrease(value, next_value, lr) + smoothness.L * lr / 2 + 2 * non_negative("error", error)


def lemma2(smoothness: RelaxedSmooth, value: float, next_value: float, lr: float, error: float) -> float:
    """Upper bound on ‖∇F(w)‖ for (L0, L1)-smooth F (Lemma 2).

    With x = αL1 e^{αL1} it is ((F(w) − F(w₊))/α + (1 + x) L0 α/2 + 2‖∇F(w) − g‖) / (1 − x/2).

    Args:
        smoothness: L0 and L1.
        value: F(w).
        next_value: F(w₊).
        lr: α > 0, the length of the step, with αL1 e^{αL1} < 2, which is αL1 < 0.8526; Theorem 2 wants αL1 ≤ ½.
        error: ‖∇F(w) − g‖ ≥ 0; 0 for a full gradient.

    Raises:
        ValueError: if an argument is out of its range, or `smoothness` is L, the class of Lemma 1.

    Example:
        F(w) = cosh w has F″ ≤ 1 + |F′|. A step of length ½ from w = 1, where |F′(1)| = 1.175:

        >>> from math import cosh
        >>> round(lemma2(RelaxedSmooth(1, 1), cosh(1), cosh(0.5), lr=0.5, error=0), 3)
        2.189
    """
    _check_class(smoothness, RelaxedSmooth, "RelaxedSmooth(L0, L1)")
    lr = positive("lr", lr)
    growth = lr * smoothness.L1
    x = growth * exp(min(growth, 1))
    if x >= 2:
        raise ValueError(f"lr must be below 0.8526/L1 = {0.8526 / smoothness.L1:g} for {smoothness}, got {lr!r}")
    curvature = (1 + x) * smoothness.L0 * lr / 2
    return (_decrease(value, next_value, lr) + curvature + 2 * non_negative("error", error)) / (1 - x / 2)


def _check_class(smoothness: object, wanted: type, spelling: str) -> None:
    if not isinstance(smoothness, wanted):
        lemma = {Smooth: ", which lemma1 is for", RelaxedSmooth: ", which lemma2 is for"}.get(type(smoothness), "")
        raise ValueError(f"smoothness must be a {spelling}, got {smoothness!r}{lemma}")


def _decrease(value: float, next_value: float, lr: float) -> float:
    return (finite("value", value) - finite("next_value", next_value)) / lr
