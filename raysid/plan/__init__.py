"""Predicting the speed of a recipe on given hardware, the placements that fit, and the best of them.

`costs.py` counts a network's operations and memory, `devices.py` has the data sheets of accelerators, `parts.py`
combines them into seconds of each call; `measure.py` (with `timing.py`) and `transport.py` measure them here instead.
`memory.py` predicts the memory of a process. `simulate.py` simulates steps, with the processes and recorded calls of
`calls.py`. `predict.py` predicts one placement, `placements.py` compares many, `report.py` prints them; `hardware.py`
makes the hardware of a plan from the names of devices.
"""
