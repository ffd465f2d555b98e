"""Policies to compare with, each as its own scheduler does it."""
