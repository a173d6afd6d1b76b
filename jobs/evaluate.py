"""`raysid evaluate` as a job of a Ray cluster.

    ray job submit --working-dir . -- python jobs/evaluate.py RUN [options]

runs this checkout. `raysid submit evaluate` needs no checkout. The options are those of `raysid evaluate --help`.
"""

import sys

from raysid.cli.main import cli

if __name__ == "__main__":
    cli(["evaluate", *sys.argv[1:]], prog_name="jobs/evaluate.py")
