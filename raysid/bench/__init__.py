"""Measuring where the time of a step goes, how two ways of computing it compare, and what real images cost.

`sides.py` runs steps of a config and takes what its roles' processes used; `compare.py` lets two of them take turns;
`show.py` puts it into tables, a JSON file and a trace. `reading.py` measures the stream of real images against a
DataLoader (`loader.py`), each in a process of its own (`readers.py`), and a learner's wait for it in a run;
`show_reading.py` prints that. Both comparisons go by rounds (`speeds.py`).
"""
