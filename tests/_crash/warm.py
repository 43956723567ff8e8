"""A process that has imported everything and runs each command line that it is sent in a fork of itself.

One JSON request a line on stdin: ``{"argv": [...], "at": "loss:7" or null, "signal": 9, "draw": bool, "output": FILE}``;
one answer a line on stdout: ``{"exit": code, or minus the signal}``. Drawing is most of the time of a tiny run:
without it, every picture is the same.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import numpy.ctypeslib
import outsider
import torch
import torch.utils.serialization
from matplotlib.figure import Figure

import clprompt.assets
import clprompt.configs  # noqa: F401
from clprompt import registry
from clprompt.cli import listing, results  # noqa: F401
from clprompt.cli import main as cli
from clprompt.experiment import run  # noqa: F401
from clprompt.reporting import plots
from clprompt.system import progress
from clprompt.tracking import tensorboard, tracker  # noqa: F401


def prepare() -> None:
    """What every run needs, and what may be shared by a fork: no thread and no trained tensor."""
    torch.set_num_threads(1)
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
    for name in ("accuracy_matrix", "accuracy_curves", "forgetting", "confusion_matrix"):
        setattr(plots, name, lambda *_: None)
    plots.png = lambda *_, **__: _picture


def child(request: dict[str, Any]) -> int:
    """One command, as in a fresh process: nobody knows what the global random states hold."""
    with open(request["output"], "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.manual_seed(int.from_bytes(os.urandom(7)))
    np.random.seed(None)  # noqa: NPY002
    random.seed()
    if not request["draw"]:
        draw_nothing()
    outsider.watch_files()
    outsider.arm(request["at"], request["signal"])
    try:
        return cli.main(request["argv"])
    except BaseException:
        traceback.print_exc()
        return 1


def main() -> None:
    """Answer requests until stdin ends."""
    prepare()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            code = 1
            try:
                code = child(request)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(process, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)
    os._exit(0)  # taking everything down again takes time, and some of it complains


if __name__ == "__main__":
    main()
