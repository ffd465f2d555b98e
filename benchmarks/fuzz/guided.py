"""Fuzzes a target whose values are bytes, guided by coverage: in its own process, for atheris never returns.

``python -m benchmarks.fuzz.guided TARGET [libFuzzer's options]``; atheris must be there.
"""

import logging
import sys
import warnings

import atheris

with atheris.instrument_imports(include=["comfy_fleet"]):
    from benchmarks.fuzz.inside import at_most
    from benchmarks.fuzz.targets import INSIDE

HANG_S = 20.0


def main() -> None:
    """Fuzz until the runs are done or something is found."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    (target,) = [one for one in INSIDE if one.name == sys.argv[1]]

    def check(data: bytes) -> None:
        with at_most(HANG_S):
            target.check(data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
