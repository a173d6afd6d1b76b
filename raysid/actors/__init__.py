"""The three roles, and how they are given to Ray.

`teacher.py`, `fake_score.py` and `generator.py` are the roles: plain classes that run in any process.
`messages.py` says what they exchange. `placement.py` assembles them, in one process (`local`) or as Ray
actors (`split`), behind the same calls; `remote.py` starts the actors, `remote_learners.py` has those of the
learners, of which each may have several ranks: `ranks.py` adds up their gradients.
"""
