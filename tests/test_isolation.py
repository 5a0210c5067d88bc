"""Extra forwards that leave no trace."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_invariance._isolation import (
    RandomState,
    evaluation_mode,
    is_batch_coupled,
    preserved_buffers,
    preserved_random_state,
)

CPU = torch.device("cpu")


def snapshot(module: nn.Module) -> dict[str, tuple[int, int, Tensor]]:
    """Each buffer's identity, version and value."""
    return {name: (id(buffer), buffer._version, buffer.clone()) for name, buffer in module.named_buffers()}


def assert_untouched(module: nn.Module, before: dict[str, tuple[int, int, Tensor]]) -> None:
    after = snapshot(module)
    assert after.keys() == before.keys()
    for name, (identity, version, value) in after.items():
        assert (identity, version) == before[name][:2], name
        assert torch.equal(value, before[name][2]), name


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


# Buffers ---------------------------------------------------------------------------------------------------------


def test_batch_normalisation_in_train_mode_keeps_its_statistics(network: nn.Sequential, x: Tensor) -> None:
    before, keys = snapshot(network), list(network.state_dict())
    assert set(before) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    with preserved_buffers(network):
        assert list(network.state_dict()) == keys
        network(x)
        assert network[1].num_batches_tracked.item() == 1
        assert not torch.equal(network[1].running_mean, before["1.running_mean"][2])
        inner = snapshot(network)
        with preserved_buffers(network):  # blocks may be nested
            network(2 * x)
            assert network[1].num_batches_tracked.item() == 2
        assert_untouched(network, inner)
    assert_untouched(network, before)
    network(x)
    assert network[1].num_batches_tracked.item() == 1
    with preserved_buffers(network.double()):
        assert network[1].running_mean.dtype == torch.float64


def test_gradients_flow_out_of_the_block(network: nn.Sequential, x: Tensor) -> None:
    with preserved_buffers(network):
        inside = network(x).square().sum()
    actual = torch.autograd.grad(inside, list(network.parameters()))
    expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    torch.testing.assert_close(actual, expected)
    assert actual[0].abs().max() > 0


def test_a_forward_before_the_block_keeps_its_graph(network: nn.Sequential, x: Tensor) -> None:
    """In eval mode the statistics are saved for the backward; a train forward would overwrite them."""
    network.eval()
    loss = network(x).square().sum()
    expected = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    network.train()
    with preserved_buffers(network):
        network(x)
    torch.testing.assert_close(torch.autograd.grad(loss, list(network.parameters())), expected)


def test_power_iterations_are_kept(x: Tensor) -> None:
    torch.manual_seed(0)
    module = parametrizations.spectral_norm(nn.Linear(3, 4)).train()
    before = snapshot(module)
    assert before
    with preserved_buffers(module):
        module(x)
        assert any(not torch.equal(buffer, before[name][2]) for name, buffer in module.named_buffers())
    assert_untouched(module, before)


class Counter(nn.Module):
    def __init__(self, count: Tensor) -> None:
        super().__init__()
        self.register_buffer("count", count)
        self.register_buffer("local", torch.zeros(1), persistent=False)
        self.register_buffer("none", None)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.local = self.local + 1  # put in place of the old one
        return x


def test_shared_buffers_stay_shared() -> None:
    count = torch.zeros(1)
    module = nn.Sequential(Counter(count), Counter(count), nn.Sequential(Counter(count)))
    counters = [submodule for submodule in module.modules() if isinstance(submodule, Counter)]
    with preserved_buffers(module):
        module(torch.ones(1))
        assert [each.count.item() for each in counters] == [3] * 3
    assert count.item() == 0
    for each in counters:
        assert each.count is count
        assert each.local.item() == 0
        assert each.none is None


def test_buffers_made_in_inference_mode_let_gradients_pass() -> None:
    module = nn.Module()
    with torch.inference_mode():
        module.register_buffer("filter", torch.tensor([2.0, 3.0]))
    leaf = torch.ones(2, requires_grad=True)
    with preserved_buffers(module):
        assert not module.filter.is_inference()
        (gradient,) = torch.autograd.grad((leaf * module.filter).sum(), leaf)
    assert gradient.tolist() == [2.0, 3.0]
    assert module.filter.is_inference()


# Random streams and modes ----------------------------------------------------------------------------------------


def test_the_random_stream_is_put_back() -> None:
    torch.manual_seed(3)
    expected = torch.randn(5)
    torch.manual_seed(3)
    with preserved_random_state(CPU):
        assert torch.equal(torch.randn(5), expected)
        torch.manual_seed(99)
    state = RandomState(CPU)
    assert torch.equal(torch.randn(5), expected)
    # States compare, and restore.
    assert state != RandomState(CPU)
    state.restore()
    assert state == RandomState(CPU)
    assert torch.equal(torch.randn(5), expected)
    assert state != "state"


def modes_of(module: nn.Module) -> list[bool]:
    return [submodule.training for submodule in module.modules()]


def test_every_mixture_of_modes_is_given_back() -> None:
    module = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout()))
    for modes in product((False, True), repeat=len(modes_of(module))):
        for submodule, mode in zip(module.modules(), modes, strict=True):
            submodule.training = mode
        with evaluation_mode(module):
            assert not any(modes_of(module))
        assert modes_of(module) == list(modes)


class Caching(nn.Module):
    """Builds something on the way to eval mode and drops it on the way back, as weight-tied layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bool] = []

    def train(self, mode: bool = True) -> Caching:
        self.calls.append(mode)
        return super().train(mode)


@pytest.mark.parametrize(("training", "calls"), [(True, [False, True]), (False, [])])
def test_modules_are_told_through_train(training: bool, calls: list[bool]) -> None:
    module = Caching()
    module.training = training
    with evaluation_mode(module):
        assert module.training is False
    assert module.training is training
    assert module.calls == calls


@pytest.mark.parametrize(
    "block",
    [preserved_buffers, lambda network: preserved_random_state(CPU), evaluation_mode],
    ids=["buffers", "stream", "modes"],
)
def test_all_is_put_back_after_an_exception(network: nn.Sequential, x: Tensor, block: Callable[..., Any]) -> None:
    network[1].eval()
    state, modes, buffers = RandomState(CPU), modes_of(network), snapshot(network)

    def fail() -> None:
        with block(network):
            if block is preserved_buffers:
                network.train()
                network(x)
                network[1].eval()
            elif block is not evaluation_mode:
                torch.randn(3)
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert state == RandomState(CPU)
    assert modes_of(network) == modes
    assert_untouched(network, buffers)


# Coupled samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "coupled"),
    [
        (lambda: nn.BatchNorm1d(2), True),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), True),
        (lambda: nn.BatchNorm3d(2, track_running_stats=False), True),
        (lambda: nn.SyncBatchNorm(2), True),
        (lambda: nn.Sequential(nn.BatchNorm1d(2)).eval().append(nn.BatchNorm1d(2)), True),
        (lambda: nn.BatchNorm1d(2).eval(), False),
        (lambda: nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout()), False),
        (lambda: nn.Sequential(nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.InstanceNorm1d(2)), False),
        (lambda: nn.Linear(2, 2), False),
    ],
)
def test_batch_normalisation_in_train_mode_couples_samples(make: Any, coupled: bool) -> None:
    """Also a child of a parent in eval mode."""
    assert is_batch_coupled(make()) is coupled
