"""What the tests of equivariance share: motions and measures written out by hand, small modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from helpers import made, trainer_for
from lightning.pytorch import Callback, LightningModule
from oracles import distance
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_invariance import InvarianceMonitor
from lightning_invariance.callbacks import MonitorRecord

IGNORED = -100

# Motions by hand ------------------------------------------------------------------------------------------------------


def placed(x: Tensor, g: int) -> Tensor:
    """Element 4 f + r of the square's symmetries: f flips of left and right, then r turns."""
    return torch.rot90(x.flip(-1) if g >= 4 else x, g % 4, (-2, -1))


def replaced(y: Tensor, g: int) -> Tensor:
    """Its inverse."""
    y = torch.rot90(y, -(g % 4), (-2, -1))
    return y.flip(-1) if g >= 4 else y


def turn(degrees: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Counter-clockwise on the screen, of (right, down)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (cos, sin), (-sin, cos)


def quarter_turns() -> Tensor:
    """The matrices of C4 on vectors (right, down), by whole numbers."""
    return torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [-1, 0]], [[-1, 0], [0, -1]], [[0, -1], [1, 0]]])


def pixels(height: int, width: int) -> Iterator[tuple[int, int, float, float]]:
    """Row, column, and both from the centre: right, down."""
    for row in range(height):
        for column in range(width):
            yield row, column, column - (width - 1) / 2, row - (height - 1) / 2


def carried(height: int, width: int, matrix: Sequence[Sequence[float]]) -> Iterator[tuple[int, int, float, float]]:
    """Where the matrix takes each pixel: its row, its column, and the row and column there."""
    (a, b), (c, d) = matrix
    for row, column, u, v in pixels(height, width):
        yield row, column, c * u + d * v + (height - 1) / 2, a * u + b * v + (width - 1) / 2


def in_frame(height: int, width: int, matrix: Sequence[Sequence[float]]) -> Tensor:
    """The pixels whose centres stay among the centres of the frame."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    for row, column, i, j in carried(height, width, matrix):
        mask[row, column] = -1e-6 < i < height - 1 + 1e-6 and -1e-6 < j < width - 1 + 1e-6
    return mask


def read_bilinear(x: Tensor, matrix: Sequence[Sequence[float]]) -> Tensor:
    """Each pixel of the last two dimensions is read where the matrix takes it; 0 outside."""
    weights = _weights(*x.shape[-2:], tuple(map(tuple, matrix))).to(x.dtype)
    return torch.einsum("rckm,...km->...rc", weights, x)


@lru_cache
def _weights(height: int, width: int, matrix: Sequence[Sequence[float]]) -> Tensor:
    weights = torch.zeros(height, width, height, width, dtype=torch.float64)
    for row, column, i, j in carried(height, width, matrix):
        for k in range(height):
            for m in range(width):
                weights[row, column, k, m] = max(0.0, 1 - abs(i - k)) * max(0.0, 1 - abs(j - m))
    return weights


def read_nearest(x: Tensor, matrix: Sequence[Sequence[float]], fill: int) -> Tensor:
    height, width = x.shape[-2:]
    out = torch.full_like(x, fill)
    for row, column, i, j in carried(height, width, matrix):
        if 0 <= round(i) < height and 0 <= round(j) < width:
            out[..., row, column] = x[..., round(i), round(j)]
    return out


def rotations(count: int, seed: int = 0) -> Tensor:
    """The identity and random rotations of space, float64."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))
    return torch.cat([torch.eye(3, dtype=torch.float64)[None], q * torch.linalg.det(q)[:, None, None]])


# Measures by hand -----------------------------------------------------------------------------------------------------


def _softmax(scores: Sequence[float]) -> list[float]:
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return [each / sum(exponentials) for each in exponentials]


