"""`raysid tune` as a job of a Ray cluster.

    ray job submit --working-dir . -- python jobs/tune.py RECIPE [options]

takes this checkout along; `raysid submit tune` needs none. Options are those of `raysid tune --help`.
"""

import sys

from raysid.cli.main import cli

if __name__ == "__main__":
    cli(["tune", *sys.argv[1:]], prog_name="jobs/tune.py")
