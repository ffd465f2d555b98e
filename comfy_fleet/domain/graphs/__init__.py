"""Graphs and stored workflows: their content, and how a node's classes read it."""
