"""``python -m pcopy``, and what the console script calls."""

import gc
import signal

# Objects between two looks for garbage: imports make many and hardly any cycles. With Python's 700 they take a tenth longer.
GARBAGE = 50_000


def main() -> None:
    """Until there is something to stop, Ctrl-C ends the process as it ends any other: without a traceback from an import."""
    gc.set_threshold(GARBAGE)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pcopy.cli import main

    main()


if __name__ == "__main__":
    main()
