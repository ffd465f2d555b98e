"""Graphs and stored workflows: what they say, and what a node's classes make of them."""
