"""Copy directory trees as fast as the storage allows and as faithfully as ``cp -a``.

import pcopy
report = pcopy.copy("src", "dst", jobs=8)
report.ok, report.files, report.bytes, report.errors
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # as typing has it, whose import takes a third of the time of all the others

if TYPE_CHECKING:
    from pcopy.api import copy
    from pcopy.checking import check
    from pcopy.comparison import compare
    from pcopy.errors import PcopyError, UsageError
    from pcopy.figures import Comparison, Contender
    from pcopy.log import Log
    from pcopy.metrics import Metrics
    from pcopy.options import Options
    from pcopy.outcome import Event, Failure
    from pcopy.result import Observer, Progress, Report, Stop

HOMES = {
    "check": "checking",
    "copy": "api",
    "compare": "comparison",
    "Comparison": "figures",
    "Contender": "figures",
    "PcopyError": "errors",
    "UsageError": "errors",
    "Observer": "result",
    "Progress": "result",
    "Report": "result",
    "Stop": "result",
    "Event": "outcome",
    "Log": "log",
    "Metrics": "metrics",
    "Options": "options",
    "Failure": "outcome",
}
__all__ = [
    "Comparison",
    "Contender",
    "Event",
    "Failure",
    "Log",
    "Metrics",
    "Observer",
    "Options",
    "PcopyError",
    "Progress",
    "Report",
    "Stop",
    "UsageError",
    "__version__",
    "check",
    "compare",
    "copy",
]


if not TYPE_CHECKING:  # who checks types is to see what there is, and nothing else

    def __getattr__(name: str) -> object:
        """Import what is used when it is used: ``pcopy --version`` must not pay for the rest."""
        if name not in HOMES:
            raise AttributeError(f"module 'pcopy' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"pcopy.{HOMES[name]}"), name)

    def __dir__() -> list[str]:
        return __all__
