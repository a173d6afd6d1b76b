"""The three roles and one step of distillation, without Ray.

    protocols.py, messages.py    the contracts of the roles, and the records that they exchange
    step.py                      the order of the calls in a step
    teacher.py, fake_score.py, generator_learner.py    the roles: plain classes that run in any process
    learner.py                   the base of both learners: optimizer, step, checkpoint, moving average
    ranks.py                     several ranks of a learner, driven by one controller or each by its own
    build.py, compute.py         a role from files; `compute` settings applied to its network
    state_files.py               the learners' files in a checkpoint
    profile.py                   measurements of a role; torch_internals.py: undocumented names of PyTorch

Where to add a condition or a method of a role: docs/design.md, "Where to add what".
"""
