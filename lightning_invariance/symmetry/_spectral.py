"""Spectral normalisations, whose vectors follow weights step by step: brought up to weights that have jumped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

#: How many power iterations; from one training step to the next a normalisation does one.
_ITERATIONS = 50


def spectral_norms(network: nn.Module) -> Iterator[Callable[[], None]]:
    """For each spectral normalisation of a network, in the new way and in the old one, what does a power iteration."""
    for module in network.modules():
        chains = module.parametrizations.values() if is_parametrized(module) else ()  # type: ignore[operator]
        for chain in chains:
            if any(hasattr(each, "_power_method") for each in chain) and hasattr(chain, "original"):
                yield partial(_iterate, chain)
        for hook in module._forward_pre_hooks.values():
            if hasattr(hook, "compute_weight") and hasattr(hook, "n_power_iterations"):
                yield partial(_iterate_hook, hook, module)


@torch.no_grad()
def renew(norms: list[Callable[[], None]]) -> None:
    """Iterates until the norms are those of the weights."""
    for _ in range(_ITERATIONS):
        for iterate in norms:
            iterate()


def _iterate(chain: nn.ModuleList) -> None:
    """Normalises in train mode, in which the vectors are renewed."""
    training = chain.training
    chain.train()
    try:
        value = chain.original
        for each in chain:
            value = each(value)
    finally:
        chain.train(training)


def _iterate_hook(hook: Any, module: nn.Module) -> None:
    setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=True))