def _kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def pixel_measures(logits: Tensor, orbit: Tensor, target: Tensor, valid: Tensor | None = None) -> dict[str, float]:
    """The means over samples, place by place: `valid` is (|G| - 1, H, W); all samples have valid, labelled places."""
    elements, samples, classes, height, width = orbit.shape
    valid = torch.ones(elements, height, width, dtype=torch.bool) if valid is None else valid
    places = [(i, j) for i in range(height) for j in range(width)]
    found: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value)

    for b in range(samples):
        base = {p: logits[b, :, p[0], p[1]].tolist() for p in places}
        poses = [{p: orbit[g, b, :, p[0], p[1]].tolist() for p in places if valid[g][p]} for g in range(elements)]
        named = [p for p in places if 0 <= int(target[b][p]) < classes]
        top = {p: base[p].index(max(base[p])) for p in places}
        pairs: dict[str, list[float]] = {}
        for pose in poses:
            tops = {p: scores.index(max(scores)) for p, scores in pose.items()}
            squares = sum((a - c) ** 2 for p in pose for a, c in zip(base[p], pose[p], strict=True))
            size = sum(a**2 for p in pose for a in base[p])
            overlaps = []
            for label in range(classes):
                one, other = {p for p in pose if top[p] == label}, {p for p in pose if tops[p] == label}
                overlaps += [len(one & other) / len(one | other)] if one | other else []
            for name, value in {
                "logit_invariance_error": squares / 2,
                "normalized_logit_invariance_error": squares / size,
                "relative_equivariance_error": math.sqrt(squares / size),
                "distribution_invariance_error": _mean([_kl(_softmax(base[p]), _softmax(pose[p])) for p in pose]),
                "prediction_consistency": _mean([float(top[p] == tops[p]) for p in pose]),
                "orbit_accuracy": _mean([float(tops[p] == int(target[b][p])) for p in named if p in pose]),
                "orbit_mean_iou": _mean(overlaps),
            }.items():
                pairs.setdefault(name, []).append(value)
        js = []
        for p in places:
            seen = [_softmax(scores[p]) for scores in (base, *poses) if p in scores]
            mixed = [_mean(column) for column in zip(*seen, strict=True)]
            js += [_mean([_kl(each, mixed) for each in seen])] if len(seen) > 1 else []
        worst = [
            all(pose[p].index(max(pose[p])) == int(target[b][p]) for pose in (base, *poses) if p in pose) for p in named
        ]
        note(
            jensen_shannon_invariance_error=_mean(js), worst_case_orbit_accuracy=_mean([float(each) for each in worst])
        )
        note(**{name: _mean(values) for name, values in pairs.items()})
    return {name: _mean(values) for name, values in found.items()}


# Modules and runs -----------------------------------------------------------------------------------------------------


def symmetric_conv(channels: int, out: int, **options: Any) -> nn.Conv2d:
    """A convolution whose kernels have the square's symmetries."""
    conv = nn.Conv2d(channels, out, 3, **{"padding": 1, **options})
    kernel = conv.weight.data.double()  # in which sums of single precision are exact
    conv.weight.data = (sum(placed(kernel, g) for g in range(8)) / 8).float()
    return conv


def conv_net(**options: Any) -> nn.Module:
    """Three scores a pixel, equivariant to nothing but shifts."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1))


class PairPotential(nn.Module):
    """The energy is the sum of exp(-r²) over all pairs; a constant field of forces can be added."""

    def __init__(self, field: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.field = field

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        edges = x[:, :, None] - x[:, None]
        weights = self.scale * torch.exp(-edges.square().sum(-1))
        pulls = 2 * edges * weights[..., None]
        forces = pulls.sum(2) + self.field * x.new_tensor([0.0, 0.0, 1.0])
        stress = torch.einsum("bnmi,bnmj->bij", pulls, edges)
        return {"energy": weights.sum((1, 2)), "forces": forces, "stress": stress}


class Module(LightningModule):
    """A network with a loss on its output; labels -100 are ignored."""

    def __init__(self, network: nn.Module, loss: Callable[[Any, Any], Tensor] | None = None) -> None:
        super().__init__()
        self.network = network
        self.loss = loss or (lambda output, y: F.cross_entropy(output, y))

    def forward(self, x: Tensor) -> Any:
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def masks(count: int = 8, side: int = 6, seed: int = 0) -> TensorDataset:
    """Images with masks of three classes, some places of which are to be ignored."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, side, side, generator=generator)
    y = torch.randint(3, (count, side, side), generator=generator)
    y[torch.rand(y.shape, generator=generator) < 0.2] = IGNORED
    return TensorDataset(x, y)


def points(count: int = 4) -> Tensor:
    return torch.randn(count, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def batches(data: Any, size: int = 4) -> DataLoader[Any]:
    return DataLoader(data, batch_size=size)


def trained(network: Callable[[], nn.Module], callbacks: Sequence[Callback], data: Any, **options: Any) -> Module:
    loss = options.pop("loss", None)
    module: Module = made(lambda: Module(network(), loss))
    trainer_for(callbacks, **{"max_epochs": 2, **options}).fit(module, batches(data))
    return module


def trained_by_hand(
    network: Callable[[], nn.Module],
    data: Any,
    term: Callable[[nn.Module, Any, Tensor], Tensor],
    weight: float,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
) -> nn.Module:
    """The same two epochs, with the term of the network, f(x) and x written into the loop."""
    net: nn.Module = made(network)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        for x, y in batches(data):
            optimizer.zero_grad()
            output = net(x)
            (loss(output, y) + weight * term(net, output, x)).backward()
            optimizer.step()
    return net


def assert_same_steps(got: nn.Module, expected: nn.Module, start: Callable[[], nn.Module], unlike: nn.Module) -> None:
    assert distance(got, expected) < 1e-6
    assert distance(expected, made(start)) > 1e-2
    assert distance(expected, unlike) > 1e-3
    for buffer, other in zip(got.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=0, atol=1e-6)


def monitored(
    network: nn.Module, monitor: InvarianceMonitor, data: Any, loss: Any = None, size: int = 4
) -> MonitorRecord:
    trainer_for([monitor]).validate(Module(network, loss), batches(data, size), verbose=False)
    return monitor.history[-1]


def values(measures: Any) -> dict[str, float]:
    return {name: float(estimate.value) for name, estimate in measures.items()}
