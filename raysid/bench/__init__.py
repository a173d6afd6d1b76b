"""Measuring where the time of a step goes, and how two ways of computing it compare.

`sides.py` runs steps of a config and takes what its roles' processes used; `compare.py` lets two of them take turns;
`show.py` puts it into tables, a JSON file and a trace.
"""
