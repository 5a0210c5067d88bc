"""What all tests share: no seed left behind, and one thread, which is enough for tensors this small."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Examples that need escnn are skipped where it is not installed; what shares a costly fixture stays together."""
    for item in items:
        if isinstance(item, pytest.DoctestItem) and find_spec("escnn") is None:
            if any(name in each.source for each in item.dtest.examples for name in ("escnn", "SteerableClassifier")):
                item.add_marker(pytest.mark.skip(reason="escnn is not installed"))
        elif config.pluginmanager.hasplugin("xdist"):
            fixtures = getattr(item, "_fixtureinfo", None)
            scopes = {each[-1].scope for each in fixtures.name2fixturedefs.values()} if fixtures else set()
            if "module" in scopes:
                item.add_marker(pytest.mark.xdist_group(item.path.stem))


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
