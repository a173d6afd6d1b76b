"""Training and measuring: `pretrain` a teacher, `distill` it into a generator, evaluate the result, search settings.

    pretrain.py            train a teacher: pretrain_worker.py (its loop), pretrain_state.py (its checkpoints)
    distill/, search/      a distillation; a search over distillations
    inputs.py              find and check a run's inputs: real images, teacher, generator to start from
    teachers.py            find, convert or train the teacher
    teacher_checks.py      refuse a teacher that does not fit the images or the method, before anything starts
    evaluation.py          figures and grids of generators and teachers, in training and for `raysid evaluate`
    summary.py             a run's headline, and the table at a run's end

New checks of inputs go into `inputs.py`, those of the teacher into `teacher_checks.py`.
"""
