"""The models of the tests are tiny: a second thread would only wait, here and in the processes that tests start."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from warm_process import WarmProcess

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def warm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmProcess]:
    """Commands in forks of one process that has imported everything."""
    process = WarmProcess(tmp_path_factory.mktemp("warm"))
    yield process
    process.close()


@pytest.fixture
def warm_python(warm_process: WarmProcess) -> Iterator[None]:
    """Processes that the code under test starts are forks of it."""
    with warm_process.as_python():
        yield


@pytest.fixture(scope="module")
def same_picture() -> Iterator[None]:
    """Drawing takes ten times as long as a tiny run: every picture of a module's tests is the same."""
    import numpy as np

    from clprompt.reporting import plots

    with pytest.MonkeyPatch.context() as patch:
        picture = plots.png(plots.accuracy_curves(np.eye(1)), dpi=20)
        for name in ("accuracy_matrix", "accuracy_curves", "forgetting", "confusion_matrix"):
            patch.setattr(plots, name, lambda *_, **__: None)
        patch.setattr(plots, "png", lambda *_, **__: picture)
        yield
