"""The errors of the `raysid` command: one line on stderr, and the exit code that shells expect."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from signal import SIGINT
from typing import IO, Any

import click

from raysid.errors import InvalidConfig, NotHere, RunFailed, RunStopped, StorageError, UserError
from raysid.run.output import printable_output

_SIGNALLED = 128  # plus the signal's number: the convention of shells


class _Failure(click.ClickException):
    """The error that ended a command, printed as one line on stderr."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        with suppress(OSError):  # a full disk under the log
            click.echo(f"raysid: {self.message}", file=file, err=True)


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Turn errors that the user can act on into one line; RAYSID_DEBUG=1 in the environment adds the traceback."""
    try:
        yield
        sys.stdout.flush()  # a full disk under it is reported here
    except (click.exceptions.Exit, click.ClickException):  # click's errors, and its help
        raise
    except RunStopped as stopped:
        raise _Failure(str(stopped), _SIGNALLED + stopped.signal) from None
    except (UserError, RunFailed, StorageError, KeyboardInterrupt) as error:
        if os.environ.get("RAYSID_DEBUG") == "1":
            traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            raise _Failure("interrupted", _SIGNALLED + SIGINT) from None
        # The text of an actor's error is its remote traceback; the cause is the error itself.
        cause = getattr(error, "cause", None) or error
        line = str(cause) if isinstance(cause, NotHere | InvalidConfig) else " ".join(str(cause).split())
        if isinstance(cause, InvalidConfig):
            line = line.replace("\n", "\nraysid: error: ")
        line = f"error: {line}"
        full = isinstance(cause, StorageError) and cause.full
        if full:
            from raysid.storage.failures import MAKE_ROOM

            line += f"; {MAKE_ROOM}"
        bad_input = isinstance(error, UserError | StorageError) and not full
        raise _Failure(line, 2 if bad_input else 1) from None
    except OSError as error:
        from raysid.storage.failures import storage_error

        failure = storage_error(error, error.filename or "the output", "written")
        if not failure.full or os.environ.get("RAYSID_DEBUG") == "1":
            raise
        raise _Failure(f"error: {failure}") from None


class Commands(click.Group):
    """A group whose commands report errors that the user can act on in one line, without a traceback."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line; its output, and that of libraries, does not steer the terminal."""
        with printable_output():
            return super().main(*arguments, **options)

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Parse the command line, and print the help if it asks for it."""
        with _in_one_line():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _in_one_line():
            return super().invoke(ctx)
