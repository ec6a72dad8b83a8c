"""Tables in Markdown."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """Header and rows, each line without an end; the first ``text_columns`` are aligned left, numbers right.

    A ``|`` in a cell of a row is escaped.
    """
    rule = "|---" * text_columns + "|---:" * (len(header) - text_columns) + "|"
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(line) + " |" for line in [header, *cells]]
    return "\n".join([lines[0], rule, *lines[1:]])
