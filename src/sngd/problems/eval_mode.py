"""A model in eval mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Afterwards each of its modules is in the mode that it was in, also if it is not that of the model.

    Some may be kept in eval mode while the model trains, and some may belong to other models too. A ``train`` of the
    model's own is called, because it may undo what it did for eval mode.
    """
    was_training = model.training
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        for module, mode in modes:
            module.training = mode
