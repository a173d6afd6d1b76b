"""Distil a teacher into a one-step generator, resumable, with metrics and evaluations on the way."""

from raysid.trainers.distill.run import DistillResult, distill

__all__ = ["DistillResult", "distill"]
