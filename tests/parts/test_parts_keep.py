"""The samples that are kept are those that move farthest, found again by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_invariance import (
    C4,
    SO3,
    Gradient,
    SetPermutations,
    evaluate_invariance,
    evaluate_orbit,
)
from lightning_invariance.report import plot_worst

torch.manual_seed(0)
X, Y = torch.randn(50, 1, 6, 6), torch.arange(50) % 3
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))
OPTIONS: dict[str, Any] = {"keep": "worst", "progress": False, "saliency": Gradient()}


def by_hand(x: Tensor = X, network: Any = NETWORK) -> tuple[Tensor, Tensor]:
    """The largest error of each sample, and the element that it belongs to."""
    with torch.no_grad():
        errors = torch.stack([(network(x.rot90(g, (-2, -1))) - network(x)).square().sum(1) / 2 for g in range(1, 4)])
    worst, place = errors.max(dim=0)
    return worst, place + 1


@pytest.mark.parametrize("size", [7, 50])
@pytest.mark.parametrize("n", [1, 5, 80])
def test_the_worst_samples_and_their_elements(size: int, n: int) -> None:
    batches = list(zip(X.split(size), Y.split(size), strict=True))
    kept = evaluate_invariance(NETWORK, batches, C4(), n=n, measures=["orbit_share"], **OPTIONS).kept
    assert kept is not None
    worst, element = by_hand()
    order = worst.argsort(descending=True)[:n]
    assert len(kept) == min(n, 50)
    assert kept.index.tolist() == order.tolist()
    assert kept.element.tolist() == element[order].tolist()
    assert kept.labels == tuple(C4().labels[each] for each in element[order].tolist())
    torch.testing.assert_close(kept.errors, worst[order], rtol=1e-5, atol=1e-7)
    assert kept.target is not None
    assert torch.equal(kept.target, Y[order])
    assert isinstance(kept.inputs, Tensor)
    assert torch.equal(kept.inputs, X[order])
    assert torch.equal(
        kept.moved, torch.stack([C4().act(X[i : i + 1], int(g))[0] for i, g in zip(order, element[order], strict=True)])
    )
    with torch.no_grad():
        torch.testing.assert_close(kept.logits, NETWORK(X[order]))
        torch.testing.assert_close(kept.moved_logits, NETWORK(kept.moved))


def test_the_maps_are_those_of_the_orbit() -> None:
    kept = evaluate_invariance(NETWORK, [(X, Y)], C4(), n=4, **OPTIONS).kept
    assert kept is not None
    outputs = evaluate_orbit(NETWORK, X[kept.index], C4(), saliency=Gradient(), target=Y[kept.index])
    torch.testing.assert_close(kept.saliency, outputs.saliency)
    torch.testing.assert_close(kept.orbit_saliency, outputs.orbit_saliency)
    without = evaluate_invariance(NETWORK, [(X, Y)], C4(), n=4, saliency_samples=0, **OPTIONS).kept
    assert without is not None
    assert without.saliency is None


def test_measures_and_network_are_as_without() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state, results = torch.get_rng_state(), []
    for keep in (None, "worst"):
        results.append(evaluate_invariance(network, [X], C4(), keep=keep, progress=False))
    assert results[0] == results[1]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert results[0].kept is None


def test_outputs_that_move_come_back_and_have_no_maps() -> None:
    """Its forces are equivariant, but for the points of the third sample, which are pulled down."""

    def network(points: Tensor) -> Tensor:
        heavy = torch.zeros(len(points), 1, 1)
        heavy[points[:, 0, 0] > 50] = 1.0
        return -points + heavy * torch.tensor([0.0, 0.0, 2.0])

    points = torch.randn(8, 5, 3)
    points[2, 0, 0] = 100.0
    kept = evaluate_invariance(network, points.split(4), SO3(3), output_action="same", n=1, **OPTIONS).kept
    assert kept is not None
    assert kept.index.tolist() == [2]
    assert kept.saliency is None
    errors = (kept.moved_logits - kept.logits).square().sum(dim=(1, 2)) / 2
    torch.testing.assert_close(kept.errors, errors, rtol=1e-5, atol=1e-5)


def test_several_inputs_padding_and_sizes() -> None:
    """A row keeps its own arguments, whatever its batch held besides."""

    class Weighted(nn.Module):
        def forward(self, x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
            levels = x[:, 0, 0, :1] * weight[:, None] + y[:, 0, 0, :1]
            return torch.cat([levels, -levels], dim=1)

    x, weight = torch.randn(9, 1, 4, 4), torch.linspace(0.1, 2, 9)
    batches = [{"x": x[a:b], "weight": weight[a:b], "y": 0 * x[a:b]} for a, b in ((0, 4), (4, 9))]
    kept = evaluate_invariance(Weighted(), batches, C4(), input=["x"], n=3, **OPTIONS).kept
    assert kept is not None
    # The gradient is in the corner, times the row's own weight; the second logit is explained where it is larger.
    assert isinstance(kept.saliency, Tensor)
    torch.testing.assert_close(kept.saliency[:, 0, 0, 0].abs(), weight[kept.index])
    several = evaluate_invariance(Weighted(), batches, C4(), input=["x", "y"], n=3, **OPTIONS).kept
    assert several is not None
    assert several.saliency is None
    assert torch.equal(several.inputs[0][0], x[several.index[0]])
    assert several.index.tolist() == kept.index.tolist()

    def first_of_set(points: Tensor) -> Tensor:
        return torch.stack([points[:, 0, 0], points[:, -1, 0]], dim=1)

    sets = [torch.randn(3, size, 2) for size in (4, 6)]
    sized = evaluate_invariance(first_of_set, sets, SetPermutations(5), n=6, **OPTIONS).kept
    assert sized is not None
    assert sorted(len(each) for each in sized.inputs) == [4, 4, 4, 6, 6, 6]
    assert all(a.shape == b.shape for a, b in zip(sized.inputs, sized.moved, strict=True))
    assert sized.saliency is not None
    assert [len(each) for each in sized.saliency] == [len(each) for each in sized.inputs]


def test_what_is_not_finite_is_left_out() -> None:
    spoilt = X.clone()
    spoilt[3] = torch.nan
    with pytest.warns(UserWarning, match="1 of 50 samples held NaN"):
        kept = evaluate_invariance(NETWORK, [spoilt], C4(), n=50, **OPTIONS).kept
    assert kept is not None
    assert len(kept) == 49
    assert 3 not in kept.index


def test_the_figure_shows_them(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    kept = evaluate_invariance(NETWORK, [(X, Y)], C4(), n=3, **OPTIONS).kept
    assert kept is not None
    figure = plot_worst(kept, n=2)
    assert len(figure.axes) == 12
    titles = [axes.get_title() for axes in figure.axes[:6]]
    predicted = [int(logits.argmax()) for logits in (kept.logits[0], kept.moved_logits[0])]
    assert titles == [f"x: {predicted[0]}", f"{kept.labels[0]}: {predicted[1]}", *C4().labels]
    shown = torch.as_tensor(figure.axes[1].images[0].get_array())
    torch.testing.assert_close(shown, kept.moved[0][0])
    figure.savefig(tmp_path / "worst.png")
    assert len(plot_worst(evaluate_invariance(NETWORK, [X], C4(), n=3, saliency_samples=0, **OPTIONS).kept).axes) == 6  # type: ignore[arg-type]


def test_a_network_without_gradient_is_refused_before_the_work() -> None:
    seen = []

    def detached(x: Tensor) -> Tensor:
        seen.append(len(x))
        return NETWORK(x.detach())

    with pytest.raises(ValueError, match="to give logits that have a gradient"):
        evaluate_invariance(detached, X.split(5), C4(), measures=["orbit_share"], **OPTIONS)
    assert sum(seen) < 4 * 5 * 2
