"""The command ``sngd``: what takes long to start is started first."""

import gc
import sys

from sngd.studies.execution.server import end_server, late_interrupts, start_server


def main() -> None:
    """Run the command line. Workers get ready while it is imported."""
    try:
        if sys.argv[1:2] in (["compare"], ["reproduce"]):
            start_server()
        gc.disable()  # nothing that is imported is garbage, and to look for it takes a quarter of the time
        with late_interrupts():  # libraries that are imported may take one for a reason to do without a part
            from sngd.cli import main as run
        gc.enable()
        run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        end_server()
        gc.freeze()  # no need to look through all that was imported when it ends


if __name__ == "__main__":
    main()
