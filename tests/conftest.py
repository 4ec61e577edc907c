"""Fixtures that several test files share."""

import pytest
import second_device
import torch

torch.set_num_threads(1)  # the tensors here are small: on busy cores waiting for a second thread takes 100 times longer
if second_device.SUPPORTED:
    second_device.register()
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"))
AWAY = pytest.param("away", marks=pytest.mark.skipif(not second_device.SUPPORTED, reason="this PyTorch is too old"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Let a fixture know, as it ends, whether its test passed."""
    report = yield
    if report.when == "call":
        item.passed = report.passed
    return report


@pytest.fixture(params=["cpu", AWAY, CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, the device that stands for a second one, and CUDA where the machine has it."""
    return torch.device(request.param)
