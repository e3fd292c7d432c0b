"""Being asked to end (SIGTERM): leave at once where Python runs, else at the next step of a loop."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM  # as a shell reports it
_MOMENT = 1.0  # seconds: `timeout` and batch systems send the signal to a process and to its group, so twice at once
_NOT_TO_BE_LEFT = ("jax", "jaxlib")  # an exception is lost there, or does harm
_asked_at: float | None = None


@contextmanager
def leaving_when_asked() -> Iterator[None]:
    """Let SIGTERM end this process as an error would, so that nothing is left behind; a second one ends it at once.

    Where JAX runs, an exception is ignored (while memory is freed), or ends the process by a fault. Then it is only
    kept that the signal came: loops call `leave_if_asked`. At the end the process is left without taking the
    interpreter down, in which threads of JAX may be at work.
    """
    signal.signal(signal.SIGTERM, _asked)
    try:
        yield
    finally:
        if _asked_at is not None:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(EXIT_CODE)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave_if_asked() -> None:
    """Raise SystemExit if this process has been asked to end, which is only known within `leaving_when_asked`.

    Examples
    --------
    >>> leave_if_asked()
    """
    if _asked_at is not None:
        raise SystemExit(EXIT_CODE)


def _asked(number: int, frame: FrameType | None) -> None:
    global _asked_at
    now = time.monotonic()
    if _asked_at is not None:
        if now - _asked_at > _MOMENT:
            os._exit(EXIT_CODE)
        return
    _asked_at = now
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_TO_BE_LEFT:
            return
        frame = frame.f_back
    leave_if_asked()
