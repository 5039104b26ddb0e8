"""`config check`: what `python -m shared.config` says, and whether ingest could serve with the certificate."""

from __future__ import annotations

import os

import click

from ctl.output import ExitStatus, Wrong, emit, finish, json_option
from shared.config import ConfigError, in_effect, load_with_sources, masked, unknown_variables
from shared.exposure import TlsUnusable, check_tls, warnings


@click.group()
def config() -> None:
    """The configuration."""


@config.command()
@click.argument("file", required=False, type=click.Path())
@json_option
def check(file: str | None, as_json: bool) -> None:
    """Checks the file, the environment and our own certificate, prints what is in effect, secrets masked.

    Exit status: 0 all right, 1 something is wrong.
    """
    try:
        loaded = load_with_sources(file, os.environ)
        check_tls(loaded.config.service)
    except (ConfigError, TlsUnusable) as error:
        if as_json:
            emit({"error": str(error), "effective": None})
            finish(ExitStatus.WRONG)
        raise Wrong("\n".join(f"configuration: {line}" for line in str(error).split("\n"))) from error
    warned = [*unknown_variables(os.environ), *warnings(loaded.config)]
    if as_json:
        emit({"error": None, "warnings": warned, "effective": masked(loaded.config)})
        return
    click.echo(in_effect(loaded) + "".join(f"# warning: {warning}\n" for warning in warned) + "# all right")
