"""A run's folder and its contents: settings, checkpoints, metrics, events, pictures; progress on the terminal."""
