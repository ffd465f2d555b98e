"""The ``fleet`` command. Commands import what they need when they run, so that ``--help`` stays quick."""

from comfy_fleet.cli.main import main

__all__ = ["main"]
