"""Run the cells of a notebook and store what they print and draw; Jupyter is not needed.

python docs/run_notebook.py examples/two_minutes.ipynb
"""

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]


def main(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    run(notebook)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def run(notebook: Notebook) -> dict[str, Any]:
    """Fill in the outputs of all code cells; return the variables at the end."""
    import matplotlib

    matplotlib.use("Agg")
    variables: dict[str, Any] = {}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec("".join(cell["source"]).replace("plt.show()", ""), variables)
        text = printed.getvalue().splitlines(keepends=True)
        stream = [{"name": "stdout", "output_type": "stream", "text": text}] if text else []
        cell.update(execution_count=number, outputs=stream + drawn())
    return variables


def drawn() -> list[dict[str, Any]]:
    """The open figures as outputs; they are closed."""
    import matplotlib.pyplot as plt

    outputs = []
    for number in plt.get_fignums():
        picture = io.BytesIO()
        plt.figure(number).savefig(picture, format="png", dpi=80, bbox_inches="tight", metadata={"Software": None})
        data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    plt.close("all")
    return outputs


def as_markdown(notebook: Notebook) -> str:
    """The notebook as a page: text, code, and what the code printed and drew."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text'])}```")
            else:
                parts.append(f"![What the cell draws](data:image/png;base64,{output['data']['image/png']})")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
