"""``python -m comfy_fleet`` is the ``fleet`` command."""

from comfy_fleet.cli import main

main()
