"""How the `raysid` command ends where something is wrong: one line, and the exit code that shells expect."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from signal import SIGINT
from typing import IO, Any

import click

from raysid.errors import NotHere, RunFailed, RunStopped, UserError
from raysid.storage.no_room import no_room


class _Failure(click.ClickException):
    """What stopped a command, in one line on stderr."""

    def show(self, file: IO[Any] | None = None) -> None:
        with suppress(OSError):  # a full disk under the log
            click.echo(f"raysid: {self.message}", file=file, err=True)


class _BadInput(_Failure):
    exit_code = 2


class _Stopped(_Failure):
    def __init__(self, message: str, signal: int = SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal  # type: ignore[misc]  # as shells have it


@contextmanager
def _in_one_line() -> Iterator[None]:
    """What the user can act on comes out as one line; RAYSID_DEBUG=1 in the environment shows the traceback too."""
    try:
        yield
        sys.stdout.flush()  # here, where a full disk under it can be said
    except (click.exceptions.Exit, click.ClickException):  # click's own, and its help
        raise
    except RunStopped as stopped:
        raise _Stopped(str(stopped), stopped.signal) from None
    except (UserError, RunFailed, KeyboardInterrupt) as error:
        if os.environ.get("RAYSID_DEBUG") == "1":
            traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            raise _Stopped("interrupted") from None
        # What an actor raised comes with its remote traceback as the text; the cause is the error itself.
        cause = getattr(error, "cause", None) or error
        line = "error: " + (str(cause) if isinstance(cause, NotHere) else " ".join(str(cause).split()))
        raise (_BadInput(line) if isinstance(error, UserError) else _Failure(line)) from None
    except Exception as error:
        from raysid.storage import explain, of_a_bucket

        of_bucket, full = of_a_bucket(error), no_room(error) is not None
        known = of_bucket or (full and isinstance(error, OSError))
        if not known or os.environ.get("RAYSID_DEBUG") == "1":
            raise
        what = "a bucket" if of_bucket else getattr(error, "filename", None) or "the output"
        done = "written" if full else "reached"
        raise _Failure(f"error: {what} cannot be {done}: {explain(error)}") from None


class Commands(click.Group):
    """A group whose commands report what the user can act on in one line, without a traceback."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the command line, and print the help where that asks for it."""
        with _in_one_line():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _in_one_line():
            return super().invoke(ctx)
