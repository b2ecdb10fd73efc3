"""The `stddaq` command: subcommands and how their errors reach a person."""

import sys
from typing import Final, NoReturn

import typer

from tango_stddaq import __version__
from tango_stddaq.cli import (
    config,
    file,
    gui,
    new_stage,
    plan,
    rest,
    sardana_path,
    simulate,
    stage,
    system,
    view,
    watch,
)
from tango_stddaq.cli.ending import end_in_order
from tango_stddaq.errors import StdDaqError

_WRONG_CALL: Final = 2

app = typer.Typer(
    help="Standard data acquisition of a synchrotron beamline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(config.app, name="config")
app.add_typer(stage.app, name="stage")
app.add_typer(file.app, name="file")
app.command("replay")(simulate.replay)
app.command("simulate")(simulate.simulate)
app.command("demo")(system.demo)
app.command("up")(system.up)
app.command("gui")(gui.gui)
app.command("sardana-path")(sardana_path.sardana_path)
app.command("new-stage")(new_stage.new_stage)
app.command("rest")(rest.rest)
app.command("plan")(plan.plan)
app.command("view")(view.view)
app.command("watch")(watch.watch)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> NoReturn:
    """Run the command; a known error is one line, and a wrong call of a stage ends with 1."""
    end_in_order()
    try:
        app()
    except SystemExit as end:
        # The existing programs end with 1 where the shell's custom is 2.
        if end.code == _WRONG_CALL and sys.argv[1:2] == ["stage"]:
            sys.exit(1)
        raise
    except (StdDaqError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
