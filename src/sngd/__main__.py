"""The command ``sngd``: what takes long to start is started first."""

import gc
import sys

from sngd.studies.execution.server import THERE_IS_ONE, start_server


def main() -> None:
    """Run the command line. Workers get ready while it is imported."""
    if THERE_IS_ONE and sys.argv[1:2] in (["compare"], ["reproduce"]):
        start_server()
    gc.disable()  # nothing that is imported is garbage, and to look for it takes a quarter of the time
    try:
        from sngd.cli import main as run

        gc.enable()
        run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()  # no need to look through all that was imported when it ends


if __name__ == "__main__":
    main()
