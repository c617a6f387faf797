"""The executor of a run, which its parts have in common: the count of what may be deleted, the plan of it, the copy itself."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any


class Workers(contextlib.ExitStack):
    """Holds what is to be closed with the executor: opened by the first part that needs one, closed at the end of the run."""

    executor: Any = None  # an Executor, or none
    jobs = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None:
        self.executor = None
        return super().__exit__(kind, error, trace)
