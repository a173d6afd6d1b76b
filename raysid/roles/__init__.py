"""The three roles and one step of distillation, without Ray.

`protocols.py` states the roles' contracts, `messages.py` the records that they exchange, `step.py` the order of their
calls. `teacher.py`, `fake_score.py` and `generator_learner.py` are the roles: plain classes that run in any process.
"""
