"""Search settings of a distillation with Ray Tune.

    tune.py        check the search, train its teacher, report the best trial
    runner.py      run the trials beside one teacher service; trial.py: one trial
    callbacks.py   progress, and ending trials that have diverged
    results.py     results of the trials, read from the metrics of their runs; plots.py draws them

To add a distribution or a scheduler, extend `raysid/config/tune.py` and `runner.py`, which passes it to Ray Tune.
"""
