"""The command ``sngd``: what takes long to start is started first."""

import gc
import os
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
        gc.freeze()  # nor need it be looked through when the process ends
        gc.enable()
        run()
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as stop:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not isinstance(stop.code, str):
            _leave(stop.code or 0)
        raise
    finally:
        end_server()


def _leave(code: int) -> None:
    """End a process of torchrun's at once. Threads of torch.distributed sometimes abort one that ends as usual."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
