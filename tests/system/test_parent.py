"""A process that does not outlive the one that started it; bare Python, no model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from clprompt.system.parent import PARENT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the signal is Linux's")

CHILD = f"""
import os, signal, time
os.environ[{PARENT!r}] = str(os.getppid())
from clprompt.system.parent import end_with_parent
signal.signal(signal.SIGTERM, lambda *_: (print("asked to end", flush=True), os._exit(0)))
end_with_parent()
assert {PARENT!r} not in os.environ
print("ready", flush=True)
time.sleep(60)
"""


def test_a_process_is_asked_to_end_when_its_parent_is_killed() -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert process.stdout.read() == "asked to end\n"  # ends with the last process that holds the stream
    process.wait()


def test_a_process_whose_parent_is_gone_already_ends_before_it_begins() -> None:
    environment = {**os.environ, PARENT: "1"}
    done = subprocess.run(
        [sys.executable, "-m", "clprompt", "--version"], env=environment, capture_output=True
    )
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == b""
