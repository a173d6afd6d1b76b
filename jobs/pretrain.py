"""`raysid pretrain` as a job of a Ray cluster.

    ray job submit --working-dir . -- python jobs/pretrain.py RECIPE [options]

runs this checkout. `raysid submit pretrain` needs no checkout. The options are those of `raysid pretrain --help`.
"""

import sys

from raysid.cli.main import cli

if __name__ == "__main__":
    cli(["pretrain", *sys.argv[1:]], prog_name="jobs/pretrain.py")
