"""A run's folder and its contents, and progress on the terminal.

    folder.py, session.py     ownership, fixed settings, and the record of commands that continued the run
    checkpoint.py             checkpoints, which are whole or absent
    metrics.py                metrics.jsonl
    tracking.py, events.py    metrics and grids for TensorBoard; image_grid.py lays out a grid
    watch.py                  the state of a run, for `raysid watch`
    progress.py               the progress line; table.py and text.py format text
    output.py                 control characters do not reach the terminal

A new file of a run is written here, through `raysid.storage`, so that it works in a bucket.
"""
