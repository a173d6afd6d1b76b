"""Fuzzers of everything that raysid reads: `python -m tests.fuzz [--seconds N | --inputs N] [READER ...]`.

readers.py    the readers, and the valid inputs that are mutated
mutate.py     mutations of bytes, and the repair of checksums, so that parsers go on past them
children.py   reading in child processes: a crash, a hang, too much memory or an executed program is a finding
"""
