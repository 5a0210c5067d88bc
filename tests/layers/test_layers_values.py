"""The three shares, held against sums written by hand, and against tmeasures."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from layers_networks import C4, Lifting, OverPoses, S, images
from torch import nn

import lightning_invariance as li
from lightning_invariance import evaluate_layers
from lightning_invariance._channel_matching import best_permutation
from lightning_invariance.functional import orbit_share

# The definitions, in float64 and with all of the orbit in memory -----------------------------------------------------


def share_of(orbit: torch.Tensor) -> torch.Tensor:
    """W / (W + V) of activations ``(|G|, N, ...)``."""
    flat = orbit.double().flatten(2)
    means = flat.mean(dim=0)
    within = (flat - means).square().sum(dim=2).mean()
    between = (means - means.mean(dim=0)).square().sum(dim=1).mean()
    return within / (within + between)


def over_the_orbit(network: nn.Module, x: torch.Tensor, action: li.Action) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([network(action.act(x, element)) for element in range(len(action))])


def brought_back(orbit: torch.Tensor, action: li.Action) -> torch.Tensor:
    return torch.stack([action.invert(each, element) for element, each in enumerate(orbit)])


def permuted_by_brute_force(orbit: torch.Tensor, fit: int) -> torch.Tensor:
    """Each element's channels in the order that fits best on the first samples, measured on the others."""
    rows, orders = [orbit[0, fit:]], list(itertools.permutations(range(orbit.shape[2])))
    chosen = []
    for each in orbit[1:]:
        costs = [(each[:fit, list(order)] - orbit[0, :fit]).double().square().sum().item() for order in orders]
        chosen.append(list(orders[costs.index(min(costs))]))
        rows.append(each[fit:, chosen[-1]])
    plain = all(order == sorted(order) for order in chosen)
    return share_of(orbit if plain else torch.stack(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_batch", [None, 5])
def test_the_three_shares_of_maps(dtype, max_batch):
    torch.manual_seed(0)
    network = S(Lifting(2, 1), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)).to(dtype)
    x = images(count=20).to(dtype)
    results = evaluate_layers(network, x.split(10), li.D4(), max_batch=max_batch, progress=False)
    for depth, row in enumerate(results.rows):
        orbit = over_the_orbit(network[: depth + 1], x, li.D4())
        back = brought_back(orbit, li.D4())
        assert row.invariance.value == pytest.approx(share_of(orbit).item(), rel=1e-5)
        assert row.equivariance.value == pytest.approx(share_of(back).item(), rel=1e-5)
        fit = 5 if max_batch is None else 2
        assert row.permuted.value == pytest.approx(permuted_by_brute_force(back, fit).item(), rel=1e-5)
        assert row.error.value == min(row.invariance.value, row.equivariance.value, row.permuted.value)
        assert row.shape == tuple(orbit.shape[2:])
    assert results.samples == 20


def test_flat_features_are_matched_as_they_are():
    torch.manual_seed(0)
    network = S(nn.Flatten(), nn.Linear(32, 5))
    x = torch.randn(12, 2, 4, 4)
    row = evaluate_layers(network, [x], C4, progress=False).rows[1]
    orbit = over_the_orbit(network, x, C4)
    assert row.invariance.value == pytest.approx(share_of(orbit).item(), rel=1e-5)
    assert row.equivariance.value.isnan()
    assert row.permuted.value == pytest.approx(permuted_by_brute_force(orbit, 6).item(), rel=1e-5)


def test_of_logits_it_is_the_orbit_share_but_for_the_centring():
    """Logits whose mean over the classes is 0 are centred already."""
    torch.manual_seed(0)
    network = S(nn.Flatten(), nn.Linear(32, 5))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= parameter.mean(dim=0)
    x = torch.randn(40, 2, 4, 4)
    row = evaluate_layers(network, x.split(7), C4, progress=False).rows[1]
    outputs = over_the_orbit(network, x, C4)
    assert row.invariance.value == pytest.approx(orbit_share(outputs[0], outputs[1:]).item(), rel=1e-5)
    metric = li.OrbitShare()
    metric.update(outputs[0], outputs[1:])
    jackknife = metric.compute_with_error().standard_error
    assert row.invariance.standard_error == pytest.approx(jackknife.item(), rel=0.5)


def test_the_standard_error_is_the_spread_over_draws_of_the_samples():
    torch.manual_seed(0)
    network = S(nn.Flatten(), nn.Linear(16, 3))
    rows = [
        evaluate_layers(network, [torch.randn(60, 1, 4, 4)], C4, max_channels=0, progress=False).rows[1]
        for _ in range(40)
    ]
    spread = torch.stack([row.invariance.value for row in rows]).std()
    typical = torch.stack([row.invariance.standard_error for row in rows]).mean()
    assert typical == pytest.approx(spread.item(), rel=0.35)


def test_what_is_invariant_reads_nothing_and_what_is_constant_is_undefined():
    torch.manual_seed(0)
    shifted = S(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    results = evaluate_layers(shifted.double(), [images().double() + 1e4], C4, progress=False)
    assert all(row.invariance.value < 1e-18 for row in results.rows)
    dead = S(nn.Conv2d(2, 4, 1), nn.Hardtanh(5.0, 6.0))
    row = evaluate_layers(dead, [images()], C4, progress=False).rows[1]
    assert row.invariance.value.isnan()
    assert "the same for all samples" in row.note


class TestMatching:
    def test_poses_are_found(self):
        torch.manual_seed(0)
        results = evaluate_layers(Lifting(2, 5), images().split(12), C4, progress=False)
        assert results.rows[0].equivariance.value > 0.1
        assert results.rows[0].permuted.value < 1e-12

    def test_dead_and_equal_channels_do_not_disturb_it(self):
        base = torch.randn(6, 40)
        base[1] = base[4] = 0.0
        base[2] = base[3]
        order = torch.tensor([5, 4, 3, 0, 2, 1])
        table, found = best_permutation(base, base[order])
        assert found
        assert torch.equal(base[order][table], base)
        assert best_permutation(base, base) == (None, True)

    def test_features_at_0_in_the_first_half_are_told_apart_by_the_layer_before(self):
        torch.manual_seed(0)
        x = torch.randn(16, 1, 6, 6)
        x[:8, :, :3] = -x[:8, :, :3].abs()  # rectified away, for these samples alone
        network = S(nn.Flatten(), nn.Tanh(), nn.ReLU())
        row = evaluate_layers(network, [x], C4, progress=False).rows[2]
        assert row.permuted.value < 1e-12

    def test_it_is_the_best_of_all(self):
        torch.manual_seed(0)
        for _ in range(5):
            base, moved = torch.randn(5, 8), torch.randn(5, 8)
            table, _ = best_permutation(base, moved)
            least = min((moved[list(order)] - base).square().sum() for order in itertools.permutations(range(5)))
            chosen = moved if table is None else moved[table]
            assert (chosen - base).square().sum() == pytest.approx(least.item(), rel=1e-5)

    def test_where_each_channel_has_a_nearest_of_its_own_scipy_is_not_asked(self, monkeypatch):
        def refuse(name, purpose):
            raise ModuleNotFoundError(f"{purpose} needs {name}")

        monkeypatch.setattr("lightning_invariance._channel_matching.require", refuse)
        torch.manual_seed(0)
        network = S(Lifting(2, 3), nn.ReLU(), OverPoses())
        assert evaluate_layers(network, [images()], C4, progress=False).breaks_at is None
        broken = S(nn.Conv2d(2, 8, 3, padding=1))
        with pytest.raises(ModuleNotFoundError, match="Matching channels needs scipy"):
            evaluate_layers(broken, [images()], C4, progress=False)
        assert evaluate_layers(broken, [images()], C4, max_channels=0, progress=False).breaks_at == "0"

    def test_many_channels_that_nothing_brings_near_are_left_as_they_are(self):
        torch.manual_seed(0)
        row = evaluate_layers(nn.Conv2d(2, 40, 3, padding=1), [images()], C4, progress=False).rows[0]
        assert row.permuted.value == row.equivariance.value
        assert "no permutation of channels brings it near" in row.note

    def test_a_permutation_is_measured_on_samples_it_was_not_fitted_on(self):
        """Of noise the best order for four samples is not the best for others."""
        torch.manual_seed(0)
        x = torch.randn(8, 1, 8, 8)
        noise = nn.Linear(64, 12)
        row = evaluate_layers(S(nn.Flatten(), noise), [x], C4, progress=False).rows[1]
        orbit = over_the_orbit(S(nn.Flatten(), noise), x, C4)
        fitted = []
        for each in orbit[1:]:
            table, _ = best_permutation(orbit[0, :4].T, each[:4].T)
            fitted.append(each[:, table])
        fitted = torch.stack([orbit[0], *fitted])
        assert row.permuted.value == pytest.approx(share_of(fitted[:, 4:]).item(), rel=1e-5)
        assert row.permuted.value > share_of(fitted[:, :4])


# tmeasures ------------------------------------------------------------------------------------------------------------
#
# Its normalised variance is, for each unit, the mean over samples of the standard deviation over the orbit, over the
# mean over the orbit of the standard deviation over samples, both with n - 1. On data that the group maps to itself,
# with the same spread in each orbit, both means are those of equal numbers, and its square is W / (W + V) but for the
# corrections: S = NV² (|G| - 1) / |G| · n / (n - 1).


def corrected(ratios: torch.Tensor, samples: int) -> torch.Tensor:
    return ratios.square() * 3 / 4 * samples / (samples - 1)


def closed_data() -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4)
    return torch.cat([C4.orbit(x[None])[:, 0], C4.orbit(x[None] + 0.7)[:, 0], C4.orbit(-x[None])[:, 0]])


def normalized_variance(activations: torch.Tensor) -> torch.Tensor:
    """By its definition, of ``(|G|, N)``."""
    return activations.std(dim=0).mean() / activations.std(dim=1).mean()


class Signs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.signs = nn.Parameter(torch.randn(4, 4).sign(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.signs


def test_normalised_variance_by_its_formula():
    network, x = S(nn.Flatten(), nn.Linear(16, 1)), closed_data()
    row = evaluate_layers(network, [x], C4, progress=False).rows[1]
    ratio = normalized_variance(over_the_orbit(network, x, C4)[..., 0].double())
    assert row.invariance.value == pytest.approx(corrected(ratio, len(x)).item(), rel=1e-5)


def test_normalised_same_equivariance_by_its_formula():
    torch.manual_seed(0)
    network = Signs()
    x = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None, None] * torch.rand(1, 1, 4, 4)
    row = evaluate_layers(network, [x], C4, max_channels=0, progress=False).rows[0]
    back = brought_back(over_the_orbit(network, x, C4), C4).double().flatten(2)
    ratios = torch.stack([normalized_variance(unit) for unit in back.unbind(dim=2)])
    weights = x[0].flatten().double().square()  # all units together are weighted by their variances
    expected = (weights * corrected(ratios, len(x))).sum() / weights.sum()
    assert row.equivariance.value == pytest.approx(expected.item(), rel=1e-5)


def test_tmeasures_itself():
    tmeasures = pytest.importorskip("tmeasures")
    from tmeasures import pytorch as peer

    class Turn(peer.PyTorchTransformation):
        def __init__(self, turns):
            super().__init__()
            self.turns = turns

        def __call__(self, x):
            return torch.rot90(x, self.turns, (-2, -1))

        def inverse(self):
            return Turn(-self.turns)

    network, x = S(nn.Flatten(), nn.Linear(16, 1)), closed_data()

    class Watched(peer.ActivationsModule):
        def activation_names(self):
            return ["1"]

        def forward_activations(self, args):
            with torch.no_grad():
                return [network(args)]

    options = peer.PyTorchMeasureOptions(
        batch_size=4, verbose=False, model_device="cpu", measure_device="cpu", data_device="cpu"
    )
    turns = tmeasures.TransformationSet([Turn(number) for number in range(4)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = peer.NormalizedVarianceInvariance().eval(x, turns, Watched(), options).layers[0]
    row = evaluate_layers(network, [x], C4, progress=False).rows[1]
    assert row.invariance.value == pytest.approx(corrected(found.double(), len(x)).item(), rel=1e-4)
