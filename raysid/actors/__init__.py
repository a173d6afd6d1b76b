"""The three roles, and how they are given to Ray.

`teacher.py`, `fake_score.py` and `generator.py` are the roles: plain classes that run in any process.
`messages.py` says what they exchange. `placement.py` assembles them, in one process (`local`) or as Ray
actors (`split`), behind the same calls; `remote.py` holds the actors. A learner may have several ranks there,
which add up their gradients in `ranks.py`.
"""
