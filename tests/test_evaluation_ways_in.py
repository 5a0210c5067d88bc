"""How `evaluate_invariance` calls a network: dicts, several inputs, objects with logits, methods, functions, Fabric."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import Images, made
from lightning.fabric import Fabric
from oracles import logit_term, mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_invariance import (
    C4,
    SO3,
    Gradient,
    HorizontalFlip,
    SetPermutations,
    TimeReversal,
    evaluate_invariance,
)

LI = "logit_invariance_error"
WORST = "worst_case_orbit_accuracy"


def images() -> tuple[Tensor, Tensor]:
    return Images(12).tensors


def perceptron() -> nn.Module:
    return made(mlp)


def by_hand(network: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    with torch.no_grad():
        outputs = torch.stack([network(torch.rot90(x, k, (-2, -1))) for k in range(4)])
    right = (outputs.argmax(-1) == y).all(0)
    return {LI: float(logit_term(outputs[0], outputs[1:])), WORST: float(right.double().mean())}


def measured(network: Any, batches: Any, action: Any = None, **options: Any) -> dict[str, float]:
    results = evaluate_invariance(network, batches, action or C4(), progress=False, **options)
    return {name: float(each.value) for name, each in results.items()}


@dataclass
class Output:
    """An output as some packages give it."""

    logits: Tensor
    features: Tensor


class Takes(nn.Module):
    """One network, to be called in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()


class TakesKeywords(Takes):
    def forward(self, image: Tensor, scale: Tensor | None = None, labels: Tensor | None = None) -> Output:
        assert labels is None or len(labels) == len(image)
        logits = self.inner(image if scale is None else image * scale[:, None, None, None])
        return Output(logits, image)


class TakesAnything(Takes):
    def forward(self, **parts: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(parts["image"])}


class TakesWhole(Takes):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.inner(batch["image"])


class TakesTwo(Takes):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.inner(x * scale[:, None, None, None])


def split(**parts: Any) -> list[dict[str, Any]]:
    return [{name: value[start : start + 5] for name, value in parts.items()} for start in (0, 5, 10)]


def test_dicts_are_keywords_and_labels_are_found_by_name() -> None:
    x, y = images()
    expected = by_hand(perceptron(), x, y)
    for batches in (
        split(image=x, labels=y),
        [UserDict(each) for each in split(image=x, target=y)],
        split(image=x, label=y, index=torch.arange(12)),  # what it does not take is left out
    ):
        found = measured(TakesKeywords(), batches)
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    named = measured(TakesKeywords(), split(image=x, cls=y), target="cls", measures=[LI, WORST])
    assert named == pytest.approx(expected, rel=1e-5)
    scaled = measured(TakesKeywords(), split(image=x, scale=torch.full((12,), 2.0), y=y), measures=[LI, WORST])
    assert scaled == pytest.approx(by_hand(lambda each: perceptron()(2 * each), x, y), rel=1e-5)


def test_a_dict_whose_names_the_network_does_not_know_holds_its_input() -> None:
    x, y = images()
    found = measured(perceptron(), split(picture=x, label=y), measures=[LI, WORST])
    assert found == pytest.approx(by_hand(perceptron(), x, y), rel=1e-5)
    found = measured(perceptron(), split(picture=x, mask=x.flip(0), label=y), input="picture", measures=[LI])
    assert found[LI] == pytest.approx(by_hand(perceptron(), x, y)[LI], rel=1e-5)
    with pytest.raises(ValueError, match=r"several tensors could be meant .*`input=`"):
        measured(perceptron(), split(picture=x, mask=x.flip(0), label=y))


