"""Prepared run folders, each run in a process of its own: some at a time on this machine, or as tasks of Ray.

A process of its own gives every run its own peak memory and its own share of the cores, and lets a crash end
one run alone. What runs in it is `clprompt resume FOLDER`, which also starts a run that has not begun.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from clprompt.errors import ConfigError
from clprompt.system.files import open_regular
from clprompt.system.parent import PARENT

OUTPUT = "output.log"
_ERROR = "clprompt: error: "
_POLL = 0.2  # seconds between two looks at whether somebody wants to stop


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: "done"; "stopped", to be continued from its checkpoint; or "failed".
        reason: of a failure, one line.
        seconds: that it took, starting the process included.
    """

    status: Literal["done", "stopped", "failed"]
    reason: str = ""
    seconds: float = 0.0


class Launcher(Protocol):
    """What starts runs.

    It yields (folder, None) when a run starts where it can tell, (folder, outcome) at its end.
    """

    def __call__(
        self, folders: Sequence[Path], imports: Sequence[str], stop: Callable[[], int | None]
    ) -> Iterator[tuple[Path, Outcome | None]]: ...


def cores() -> int:
    """The processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def execute(
    folder: str, *, threads: int, imports: Sequence[str] = (), stop: Callable[[], Any] = lambda: None
) -> Outcome:
    """Start or continue the run of a folder in a process of its own, and wait for its end.

    Args:
        folder: it holds a config.yaml and no results yet; its output.log gets what the process prints.
        threads: of torch; OMP_NUM_THREADS may ask for fewer.
        imports: modules for --import.
        stop: asked again and again; the first true answer asks the run to write its checkpoint and end.
    """
    began = time.perf_counter()
    words = [word for module in imports for word in ("--import", module)]
    # -P: the folder that somebody stands in must not shadow the installed package
    command = [sys.executable, "-P", "-m", "clprompt", "resume", *words, folder]
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(threads, int(asked)) if asked.isdigit() and int(asked) else threads
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "COLUMNS": "100"}
    environment[PARENT] = str(os.getpid())  # killed, we leave no run behind that nobody waits for
    log = Path(folder) / OUTPUT
    with open_regular(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as output:
        start = output.tell()
        # a session of its own: Ctrl-C in a terminal reaches us alone, and each run is then asked exactly once
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
        stopping = False
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(_POLL)
                    break
                if not stopping and stop():
                    process.terminate()
                    stopping = True
        except BaseException:  # nobody waits for it any more: it ends with its checkpoint
            process.terminate()
            process.wait()
            raise
    seconds = time.perf_counter() - began
    if code == 0:
        return Outcome("done", seconds=seconds)
    if code in (130, 143) or (stopping and code < 0):  # a negative one: it had not begun yet
        return Outcome("stopped", seconds=seconds)
    with open(log, "rb") as output:
        output.seek(start)
        lines = [line.strip() for line in output.read().decode(errors="replace").split("\n")]
    # the last one alone may be another's: a run that goes on in this folder writes here, too
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    last = (errors or [line for line in lines if line] or [f"exit code {code}"])[-1]
    if code < 0:
        last = f"ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    return Outcome("failed", last, seconds)


class Local:
    """Runs at a time on this machine.

    Args:
        jobs: how many, at most one for every core; the cores are shared out among them.
    """

    def __init__(self, jobs: int = 1) -> None:
        if jobs < 1:
            raise ConfigError(f"--jobs must be at least 1, got {jobs}")
        self.jobs = min(jobs, cores())
        self.threads = max(1, cores() // self.jobs)

    def __call__(
        self, folders: Sequence[Path], imports: Sequence[str], stop: Callable[[], int | None]
    ) -> Iterator[tuple[Path, Outcome | None]]:
        """See `Launcher`."""
        ending = False

        def asked() -> bool:
            return ending or stop() is not None

        waiting = list(folders)
        running: dict[futures.Future[Outcome], Path] = {}
        with futures.ThreadPoolExecutor(self.jobs) as pool:
            try:
                while running or (waiting and not asked()):
                    while waiting and len(running) < self.jobs and not asked():
                        folder = waiting.pop(0)
                        yield folder, None
                        work = pool.submit(
                            execute, str(folder), threads=self.threads, imports=imports, stop=asked
                        )
                        running[work] = folder
                    done, _ = futures.wait(running, _POLL, futures.FIRST_COMPLETED)
                    for work in done:
                        yield running.pop(work), work.result()
            finally:
                ending = True  # leaving the pool waits for those that still run


class Ray:
    """The same runs as tasks of a Ray cluster, whose machines share the folder of the runs.

    Args:
        jobs: cores of the cluster are shared out as if so many runs were to go on at a time on each machine
            like this one; None for one core each.
        gpus_per_run: share of a GPU that a run gets, so that 0.25 has four runs share one; None for a whole
            one where the cluster has any.
        address: of the cluster, or "local"; None for RAY_ADDRESS, else a cluster of this machine alone.

    Raises:
        ConfigError: Ray is not installed, or a share that no run can use.
    """

    def __init__(
        self, jobs: int | None = None, gpus_per_run: float | None = None, address: str | None = None
    ) -> None:
        if gpus_per_run is not None and not 0 <= gpus_per_run <= 1:
            raise ConfigError(
                f"--gpus-per-run must be from 0 to 1, as a run of a study has one process: {gpus_per_run:g}"
            )
        try:
            import ray
        except ImportError:
            raise ConfigError("--launcher ray needs Ray: pip install 'clprompt[ray]'") from None
        self._ray: Any = ray
        self.threads = max(1, cores() // (jobs or cores()))
        self._gpus_per_run = gpus_per_run
        self._address = address

    def __call__(
        self, folders: Sequence[Path], imports: Sequence[str], stop: Callable[[], int | None]
    ) -> Iterator[tuple[Path, Outcome | None]]:
        """See `Launcher`."""
        ray = self._ray
        started = not ray.is_initialized()
        if started:
            ray.init(address=self._address, log_to_driver=False, include_dashboard=False)
        gpu = self._gpus_per_run
        if gpu is None:
            gpu = 1 if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(num_cpus=self.threads, num_gpus=gpu, max_retries=0)(execute)
        try:
            running = {
                task.remote(str(folder.resolve()), threads=self.threads, imports=list(imports)): folder
                for folder in folders
            }
            stopping = False
            while running:
                if not stopping and stop() is not None:
                    stopping = True
                    for work in running:  # a task that runs gets a KeyboardInterrupt, and ends its process
                        ray.cancel(work)
                done, _ = ray.wait(list(running), timeout=_POLL)
                for work in done:
                    yield running.pop(work), self._outcome(work)
        finally:
            if started:
                ray.shutdown()

    def _outcome(self, work: Any) -> Outcome:
        try:
            return self._ray.get(work)
        except (self._ray.exceptions.TaskCancelledError, KeyboardInterrupt):
            return Outcome("stopped")
        except self._ray.exceptions.RayError as error:
            return Outcome("failed", " ".join(str(error).split())[:200])


def launcher(name: str, jobs: int | None, gpus_per_run: float | None = None) -> Launcher:
    """The launcher of a name, local or ray."""
    launchers: Mapping[str, Callable[[], Launcher]] = {
        "local": lambda: Local(jobs or 1),
        "ray": lambda: Ray(jobs, gpus_per_run),
    }
    if name not in launchers:
        raise ConfigError(f"--launcher must be one of {', '.join(launchers)}, got {name}")
    if gpus_per_run is not None and name != "ray":
        raise ConfigError(f"--gpus-per-run needs --launcher ray, got --launcher {name}")
    return launchers[name]()
