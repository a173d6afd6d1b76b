"""The `raysid` command.

    train.py       pretrain, distill, quickstart, tune
    runs.py        evaluate, sample, watch
    data.py, networks.py, recipes.py, plan.py, bench.py, submit.py    a group of commands each
    main.py        the group of all commands, and the entry point
    recipe_command.py, options.py    settings of a recipe as options; options that several commands share
    errors.py      errors as one line, and exit codes

To add a command, write its function in the file of its group and add it to the group in `main.py`. Commands read
options and print; the work is in the packages below. Import torch and Ray inside functions: `--help` must be quick.
"""

from raysid.cli.main import cli, main

__all__ = ["cli", "main"]
