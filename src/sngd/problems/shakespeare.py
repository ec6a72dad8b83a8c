"""Shakespeare, character by character: the text, its windows, and the sizes of the model that predicts it.

The file is looked for in the same folders as MNIST's, see `sngd.problems.datasets`.

Source of the text, its split and both sizes: A. Karpathy, nanoGPT, https://github.com/karpathy/nanoGPT:
data/shakespeare_char/prepare.py, config/train_shakespeare_char.py, and the README for the size that a CPU trains.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sngd.problems.augment import Variation
from sngd.problems.files import WITHOUT_FILES, data_folder, download
from sngd.problems.gpt import GPT
from sngd.problems.problem import DataError, Problem, Samples

_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_BYTES = 1_115_394
_FOLDER = "tinyshakespeare"

_WIDTH = "width-"


@dataclass(frozen=True)
class Size:
    """A size of the model, and the batch size that belongs to it; `context` is the length of a window too."""

    layers: int
    heads: int
    width: int
    context: int
    dropout: float
    batch_size: int


SMALL = Size(layers=4, heads=4, width=128, context=64, dropout=0.0, batch_size=12)
LARGE = Size(layers=6, heads=6, width=384, context=256, dropout=0.2, batch_size=64)


def resized(size: Size, word: str) -> Size | None:
    """The size that a variant's word makes of another one; None if the word is about something else.

    `large` is nanoGPT's size for a GPU. `width-256` is another width with heads as wide as before (32 numbers each, 64
    after `large`), and so another number of heads; all else stays.

    Raises:
        ValueError: the width is no multiple of a head's.
    """
    if word == "large":
        return LARGE
    if not word.startswith(_WIDTH):
        return None
    head, width = size.width // size.heads, word.removeprefix(_WIDTH)
    if not (width.isascii() and width.isdecimal()) or int(width) == 0 or int(width) % head:
        raise ValueError(f"width must be a multiple of a head's width, {head}, as in {_WIDTH}{2 * head}, got {width!r}")
    return replace(size, width=int(width), heads=int(width) // head)


def shakespeare_gpt(size: Size, data: str | os.PathLike[str] | None = None) -> Problem:
    """Predict the next character of Shakespeare's plays with a GPT.

    With context T and a training text of N characters, the n = ⌊(N − 1)/T⌋ samples are windows of T characters side by
    side, and a target is the character after each of the T. F and test loss are means over these characters in nats,
    and accuracy is the share of characters that have the highest score. In training a window is moved on by 0 … T − 1
    characters, drawn anew at each step: see `moved_on`. So a sample starts anywhere, and the gradient's mean is that of
    the loss over *all* windows of the text; the variant `unaugmented` trains on the windows side by side alone.

    At context 64, n = 15685 and there are 1742 windows of test text.

    Raises:
        DataError: the text is absent and cannot be downloaded, or is not the one that everybody uses.
    """
    (train, test), characters = tinyshakespeare(data)
    return Problem(
        partial(
            GPT,
            characters,
            context=size.context,
            layers=size.layers,
            heads=size.heads,
            width=size.width,
            dropout=size.dropout,
        ),
        character_loss,
        train=long_windows(train, size.context),
        test=windows(test, size.context),
        augment=moved_on,
        prepare=partial(first_characters, count=size.context),
    )


def character_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy, in nats a character, of scores (batch, length, characters) and targets (batch, length)."""
    return cross_entropy(scores.flatten(0, 1), targets.flatten())


def tinyshakespeare(data: str | os.PathLike[str] | None = None) -> tuple[tuple[Tensor, Tensor], int]:
    """The 1 115 394 characters of "tiny Shakespeare" (A. Karpathy, char-rnn, 2015).

    Args:
        data: folder of data sets, with the text as `tinyshakespeare/input.txt`. By default the one SNGD_DATA names;
            if unset, a cache folder that is filled by a checksummed download.

    Returns:
        (train, test), the first nine tenths and the last, each int64 of shape (N,) with values in 0 … 64, the ranks of
        the characters among those that occur, in the order of ASCII; and their number, 65.

    Raises:
        DataError: the file is absent and cannot be downloaded, is too short or too long, or has a wrong checksum.
    """
    content = _read(_locate(data))
    characters, ranks = torch.frombuffer(bytearray(content), dtype=torch.uint8).unique(return_inverse=True)
    end = int(len(ranks) * 0.9)
    return (ranks[:end], ranks[end:]), len(characters)


def _locate(data: str | os.PathLike[str] | None) -> Path:
    parent, by = data_folder(data)
    path = parent / _FOLDER / "input.txt"
    if not path.is_file():
        if by:
            raise DataError(
                f"{path.parent} (given by {by}): no {path.name}; put the text of {_URL} there, "
                f"or give no folder to have it downloaded, or {WITHOUT_FILES}"
            )
        otherwise = f"put {path.name} under DIR/{_FOLDER} and pass --data DIR or set SNGD_DATA=DIR, or {WITHOUT_FILES}"
        download(_URL, f"sha256:{_SHA256}", path, otherwise)
    return path


def _read(path: Path) -> bytes:
    """The file's bytes. Its size is checked before it is read, and its checksum afterwards."""
    size = path.stat().st_size
    if size != _BYTES:
        raise DataError(f"{path}: {size} bytes, must be {_BYTES}, those of {_URL}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != _SHA256:
        raise DataError(f"{path}: has the sha256 checksum {found}, must be {_SHA256}, that of {_URL}")
    return content


def windows(text: Tensor, context: int) -> Samples:
    """The windows of `context` characters that fit side by side, and for each character the one that follows.

    Both of shape (⌊(N − 1)/context⌋, context), for a text of shape (N,).
    """
    count = (len(text) - 1) // context
    return text[: count * context].view(count, context), text[1 : count * context + 1].view(count, context)


def long_windows(text: Tensor, context: int) -> Samples:
    """As `windows`, but each window goes on for another `context` characters, so that it can be moved on.

    After the text's end comes its beginning again. Inputs have the shape (n, 2·context), targets (n, context).
    """
    targets = windows(text, context)[1]
    circle = torch.cat([text, text[:context]])
    return circle.unfold(0, 2 * context, context)[: len(targets)].contiguous(), targets


def starts(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """By how many characters each window is moved on: 0 … T − 1, each number equally likely.

    Args:
        shape: of `long_windows`, (batch, 2T).
        generator: a CPU generator gives the same draws whatever the inputs' device.

    Returns:
        int64 of shape (batch, 1) on the generator's device.
    """
    return torch.randint(shape[1] // 2, (shape[0], 1), generator=generator, device=generator.device)


def started_later(inputs: Tensor, start: Tensor) -> Samples:
    """Windows of T characters that start so much later, and their targets.

    Args:
        inputs: of `long_windows`, shape (batch, 2T).
        start: of `starts`, on the same device.

    Returns:
        Inputs and targets, both of shape (batch, T).
    """
    places = start + torch.arange(inputs.shape[1] // 2, device=inputs.device)
    return inputs.gather(1, places), inputs.gather(1, places + 1)


moved_on = Variation(starts, started_later)
"""Windows that start 0 … T − 1 characters later, each number equally likely, and their targets."""


def first_characters(inputs: Tensor, count: int) -> Tensor:
    """Of each window the first `count` characters, which is what the model takes."""
    return inputs[:, :count]
