"""The command line parses arguments, calls the other rooms and prints. Each file holds a group of commands."""

import sys
import traceback
from typing import Annotated

try:
    import typer

    from sngd.cli.bench import bench
    from sngd.cli.catalogue import methods, problems
    from sngd.cli.certify import certify
    from sngd.cli.compare import compare, report
    from sngd.cli.console import err, out
    from sngd.cli.diagnose import diagnose
    from sngd.cli.pack import pack
    from sngd.cli.plan import plan
    from sngd.cli.reproduce import reproduce
    from sngd.cli.settings import PLANS_HELP
    from sngd.cli.torchrun import first_rank_speaks
    from sngd.cli.train import train
except ModuleNotFoundError as error:
    sys.exit(f"sngd: the command line needs the package {error.name}: pip install 'sngd[lab]'")

from sngd import __version__
from sngd.training import Interrupted

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train with normalized gradients, and compare methods at equal cost.\n\n"
    "Try first: [bold]sngd compare digits-mlp[/bold] (no network, under a minute), then open the report it names.",
    rich_markup_mode="rich",
)
for command in (methods, problems, train, compare, report, pack, plan, certify, diagnose, reproduce, bench):
    app.command(epilog=PLANS_HELP if command in (train, compare) else None)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"sngd {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _common(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    _debug: Annotated[
        bool, typer.Option("--debug", help="With any command: after an error, print where in the code it arose.")
    ] = False,
) -> None:
    """The options of ``sngd`` itself. ``main`` reads --debug, because errors are reported there."""


@first_rank_speaks()
def main() -> None:
    """Run the command line; a user's mistake gives one line on standard error and exit code 2.

    --debug may stand anywhere; the traceback then comes before the line, with that of the user's own code.
    """
    words = sys.argv[1:]
    debug = "--debug" in words
    try:
        app([word for word in words if word != "--debug"], prog_name="sngd")
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exception(error)
        err.print(f"sngd: {_reason(error)}", style="red", highlight=False, soft_wrap=True)
        sys.exit(2)
    except Interrupted as stopped:
        err.print(f"sngd: {stopped}", highlight=False, soft_wrap=True)
        sys.exit(130)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = [str(error), *getattr(error, "__notes__", [])]
    return ", ".join(" ".join(line.split()) for line in lines)
