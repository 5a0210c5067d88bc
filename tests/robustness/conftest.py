"""Lightning's own warnings about small trainers are not the package's; one thread is enough for tensors this small."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

_LIGHTNING_WARNINGS = (
    "ignore:The '.*dataloader' does not have many workers",
    "ignore:The number of training batches .* is smaller than the logging interval",
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    for line in _LIGHTNING_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def _no_seed_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """`seed_everything` writes to the environment, which a later Trainer would read."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
