"""`raysid distill` as a job of a Ray cluster.

    ray job submit --working-dir . -- python jobs/distill.py RECIPE [options]

runs this checkout. `raysid submit distill` needs no checkout. The options are those of `raysid distill --help`.
"""

import sys

from raysid.cli.main import cli

if __name__ == "__main__":
    cli(["distill", *sys.argv[1:]], prog_name="jobs/distill.py")
