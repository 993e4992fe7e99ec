import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tensors of tests are tiny: a second thread only waits, the more so beside other programs."""
    torch.set_num_threads(1)
