"""Connecting to a Ray cluster, and submitting a run to one as a job."""
