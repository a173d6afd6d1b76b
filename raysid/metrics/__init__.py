"""Evaluation figures: Fréchet distance in a classifier's features, label accuracy, generation time."""

from raysid.metrics.classifier import DigitsClassifier, digits_classifier_metadata, load_digits_classifier
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
    "digits_classifier_metadata",
    "frechet_distance",
    "halves_distance",
    "load_digits_classifier",
]
