"""The commands together. `./scripts/ctl.sh --help` lists the commands."""

from __future__ import annotations

import click

from ctl.config import config
from ctl.database import db
from ctl.dead_letters import deadletters
from ctl.journal import journal
from ctl.sessions import sessions
from ctl.status import flush, status
from ctl.top import top
from shared import VERSION


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="Persistence Service")
def cli() -> None:
    """Inspects and operates Persistence Service.

    Configuration and token are those of the service: config/config.yaml and the environment.

    Exit status of every command: 0 all right, 1 something is wrong, 2 wrong usage, or not reached.
    """


for command in (status, top, flush, sessions, config, journal, deadletters, db):
    cli.add_command(command)
