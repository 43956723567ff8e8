"""Commands in forks of one process that has imported everything: a fresh one would take seconds of import."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CRASH = Path(__file__).parents[1] / "_crash"
#: Of the runs that are killed.
BACKBONE = {
    "name": "vit_tiny_patch16_224",
    "img_size": 16,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
}


class WarmProcess:
    """Runs command lines in forks of `_crash/warm.py`.

    Attributes:
        said: what the last command printed, both streams.
    """

    def __init__(self, folder: Path) -> None:
        self.said = ""
        self._output = folder / "output"
        self._environment = {"WARM_SOCKET": str(folder / "socket"), "WARM_PYTHON": str(folder / "python")}
        python = folder / "python"
        python.write_text(
            f'#!/bin/sh\nexec {shlex.join([sys.executable, "-IS", str(CRASH / "python.py")])} "$@"\n'
        )
        python.chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, str(CRASH / "warm.py"), self._environment["WARM_SOCKET"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": ""},  # without git, which takes its time
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        assert json.loads(self._answers.readline()) == {"ready": True}

    def __call__(self, *argv: object, at: str | None = None, signal: int = 9, draw: bool = False) -> int:
        """The exit code, or minus the signal that ended it, sent at a point of `_crash/outsider.py`."""
        return self.several(*argv, at=at, signal=signal, draw=draw, processes=1)[0]

    def several(
        self,
        *argv: object,
        processes: int = 2,
        at: str | None = None,
        signal: int = 9,
        rank: int = 0,
        draw: bool = False,
        call: str | None = None,
    ) -> list[int]:
        """The same of processes that make one run, as torchrun starts them.

        Args:
            *argv: words of the command.
            processes: how many.
            at: the point at which one of them is sent a signal.
            signal: which.
            rank: of that one.
            draw: whether pictures show something.
            call: a module of `_crash` whose ``main`` is called with the words, in place of a command.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        request = {
            "argv": [*map(str, argv)],
            "at": at,
            "signal": signal,
            "draw": draw,
            "output": str(self._output),
            "processes": processes,
            "port": port,
            "rank": rank,
            "call": call,
        }
        self._output.write_bytes(b"")
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        codes = json.loads(self._answers.readline())["exit"]
        self.said = self._output.read_text()
        return codes

    @contextlib.contextmanager
    def as_python(self) -> Iterator[None]:
        """Commands that are started by `sys.executable` are forks as well, in which nothing is drawn."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "executable", self._environment["WARM_PYTHON"])
            yield

    def close(self) -> None:
        self._requests.close()
        assert self._process.wait(30) == 0
