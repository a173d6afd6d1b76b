"""Measuring where the time of a step goes, and comparing two ways to compute it.

`sides.py` runs steps of a config and collects the use of its processes; `compare.py` alternates two of them, in
rounds; `report.py` prints tables and makes JSON and a trace.
"""
