"""What all tests share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

Run = Callable[..., "subprocess.CompletedProcess[str]"]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# The default is quick; HYPOTHESIS_PROFILE=soak goes on for hours (tests/README.md).
settings.register_profile("quick", deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("soak", settings.get_profile("quick"), max_examples=5000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# A script that runs the tests in the background ignores these for them, and so for every process that they start and then try
# to stop by them (nohup(1); sh: asynchronous lists). A handler is not handed on to what is executed.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else lambda *_: None)


# As users run it: streams that are not buffered hide what waits in a buffer.
os.environ.pop("PYTHONUNBUFFERED", None)

SHARED = ("-shared", "-fPIC", "-ldl")  # a library for LD_PRELOAD


def compiled(where: Path, text: str, *flags: str) -> Path:
    """What gcc makes of a program or library in C."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    (where / "made.c").write_text(text)
    words = ["gcc", "-o", str(where / "made"), str(where / "made.c"), *flags]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return where / "made"


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A temporary directory on a disk, even if others are in memory, which shows no holes and loses nothing."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        yield Path(place)


@pytest.fixture
def unlocked(tmp_path: Path) -> Iterator[Path]:
    """A temporary directory in which every mode is made usable again, so that it can be removed."""
    yield tmp_path
    for where, directories, names in os.walk(tmp_path):
        for name in directories + names:
            if not os.path.islink(os.path.join(where, name)):
                os.chmod(os.path.join(where, name), 0o700)


@pytest.fixture
def pcopy(tmp_path: Path) -> Run:
    """Run the command line as a process: pcopy("-j", 2, source, destination) gives its status, stdout and stderr."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pcopy", *(str(one) for one in arguments)]
        settings: dict[str, object] = {
            "capture_output": True,
            "text": True,
            "errors": "surrogateescape",
            "timeout": 60,
            "cwd": tmp_path,
        }
        return subprocess.run(command, check=False, **{**settings, **options})  # type: ignore[call-overload,no-any-return]

    return run


@pytest.fixture(params=[1, 3], ids=["serial", "pool"])
def jobs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many workers. A pool does nearly all of the work here: the coordinator begins with as little as can be."""
    count = int(request.param)
    if count > 1:
        monkeypatch.setattr("pcopy.coordinator.FIRST", 0.0)
    return count
