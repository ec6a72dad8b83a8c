"""A model in eval mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.backends import mha


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Afterwards each of its modules is in the mode that it was in, also if it is not that of the model.

    Some may be kept in eval mode while the model trains, and some may belong to other models too. A ``train`` of the
    model's own is called, because it may undo what it did for eval mode.

    Inside, torch's attention computes as in training. It has a quicker way for eval mode, which gives zeros where
    samples are padded, has no gradient, and is also taken in vmap, where attention cannot know that one is wanted.
    """
    was_training, fast = model.training, mha.get_fastpath_enabled()
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]  # no frozen script
    model.eval()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(fast)
        model.train(was_training)
        for module, mode in modes:
            module.training = mode
