"""`config check`: whether the service would start with this configuration, and what is in effect."""

from __future__ import annotations

import os

import click
import yaml

from ctl.output import ExitStatus, Wrong, emit, finish, json_option
from shared.config import DEFAULT_FILE, ENVIRONMENT, ConfigError, load, masked
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
    name = file or os.environ.get("PERSISTENCE_CONFIG") or DEFAULT_FILE
    variables = [variable for variable in ENVIRONMENT if os.environ.get(variable)]
    try:
        effective = load(file, os.environ)
        check_tls(effective.service)
    except (ConfigError, TlsUnusable) as error:
        if as_json:
            emit({"file": name, "environment": variables, "error": str(error), "effective": None})
            finish(ExitStatus.WRONG)
        raise Wrong(f"configuration: {error}") from error
    if as_json:
        found = {"error": None, "warnings": warnings(effective), "effective": masked(effective)}
        emit({"file": name, "environment": variables, **found})
        return
    click.echo(yaml.safe_dump(masked(effective), sort_keys=False, allow_unicode=True), nl=False)
    for warning in warnings(effective):
        click.echo(f"# warning: {warning}")
    click.echo(f"# all right: {name}, overridden by {', '.join(variables) or 'nothing'}")
