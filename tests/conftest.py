"""What all tests share: no seed left behind, and one thread, which is enough for tensors this small."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Examples that need escnn are skipped where it is not installed."""
    if find_spec("escnn") is not None:
        return
    for item in items:
        if isinstance(item, pytest.DoctestItem) and any(
            name in example.source for example in item.dtest.examples for name in ("escnn", "SteerableClassifier")
        ):
            item.add_marker(pytest.mark.skip(reason="escnn is not installed"))


@pytest.fixture(autouse=True)
def _no_seed_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """`seed_everything` writes to the environment, which a later Trainer would read."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """On networks this small, threads cost ten times what they save.

    For the whole session: what a module computes once for all its tests is to be rounded as in the tests themselves.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
