"""Write all that a study's folder shows: table.md, the figures and the report."""

from pathlib import Path

from sngd.studies.figures import draw
from sngd.studies.report import page_of
from sngd.studies.runs import Study, read_study
from sngd.studies.table import as_markdown
from sngd.training.folder_lock import make_folder, turn_to_publish
from sngd.training.run_folder import replace_file

FILES = ("table.md", "report.html", "figures/curves.png", "figures/curves.svg")


def publish(folder: Path) -> Study:
    """Read the runs in ``folder`` and write table.md, figures/ and report.html beside them.

    Raises:
        FileNotFoundError, ValueError: see ``read_study``.
    """
    read_study(folder)  # is there one? only then is there a folder to make: that of a packed study may be deleted
    make_folder(folder)
    with turn_to_publish(folder, FILES) as lock:
        study = read_study(folder)
        lock.check()
        draw(study, folder / "figures")
        replace_file(folder / "table.md", f"# {study.problem}\n\n{as_markdown(study)}".encode())
        replace_file(folder / "report.html", page_of(study).encode())
    return study
