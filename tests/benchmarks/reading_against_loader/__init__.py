"""The speed of the stream of real images against a torch DataLoader, and a learner's wait for the stream in a run.

`measure.py` measures, `readers.py` is the two sides, each in a process of its own, `loader.py` is the DataLoader,
`report.py` prints.
"""
