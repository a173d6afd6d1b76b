"""The `raysid` command in the test's process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from raysid.cli.main import cli


def raysid(*arguments: object) -> Result:
    """Run a command in this process, which saves the seconds that a new one spends on imports.

    Returns:
        The result, with `exit_code`, `stdout` and `stderr`.
    """
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="raysid")
