"""Submits a run with submitit: to Slurm, or to processes on this machine."""
