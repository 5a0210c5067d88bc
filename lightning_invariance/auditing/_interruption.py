"""Ctrl-C, put off until it can do no harm."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """Notes the first Ctrl-C instead of raising; the second one raises as ever.

    A measure that is stopped in the middle of a batch would have seen half of it. In a thread other than the main one,
    which no signal reaches, it does nothing.

    Attributes:
        asked: whether somebody wants to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()

    def _put_back(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self._put_back()
            raise KeyboardInterrupt
        self.asked = True
        print("\nStopping; what is done is kept. Ctrl-C again stops at once.", file=sys.stderr)
