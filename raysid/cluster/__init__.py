"""Ray clusters: connect.py joins or starts one, submit.py runs a command on one as a job.

A new way to reach a cluster, or a new kind of address, goes into `connect.py`.
"""