def test_functions_and_methods() -> None:
    x, y = images()
    expected = by_hand(perceptron(), x, y)

    class Estimator(Takes):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("it is another method that is asked for")

        def predict(self, x: Tensor) -> Tensor:
            assert not self.training
            return self.inner(F.dropout(x, 0.5, self.training))

    estimator = Estimator()
    network = perceptron()
    ways: list[tuple[Any, Any]] = [
        (estimator.predict, [(x, y)]),
        (lambda x: network(x), [(x, y)]),
        (lambda **parts: network(parts["image"]), split(image=x, labels=y)),
    ]
    for function, batches in ways:
        assert measured(function, batches, measures=[LI, WORST]) == pytest.approx(expected, rel=1e-5)
    assert estimator.training
    assert estimator.inner.training
    for whole in (TakesAnything(), TakesWhole()):
        assert measured(whole, split(image=x, labels=y), measures=[LI, WORST]) == pytest.approx(expected, rel=1e-5)


def test_several_inputs_and_a_target_in_a_tuple() -> None:
    x, y = images()
    scale = torch.linspace(1, 2, 12)
    twice = lambda each: perceptron()(each * scale[:, None, None, None])  # noqa: E731
    expected = by_hand(twice, x, y)
    for batches in (
        DataLoader(list(zip(x, scale, y, strict=True)), batch_size=5),
        [((x[:5], scale[:5]), y[:5]), ((x[5:], scale[5:]), y[5:])],
    ):
        options = {"target": 2} if isinstance(batches, DataLoader) else {}
        assert measured(TakesTwo(), batches, measures=[LI, WORST], **options) == pytest.approx(expected, rel=1e-5)
    without = measured(TakesTwo(), [(x, scale)], saliency_samples=0)
    assert without[LI] == pytest.approx(expected[LI], rel=1e-5)
    assert WORST not in without
    with pytest.raises(ValueError, match=r"as many parts as `network` takes \(1\), and a target, but got \[a tensor"):
        measured(perceptron(), [(x, scale, x, y)])


