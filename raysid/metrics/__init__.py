"""Evaluation figures: Fréchet distance in a classifier's features, label accuracy, generation time.

    evaluate.py    the figures of generated images against real ones
    frechet.py     feature statistics and the Fréchet distance between them
    classifier.py  the digits classifier whose features are used

Where to add a metric: docs/design.md, "Where to add what".
"""
