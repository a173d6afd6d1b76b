"""Predicting what hardware gives: how fast a recipe runs, where its roles fit, which placement is best.

`costs.py` counts a network's operations and memory, `devices.py` knows what accelerators do, `parts.py` makes seconds
of both; `measure.py` and `transport.py` take the seconds of calls from this machine instead. `memory.py` says what
fits, `simulate.py` runs steps whose calls only last, `predict.py` puts these together for one placement,
`placements.py` compares many, `show.py` prints them; `make.py` begins with a recipe and the names of devices.
"""
