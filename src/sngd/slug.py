"""A folder's name for any text: a label, or the name of a problem."""

import hashlib
import re
import unicodedata

LONGEST = 120  # characters; file systems take 255 bytes, and the files inside have names too
_HASH_DIGITS = 12


def slug(text: str) -> str:
    """A plain ASCII folder name that no other text has, also where ``A`` and ``a`` are one name.

    ``sngd lr=0.1`` becomes ``sngd-lr=0.1``. Some texts get ``~`` and 12 hexadecimal digits of their SHA-256 at the end:
    those that would get another text's name (``sngd-lr=0.1``), that have capitals or other characters (``a/b`` becomes
    ``a-b~…``), or that are too long. Other names have no ``~``. A name is never empty, hidden, ``.`` or ``..``.
    """
    readable = re.sub(r"[^\w.=+-]+", "-", "".join(map(_ascii, unicodedata.normalize("NFKD", text))), flags=re.ASCII)
    if _text_of(readable) == text:
        return readable
    digits = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
    beginning = readable.lstrip(".-")[: LONGEST - _HASH_DIGITS - 1] or "_"
    return f"{beginning}~{digits}"


def _ascii(character: str) -> str:
    """The character, if it is ASCII; ``alpha`` for ``α``; nothing for an accent; otherwise a hyphen."""
    if character.isascii():
        return character
    if unicodedata.combining(character):
        return ""
    words = unicodedata.name(character, "").split()
    return words[-1].lower() if words[:1] == ["GREEK"] else "-"


def _text_of(name: str) -> str | None:
    """The text whose name is ``name`` without a hash: a hyphen before ``setting=`` was a space. None: there is none."""
    if len(name) > LONGEST or not re.fullmatch(r"[a-z0-9_](?:[a-z0-9_.=+-]*[a-z0-9_=+-])?", name):
        return None
    if re.search(r"\.broken-\d+$", name):  # what a damaged run's folder is called
        return None
    return re.sub(r"-(?=[a-z_][a-z0-9_]*=)", " ", name)
