"""Ray clusters: connect.py joins or starts one, submit.py runs a command on one as a job."""
