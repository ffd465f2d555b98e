"""Capacity planning: what a trace of jobs would take on a made-up fleet, under one policy or another.

Nothing here talks to a fleet, reads a clock or draws a number that its seed does not decide.
"""
