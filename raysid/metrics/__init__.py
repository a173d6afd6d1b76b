"""Evaluation figures: Fréchet distance in a classifier's features, label accuracy, generation time.

    evaluate.py    the figures of generated images against real ones
    frechet.py     feature statistics and the Fréchet distance between them
    classifier.py  the digits classifier whose features are used

To add a metric, write it as a function of features or images and return it from `Evaluator.evaluate`, in
`EvaluationFigures`; every figure there is recorded by its name. To use other features, write a `FeatureClassifier`.
"""
