"""This machine: its disk, folders, child processes and secrets."""
