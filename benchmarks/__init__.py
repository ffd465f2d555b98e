"""The project's measurements: ``scripts/bench`` and ``scripts/chaos``."""
