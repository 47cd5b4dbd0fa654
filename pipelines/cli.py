"""The command `triptych`. Only what a command needs is imported, inside it: `--help` answers at once."""

from __future__ import annotations

import sys

import typer

from cluster.errors import UserError
from modeling.errors import ConfigError

app = typer.Typer(
    name="triptych",
    help="Reproducible language-model pretraining as a DAG on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def fail(message: str) -> None:
    """One clear error on standard error."""
    sys.stdout.flush()
    sys.stderr.write(f"error: {message}\n")


def main() -> None:
    """Entry point: exit codes 0 done, 1 a stage failed, 2 the call or config is wrong, 130 interrupted."""
    out = sys.stdout
    try:
        from pipelines import cli_care, cli_model, cli_read, cli_run, cli_scaling

        for module in (cli_run, cli_read, cli_model, cli_scaling, cli_care):
            module.add(app)
        app()
    except (UserError, ConfigError) as error:
        fail(str(error))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        fail("interrupted")
        raise SystemExit(130) from None
    except BrokenPipeError:  # `triptych … | head`
        sys.stderr.close()
        raise SystemExit(0) from None
    except SystemExit:
        if sys.stdout is not out:  # Typer met the closed pipe, and has put a silent stream in its place
            raise SystemExit(0) from None
        raise


if __name__ == "__main__":
    main()
