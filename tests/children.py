"""Child processes that do not outlive the tests, not even tests that are killed."""

import os
import sys
from collections.abc import Sequence

# The program sets what `exec` keeps and then becomes the command: between fork and exec of a process that may
# have threads, nothing of Python should run. Whoever lost its parent before it could ask does not begin.
_BECOME = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs of a shell ignore it
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def mortal(command: Sequence[str]) -> list[str]:
    """Return a command that Linux sends SIGTERM when the thread that started it ends, however that comes."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *command]
