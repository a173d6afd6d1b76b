"""Search settings of a distillation with Ray Tune."""
