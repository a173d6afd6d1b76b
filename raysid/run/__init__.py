"""A run's folder and everything in it: settings, checkpoints, metrics, TensorBoard events, pictures, progress."""
