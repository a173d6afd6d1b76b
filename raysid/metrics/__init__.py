"""Evaluation figures: Fréchet distance in a classifier's features, label accuracy, generation time.

    evaluate.py    the figures of generated images against real ones
    frechet.py     feature statistics and the Fréchet distance between them
    classifier.py  the digits classifier whose features are used

To add a metric, write it as a function of features or images and return it from `Evaluator.evaluate`, in
`EvaluationFigures`; every figure there is recorded by its name. To use other features, write a `FeatureClassifier`.
"""

from raysid.metrics.classifier import DigitsClassifier, load_digits_classifier
from raysid.metrics.evaluate import (
    EvaluationFigures,
    Evaluator,
    FeatureClassifier,
    Generate,
    ReferenceFigures,
)
from raysid.metrics.frechet import FeatureAccumulator, FeatureStatistics, frechet_distance, halves_distance

__all__ = [
    "DigitsClassifier",
    "EvaluationFigures",
    "Evaluator",
    "FeatureAccumulator",
    "FeatureClassifier",
    "FeatureStatistics",
    "Generate",
    "ReferenceFigures",
    "frechet_distance",
    "halves_distance",
    "load_digits_classifier",
]
