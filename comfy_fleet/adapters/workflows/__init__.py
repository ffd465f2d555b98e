"""Stored workflows in a folder."""
