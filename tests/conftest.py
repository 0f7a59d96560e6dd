"""What every test shares: quiet third parties, few threads, no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

LONG = ("adapter/test_fit.py", "adapter/test_processes.py", "pretraining/", "cli/", "runs/")
"""Files that take minutes. A worker takes whole files: one of these at the end leaves the others idle."""


def pytest_collection_modifyitems(items):
    """Long files first; the order within a file stays."""

    def place(item):
        path = item.nodeid.removeprefix("tests/")
        return next((i for i, start in enumerate(LONG) if path.startswith(start)), len(LONG))

    items.sort(key=place)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Choices that this machine's user has measured are neither read nor changed."""
    os.environ["QUERYKEY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _torch_in_doctests(doctest_namespace):
    doctest_namespace["torch"] = torch
