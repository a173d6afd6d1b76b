"""The three roles, and how they are given to Ray.

`teacher.py`, `fake_score.py` and `generator.py` are the roles: plain classes that run in any process.
`roles.py` has what a controller calls of them, `messages.py` what they exchange. `placement.py` assembles
them behind the same calls: in one process (`local`), as actors (`split`: `remote.py`, `remote_learners.py`
and the teacher pool) or in workers of Ray Train (`colocated`: `colocated.py`, `train_workers.py`,
`mailbox.py`). A learner may have several ranks: `ranks.py` adds up their gradients.
"""
