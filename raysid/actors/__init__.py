"""The three placements of a run's roles, and the Ray actors behind them: learners, teacher pool, workers.

`placement.py` states a placement's contract and chooses one; `local.py`, `split.py` and `colocated.py` are the three.
"""
