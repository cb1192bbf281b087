"""Two editions: all parts to do, and the published assignment's."""

import pytest
import torch
from support.editions import make


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These tensors are small: on a busy machine threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def edition(tmp_path_factory):
    return make(tmp_path_factory.mktemp("all"))


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    return make(tmp_path_factory.mktemp("published"), "--published")
