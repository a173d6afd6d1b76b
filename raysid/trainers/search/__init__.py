"""Searches over a distillation's settings with Ray Tune."""
