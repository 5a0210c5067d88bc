"""Whatever modules a network is made of: each works, or says why not; and the network is left as it was."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from layers_networks import C4, OverPoses, S, head, images, symmetric
from torch import nn
from torch.utils.checkpoint import checkpoint

import lightning_invariance as li
from lightning_invariance import evaluate_layers


def measured(network, x=None, action=C4, **options):
    return evaluate_layers(network, [images() if x is None else x], action, progress=False, **options)


def hooks_of(network):
    return [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in network.modules()]


class Odd(nn.Module):
    """Outputs of all kinds."""

    def __init__(self, output):
        super().__init__()
        self.layer, self.odd = symmetric(2, 4), Output(output)

    def forward(self, x):
        y = self.layer(x)
        self.odd(y)
        return y.mean(dim=(2, 3))


class Output(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x)


@pytest.mark.parametrize(
    ("output", "note"),
    [
        (lambda x: "words", "gives no tensor but str"),
        (lambda x: None, "gives no tensor but NoneType"),
        (lambda x: x.argmax(1), "gives int64, no real numbers"),
        (lambda x: x.cfloat(), "gives complex64, no real numbers"),
        (lambda x: x.flatten(0, 1), r"gives a tensor (96, 8, 8) of float32, not one row for each of 24 samples"),
        (lambda x: x.sum(), "not one row for each of 24 samples"),
        (lambda x: x[..., :0], "gives no values"),
        (lambda x: x * float("nan"), "its activations are not finite"),
        (lambda x: x[:, : 1 + int(x[0, 0, 0, 0] > x[0, 0, 0, -1])], "its output has another shape for a moved input"),
    ],
)
def test_an_output_that_cannot_be_measured_is_named(output, note):
    row = measured(Odd(output)).rows[1]
    assert row.name == "odd"
    assert row.error.value.isnan()
    assert note in row.note


def test_every_tensor_of_an_output_is_a_row():
    results = measured(Odd(lambda x: {"maps": x, "both": (x.mean(dim=(2, 3)), x.amax(dim=(2, 3)))}))
    rows = results.rows[1:]
    assert [row.label for row in rows] == ["odd['maps']", "odd['both'][0]", "odd['both'][1]"]
    assert [row.shape for row in rows] == [(4, 8, 8), (4,), (4,)]
    assert results.breaks_at is None


def test_a_layer_that_is_not_called_for_every_element_is_named():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.other = symmetric(2, 2), nn.ReLU()

        def forward(self, x):
            y = self.layer(x)
            return self.other(y) if x[0, 0, 0, 0] == first else y

    x = images()
    first = x[0, 0, 0, 0].clone()
    row = measured(Sometimes(), x).rows[1]
    assert "is not called alike for all elements" in row.note


def test_a_layer_that_is_not_called_in_every_batch_is_named():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.other = symmetric(2, 2), nn.ReLU()

        def forward(self, x):
            return self.other(self.layer(x)) if len(x) == 16 else self.layer(x)

    row = evaluate_layers(Late(), images().split(16), C4, progress=False).rows[1]
    assert "is not called in all batches" in row.note


def test_in_place_activations_are_told_from_what_they_overwrite():
    torch.manual_seed(0)
    network = S(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Hardtanh(0.0, 0.1, inplace=True))
    apart = S(network[0], nn.ReLU(), nn.Hardtanh(0.0, 0.1))
    x = images()
    rows, others = measured(network, x).rows, measured(apart, x).rows
    assert [row.invariance.value for row in rows] == [row.invariance.value for row in others]
    assert [row.inputs for row in rows] == [row.inputs for row in others]
    assert len({row.invariance.value.item() for row in rows}) == 3
    assert torch.equal(x, images())


def test_what_a_layer_hands_on_is_measured_once():
    torch.manual_seed(0)
    network = S(nn.Conv2d(2, 4, 3, padding=1), nn.Identity(), nn.Dropout(), nn.Flatten())
    rows = measured(network.eval()).rows
    assert len({row.equivariance.value.item() for row in rows}) == 1
    assert [row.depth for row in rows] == [0.25, 0.5, 0.75, 1.0]


def test_frozen_shared_parametrized_and_checkpointed_modules():
    torch.manual_seed(0)
    shared = symmetric(2, 2)
    nn.utils.parametrizations.weight_norm(shared)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.unused = shared, shared, nn.Linear(3, 3)

        def forward(self, x):
            return checkpoint(self.second, torch.tanh(self.first(x)), use_reentrant=False)

    network = Network().requires_grad_(False)
    results = measured(network)
    assert [(row.name, row.call, row.kind) for row in results.rows] == [
        ("first", 0, "ParametrizedConv2d"),
        ("first", 1, "ParametrizedConv2d"),
    ]


def test_a_module_whose_children_are_not_called_is_a_layer():
    torch.manual_seed(0)
    network = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(12, 5, 8)
    results = evaluate_layers(lambda x: network(x, x, x)[0], [x], li.SetPermutations(samples=4), progress=False)
    assert [row.label for row in results.rows] == ["(network)[0]", "(network)[1]"]
    assert results.rows[0].equivariance.value < 1e-11
    # Its weights move in rows, as the set does, and in columns: these are permuted as channels are.
    assert results.rows[1].equivariance.value > 0.1
    assert results.rows[1].permuted.value < 1e-11
    assert results.breaks_at is None


def test_layers_can_be_chosen():
    torch.manual_seed(0)
    network = S(S(symmetric(2, 4), nn.ReLU()), S(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), *head(4))
    assert [row.name for row in measured(network, layers=["0", "1", "4"]).rows] == ["0", "1", "4"]
    results = measured(network, layers=lambda name, module: isinstance(module, nn.ReLU))
    assert [row.name for row in results.rows] == ["0.1", "1.1"]
    assert results.breaks_at == "1"  # in whose code its input was made, as far as was looked
    assert measured(network, layers=["1"]).rows[0].depth == pytest.approx(4 / 7)
    with pytest.raises(ValueError, match="to call the modules that are measured but it called none"):
        measured(S(nn.ReLU(), Uncalled()), layers=["1.layer"])


class Uncalled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.ReLU()

    def forward(self, x):
        return x


def test_networks_that_differentiate_inside():
    class Force(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = S(nn.Flatten(), nn.Tanh(), nn.Linear(128, 1))

        def forward(self, x):
            x = x.requires_grad_() if x.is_leaf else x
            return torch.autograd.grad(self.energy(x).sum(), x)[0]

    network = Force()
    rows = measured(network).rows
    assert rows[-1].invariance.value > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_network_is_left_as_it_was_also_after_an_exception():
    torch.manual_seed(0)
    network = S(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), *head(4))
    network[1].eval()
    state, modes = copy.deepcopy(network.state_dict()), [each.training for each in network.modules()]
    random = torch.get_rng_state()

    def check():
        assert hooks_of(network) == [0] * len(modes)
        assert [each.training for each in network.modules()] == modes
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)

    for training in (False, True):
        measured(network, training=training)
        check()

    def raises(module, args, output):
        raise RuntimeError("in the middle")

    handle = network[-1].register_forward_hook(raises)
    with pytest.raises(RuntimeError, match="in the middle"):
        measured(network)
    handle.remove()
    check()


def test_memory_does_not_grow_with_the_number_of_elements():
    """What is alive at the last element is what is alive at the second."""
    alive = []

    class Count(nn.Module):
        def forward(self, x):
            alive.append(sum(each.numel() for each in gc.get_objects() if type(each) is torch.Tensor))
            return x

    torch.manual_seed(0)
    network = S(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), OverPoses(), Count())
    evaluate_layers(network, images(count=48).split(24), li.CyclicTranslations(8), progress=False)
    assert len(alive) == 16
    activations = 24 * 4 * 64
    assert max(alive[8:]) - min(alive[9:]) < 2 * activations  # of the second batch, 8 elements
    assert max(alive[10:]) - min(alive[10:]) < activations


def test_one_pass_over_the_orbit():
    calls = []
    network = S(nn.Conv2d(2, 4, 3, padding=1), Output(lambda x: calls.append(len(x)) or x))
    evaluate_layers(network, images().split(12), C4, progress=False)
    assert calls == [12] * 8
    calls.clear()
    evaluate_layers(network, images().split(12), C4, max_batch=5, progress=False)
    assert calls == [5, 5, 5, 5, 5, 5, 5, 5, 2, 2, 2, 2] * 2


def test_networks_of_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.join = nn.Linear(3, 4), nn.Linear(5, 6)

        def forward(self, positions, charges):
            return self.join(torch.cat([self.embed(positions), charges[..., None]], dim=-1)).sum(dim=1)

    x, charges = torch.randn(12, 7, 3), torch.randn(12, 7)
    action = li.SetPermutations(samples=3)
    both = evaluate_layers(Two(), [(x, charges, torch.zeros(12))], action, input=[0, 1], progress=False)
    assert both.breaks_at is None
    assert both.rows[0].equivariance.value == 0
