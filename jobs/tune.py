"""`raysid tune` as a job of a Ray cluster.

    ray job submit --working-dir . -- python jobs/tune.py RECIPE [options]

runs this checkout. `raysid submit tune` needs no checkout. The options are those of `raysid tune --help`.
"""

import sys

from raysid.cli.main import cli

if __name__ == "__main__":
    cli(["tune", *sys.argv[1:]], prog_name="jobs/tune.py")
