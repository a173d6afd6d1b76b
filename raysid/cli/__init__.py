"""The `raysid` command: a file for each group of commands."""

from raysid.cli.main import cli, main

__all__ = ["cli", "main"]