class Energies(nn.Module):
    """Of positions and whole-number charges."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 3)

    def forward(self, positions: Tensor, charges: Tensor) -> Tensor:
        order = torch.linspace(0.5, 1.5, charges.shape[1])[:, None]
        return (order * self.inner(torch.cat([positions, charges[..., None].float()], -1)).tanh()).sum(1)


def test_charges_are_no_labels() -> None:
    torch.manual_seed(0)
    positions, charges = torch.randn(4, 4, 3), torch.randint(1, 9, (4, 4))
    network = Energies()
    found = evaluate_invariance(network, [(positions, charges)], SO3(2), measures=[LI], progress=False)
    axes = torch.eye(3)[None]  # whose rows an element takes to the columns of its matrix
    matrices = found.action.orbit(axes)[:, 0].mT
    with torch.no_grad():
        fx = network(positions, charges)
        turned = [network(positions @ matrix.T, charges) for matrix in matrices[1:]]
    assert float(found[LI].value) == pytest.approx(float(logit_term(fx, turned)), rel=1e-5)
    # One charge a sample could pass for a label, but for the network that takes it.
    one = positions[:, :1], charges[:, :1]
    assert set(evaluate_invariance(network, [one], SO3(2), progress=False)) & {"orbit_accuracy", WORST} == set()
    both = evaluate_invariance(network, [(positions, charges)], SetPermutations(2), input=[0, 1], progress=False)
    orders = both.action.orders(4)
    with torch.no_grad():
        moved = [network(positions[:, order], charges[:, order]) for order in orders[1:]]
    assert float(both[LI].value) == pytest.approx(float(logit_term(fx, moved)), rel=1e-5)
    with pytest.warns(UserWarning, match="moves argument 0, but argument 1 of the same places stays"):
        evaluate_invariance(network, [(positions, charges)], SetPermutations(2), progress=False)


def test_logits_are_taken_out_of_any_output() -> None:
    x, y = images()

    class Ensemble(Takes):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.inner(x), self.inner(x / 2)])

    def mean(output: Tensor) -> Tensor:
        return output.reshape(2, -1, 3).mean(0)

    network = perceptron()
    expected = by_hand(lambda each: (network(each) + network(each / 2)) / 2, x, y)
    assert measured(Ensemble(), [(x, y)], logits=mean, measures=[LI, WORST]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_a_network_that_fabric_has_set_up_is_measured_in_its_precision(precision: Any) -> None:
    x, y = images()
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    network = fabric.setup(perceptron())
    found = measured(network, [(x, y)], measures=[LI, "saliency_invariance_similarity"], saliency=Gradient())
    inner = perceptron()

    def maps(image: Tensor) -> tuple[Tensor, Tensor]:
        leaf = image.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
            logits = inner.to(dtype)(leaf.to(dtype)).float()
        return logits, torch.autograd.grad(logits.gather(1, y[:, None]).sum(), leaf)[0]

    turned = [maps(torch.rot90(x, k, (-2, -1))) for k in range(4)]
    fx, base = turned[0]
    cosines = [
        F.cosine_similarity(base.flatten(1), torch.rot90(each, -k, (-2, -1)).flatten(1)).mean()
        for k, (_, each) in enumerate(turned)
        if k
    ]
    error = logit_term(fx.detach(), [logits.detach() for logits, _ in turned[1:]])
    assert found[LI] == pytest.approx(float(error), rel=1e-3)
    assert found["saliency_invariance_similarity"] == pytest.approx(float(sum(cosines) / 3), abs=2e-3)


def test_tokens_of_any_length_with_padding() -> None:
    """A network that knows which tokens are padding, and nothing of their order but a little."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            real = (tokens != 0).float()
            weights = real * torch.linspace(0.5, 1.5, tokens.shape[1])
            return self.head((self.embedding(tokens) * weights[..., None]).sum(1) / real.sum(1, keepdim=True))

    network = Reader()
    tokens = torch.tensor([[3, 4, 5, 6, 0, 0], [7, 8, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    results = evaluate_invariance(
        network, [tokens], SetPermutations(3, dim=-1, padding=0), measures=[LI], progress=False
    )
    ranks = results.action.orders(6).argsort(dim=1)
    moved = []
    for order in ranks[1:]:
        rows = []
        for row in tokens:  # the real tokens, in the order in which the drawn order comes upon their places
            real = int((row != 0).sum())
            rows.append(torch.cat([row[order[:real].argsort()], row[real:]]))
        moved.append(torch.stack(rows))
    with torch.no_grad():
        expected = logit_term(network(tokens), [network(each) for each in moved])
    assert float(results[LI].value) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match=r"for tokens \(B, L\) pass dim=-1"):
        measured(network, [tokens], SetPermutations(3))


def test_a_graph_is_not_cut_for_its_maps() -> None:
    """Edges point at rows that must all be there, so maps are computed for all of them, and those asked for count."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            sent = torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])
            return self.inner((x + sent).tanh())

    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    edges = torch.tensor([[0, 1, 5], [5, 2, 0]])
    network = Graph()
    options = {"measures": ["saliency_invariance_similarity"], "saliency": Gradient(), "saliency_samples": 2}
    found = measured(network, [(x, edges)], TimeReversal(), input=[0], **options)
    maps = []
    for each in (x, x.flip(1)):
        leaf = each.clone().requires_grad_()
        labels = network(x, edges).argmax(1)
        (gradient,) = torch.autograd.grad(network(leaf, edges).gather(1, labels[:, None]).sum(), leaf)
        maps.append(gradient)
    expected = F.cosine_similarity(maps[0], maps[1].flip(1))[:2].mean()
    assert found["saliency_invariance_similarity"] == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match="`max_batch` to be None for a network that takes several tensors"):
        measured(network, [(x, edges)], TimeReversal(), input=[0], max_batch=3)


def test_channels_that_come_last_are_noticed() -> None:
    x = torch.randn(3, 8, 8, 3)
    with pytest.warns(UserWarning, match="looks as if it had its channels last"):
        measured(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), [x], HorizontalFlip())
    with pytest.raises(ValueError, match=r"move channels in front"):
        measured(nn.Flatten(), [x], C4())
