"""Stand-ins of ports in memory, one each: for tests whose subject is a service at a certain moment.

They play only what those tests need. ``tests/contract/test_fakes.py`` runs the same cases against them and
against the real adapters, and mypy holds them against the ports: a fake is passed where a port is asked for,
without a cast. A test whose subject is what a store does uses the real one.
"""
