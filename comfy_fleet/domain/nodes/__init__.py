"""Nodes, their GPUs and their hosts: which may take a job, and which can run it."""
