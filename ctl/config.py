"""`config check`: whether the service would start with this configuration, and what is in effect."""

from __future__ import annotations

import os

import click

from ctl.output import ExitStatus, Wrong, emit, finish, json_option
from shared.config import ConfigError, in_effect, load_with_sources, masked, unknown_variables
from shared.exposure import TlsUnusable, check_tls, warnings
from shared.settings import DEFAULT_FILE, ENVIRONMENT


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
    name = file or os.environ.get("PERSISTENCE_CONFIG") or DEFAULT_FILE
    found = {"file": name, "environment": [one for one in ENVIRONMENT if os.environ.get(one)]}
    try:
        loaded = load_with_sources(file, os.environ)
        check_tls(loaded.config.service)
    except (ConfigError, TlsUnusable) as error:
        if as_json:
            emit({**found, "error": str(error), "effective": None})
            finish(ExitStatus.WRONG)
        raise Wrong("\n".join(f"configuration: {line}" for line in str(error).split("\n"))) from error
    warned = [*unknown_variables(os.environ), *warnings(loaded.config)]
    if as_json:
        emit({**found, "error": None, "warnings": warned, "effective": masked(loaded.config)})
        return
    click.echo(in_effect(loaded), nl=False)
    for warning in warned:
        click.echo(f"# warning: {warning}")
    click.echo("# all right")
