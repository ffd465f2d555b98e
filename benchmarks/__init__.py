"""The project's measurements: ``scripts/bench``, ``scripts/chaos`` and ``scripts/soak``."""
