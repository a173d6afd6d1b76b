"""raysid."""
