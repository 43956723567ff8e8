"""The models of the tests are tiny: a second thread would wait, here and in processes of tests."""

import gc
import os
from collections.abc import Generator, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import devices
import pytest
import torch
from drawing import same_picture
from hypothesis import HealthCheck, settings
from warm_process import WarmProcess

from clprompt.errors import ConfigError
from clprompt.system.runtime import find_device

torch.set_num_threads(1)
# a busy machine is no fault of what is tested
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help='where the golden and conformance tests compute, such as "cuda"'
    )
    parser.addoption(
        "--onnx",
        choices=["some", "all"],
        default="some",
        help="which strategies ONNX Runtime is asked to give the logits of",
    )


def pytest_configure(config: pytest.Config) -> None:
    devices.DEVICE = config.getoption("--device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What computes on a device that is not there is skipped, and says so."""
    try:
        find_device(devices.DEVICE)
    except ConfigError as error:
        for item in items:
            if {"golden", "conformance"} & set(item.path.parts):
                item.add_marker(pytest.mark.skip(reason=str(error)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of tests and what they import stay to the end: nobody need look for garbage among them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


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


@pytest.fixture(scope="module", name="same_picture")
def _same_picture() -> Iterator[None]:
    """Every picture of a module's runs is the same: drawing would take ten times as long as they do."""
    with same_picture():
        yield
