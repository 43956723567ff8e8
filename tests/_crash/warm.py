"""A process that has imported everything and runs each command line that it is sent in a fork of itself.

One JSON request a line on stdin: ``{"argv": [...], "at": "loss:7" or null, "signal": 9, "draw": bool,
"output": FILE, "processes": 1, "port": PORT, "rank": 0, "call": null}``; one answer a line on stdout:
``{"exit": [code, or minus the signal, of each process]}``. Drawing is most of the time of a tiny run: without
it, every picture is the same. Several processes find each other as those of torchrun do; the signal is for
the one of that rank. What is called in place of a command is the ``main`` of a module in this folder.

Commands that start commands reach it by ``python.py``, at the socket whose path is its argument: several at a
time, each with the streams, the folder and the environment of the one that asks, and without drawing.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import numpy.ctypeslib
import outsider
import sklearn.cluster
import sklearn.datasets
import sklearn.model_selection  # noqa: F401
import torch
from matplotlib.figure import Figure

with contextlib.suppress(ImportError):  # torch 2.4 has none
    import torch.utils.serialization

import clprompt.assets
import clprompt.backbones.families  # it imports timm
import clprompt.configs  # noqa: F401
from clprompt import registry
from clprompt.cli import listing, results  # noqa: F401
from clprompt.cli.main import main as clprompt_command
from clprompt.experiment import run  # noqa: F401
from clprompt.reporting import plots, summary  # noqa: F401
from clprompt.system import progress
from clprompt.tracking import tensorboard, tracker  # noqa: F401


def prepare() -> None:
    """What every run needs, and what may be shared by a fork: no thread and no trained tensor."""
    torch.set_num_threads(1)
    # who runs in the background inherits that it is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    registry.load_builtin()
    with tempfile.TemporaryDirectory() as folder, progress.create():
        tensorboard.EventFile(Path(folder), after=[]).file.close()
    figure = Figure(figsize=(1, 1))
    figure.subplots().set_title("fonts")
    global _picture
    _picture = plots.png(figure, 20)
    gc.collect()
    gc.freeze()  # a fork then leaves these objects' pages alone


_picture = b""


def draw_nothing() -> None:
    """The same picture whatever it shows."""
    blank = Figure()
    for name in ("accuracy_matrix", "accuracy_curves", "forgetting", "confusion_matrix"):
        setattr(plots, name, lambda *_: blank)
    plots.png = lambda *_, **__: _picture


def child(request: dict[str, Any], rank: int) -> int:
    """One command of a test, or one of the processes that it is given to."""
    with open(request["output"], "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if not request["draw"]:
        draw_nothing()
    outsider.watch_files()
    outsider.arm(request["at"] if rank == request["rank"] else None, request["signal"])
    if request["processes"] > 1:
        there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": request["port"]}
        os.environ.update(there | {"RANK": str(rank), "WORLD_SIZE": str(request["processes"])})
    if request["call"]:
        try:
            importlib.import_module(request["call"]).main(*request["argv"])
        except BaseException:
            traceback.print_exc()
            return 1
        return 0
    return command(request["argv"])


def grandchild(request: dict[str, Any], streams: list[int]) -> int:
    """One command of a command."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = os.environ["WARM_PYTHON"]  # what it starts is as warm
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    draw_nothing()
    return command(request["argv"])


def command(argv: list[str]) -> int:
    """The exit code of a command line, as in a fresh process: the global random states hold anything."""
    torch.manual_seed(int.from_bytes(os.urandom(7)))
    np.random.seed(None)  # noqa: NPY002
    random.seed()
    try:
        return clprompt_command(argv)
    except BaseException:
        traceback.print_exc()
        return 1


def fork(function: Callable[..., int], *arguments: Any) -> int:
    """The process that calls a function and ends with its exit code."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            code = function(*arguments)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return process


def serve(connection: socket.socket) -> int:
    """Run what a command asks for in a fork; tell the fork's process id and, at its end, its exit code."""
    os.setsid()
    line, streams, *_ = socket.recv_fds(connection, 1 << 20, 3)
    while not line.endswith(b"\n"):
        line += connection.recv(1 << 20)
    process = fork(grandchild, json.loads(line), streams)
    for stream in streams:
        os.close(stream)
    connection.sendall(f"{process}\n".encode())
    _, status = os.waitpid(process, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    return 0


def main() -> None:
    """Answer requests until stdin ends."""
    prepare()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    requests = selectors.DefaultSelector()
    requests.register(listener, selectors.EVENT_READ)
    requests.register(sys.stdin, selectors.EVENT_READ)
    print(json.dumps({"ready": True}), flush=True)
    while True:
        ready = requests.select()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # those that served a connection and are done
                pass
        for key, _ in ready:
            if key.fileobj is listener:
                connection, _ = listener.accept()
                fork(serve, connection)
                connection.close()
                continue
            line = sys.stdin.readline()
            if not line:
                os._exit(0)  # taking everything down again takes time, and some of it complains
            request = json.loads(line)
            processes = [fork(child, request, rank) for rank in range(request["processes"])]
            codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
            print(json.dumps({"exit": codes}), flush=True)


if __name__ == "__main__":
    main()
