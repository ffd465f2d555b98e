"""The limit on fixtures and finalizers."""

import signal
import time

import pytest

from tests.time_limits import limited


@pytest.mark.timeout(60, func_only=True, method="thread")  # the other method needs the same signal
def test_what_takes_too_long_fails_and_says_what_it_was() -> None:
    before = signal.getsignal(signal.SIGALRM)
    told = pytest.raises(pytest.fail.Exception, match=r"^the teardown took longer than 0\.01 s$")
    with told, limited(0.01, "the teardown"):
        time.sleep(30)
    with limited(30, "the setup"):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGALRM) == before
