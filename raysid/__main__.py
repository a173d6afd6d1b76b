"""`python -m raysid` is the `raysid` command."""

from __future__ import annotations

from raysid.cli.main import main

if __name__ == "__main__":
    main()
