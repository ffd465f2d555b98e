"""Input that nobody thought of, by the hundred thousand. Run it with ``scripts/fuzz``."""
