"""Connect to a Ray cluster, or submit a command to one as a job."""
