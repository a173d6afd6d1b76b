"""The three roles and one step of distillation, without Ray.

`teacher.py`, `fake_score.py` and `generator_learner.py` are the roles, plain classes that run in any process;
`protocols.py` states their contracts, `messages.py` the records they exchange, `step.py` the order of their calls.
"""
