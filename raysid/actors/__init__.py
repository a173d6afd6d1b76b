"""The three placements of a run's roles, and the Ray actors behind them.

    placement.py    the contract of a placement, and the choice between the three
    local.py        all roles in this process, without Ray
    split.py        each role in separate actors: remote_learners.py (a learner's ranks), teacher_actor.py (a scorer),
                    pool.py (a run's calls on the scorers), assignment.py (which scorer takes which call),
                    attendance.py (the scorers that a run has), fleet.py (starts and removes scorers)
    colocated.py    all roles in each worker: train_workers.py (Ray Train), mailbox.py (calls to workers)
    notices.py      notices before processes are replaced
    results.py      waiting for results, and conversion of failures
    capacity.py     waiting for resources; shared_folder.py checks that all processes see the run's folder

Where to add a placement: docs/design.md, "Where to add what".
"""
