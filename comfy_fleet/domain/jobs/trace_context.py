"""Traces of jobs, and the ``traceparent`` of a request by W3C Trace Context.

https://www.w3.org/TR/trace-context/
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_OWN = re.compile(r"[0-9a-f]{32}")
_MOST = 512  # longest header that is read; a later version's may be longer than ours


def read_traceparent(headers: Sequence[str]) -> str | None:
    """Return a request's trace in the form of version 00; None if it is missing or malformed.

    Of a later version only the parts of version 00 are read, and of its flags only ``sampled``.

    Args:
        headers: The values of all ``traceparent`` headers; more than one counts as none.
    """
    if len(headers) != 1 or len(headers[0]) > _MOST:
        return None
    found = _TRACEPARENT.fullmatch(headers[0].strip(" \t"))
    if found is None:
        return None
    version, trace, parent, flags, more = found.groups()
    if version == "ff" or not trace.strip("0") or not parent.strip("0"):
        return None
    if version == "00":
        return None if more else found[0]
    return f"00-{trace}-{parent}-{int(flags, 16) & 1:02x}"


@dataclass(frozen=True, kw_only=True)
class JobTrace:
    """The trace of a job. Everything in it follows from the job's record, so each process finds the same.

    Attributes:
        job_id: The job.
        trace_id: 32 hexadecimal digits: the caller's, else the job's own id.
        caller: The caller's span; None: the job's submit is the first.
        sampled: What the caller says about recording it; None: there is no caller.
    """

    job_id: str
    trace_id: str
    caller: str | None = None
    sampled: bool | None = None

    @classmethod
    def of(cls, job_id: str, traceparent: str | None) -> "JobTrace":
        """Return a job's trace.

        Args:
            job_id: The job.
            traceparent: As :func:`read_traceparent` returns it.
        """
        if traceparent and (known := read_traceparent([traceparent])):
            _, trace, parent, flags = known.split("-")
            return cls(job_id=job_id, trace_id=trace, caller=parent, sampled=bool(int(flags, 16) & 1))
        own = job_id.replace("-", "").lower()
        if not _OWN.fullmatch(own) or not own.strip("0"):
            own = _drawn(job_id, 32)
        return cls(job_id=job_id, trace_id=own)

    def span_id(self, name: str, which: str = "") -> str:
        """Return the id of one of the job's spans: 16 hexadecimal digits.

        Args:
            name: What the span is called.
            which: Which one, if there are several of that name.
        """
        return _drawn(f"{self.job_id} {name} {which}", 16)

    def header(self, span_id: str, *, sampled: bool) -> str:
        """Return the ``traceparent`` for a request that is made in one of its spans."""
        return f"00-{self.trace_id}-{span_id}-{sampled:02x}"


def _drawn(text: str, digits: int) -> str:
    return sha256(text.encode(errors="replace")).hexdigest()[:digits]
