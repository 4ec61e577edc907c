"""Fixtures that several test files share."""

import pytest
import torch

torch.set_num_threads(1)  # the tensors here are small: on busy cores waiting for a second thread takes 100 times longer
NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_CUDA)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that this machine has."""
    return torch.device(request.param)
