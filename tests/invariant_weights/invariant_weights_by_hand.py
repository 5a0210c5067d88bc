"""What `InvariantWeights` is held against: how C4 moves the weights of a few networks, and trainings, written by hand.

Nothing of the package is used here but for the order of the channels that a merge begins with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from helpers import CLASSES, fit, loader, made
from oracles import Classifier
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import C4, symmetrize

#: Of the images.
SIDE = 6

#: How a quarter turn moves each weight: the sizes that it is viewed in, and what becomes of each of these dimensions:
#: "." stays, "r" is shifted cyclically in each field of four channels, "xx" are places of a grid that is turned.
Layout = dict[str, tuple[tuple[int, ...], str]]


# Networks --------------------------------------------------------------------------------------------------------


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 2),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, CLASSES),
    )


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, CLASSES)
    )


class Tied(nn.Module):
    """Two layers share a weight, and each has a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(SIDE * SIDE, 16), nn.Linear(16, CLASSES)
        self.one, self.other = nn.Linear(16, 16), nn.Linear(16, 16)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.other(torch.tanh(self.one(torch.tanh(self.first(x.flatten(1))))))))


class Both(nn.Module):
    """Two networks, whose logits are added."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = mlp(), mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(x)


def maps() -> nn.Module:
    """A class for each place."""
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, CLASSES, 3, padding=1))


FIELD = ((8,), "r")
OF_MLP: Layout = {
    "1.weight": ((16, SIDE, SIDE), "rxx"),
    "1.bias": ((16,), "r"),
    "3.weight": ((16, 16), "rr"),
    "3.bias": ((16,), "r"),
    "5.weight": ((CLASSES, 16), ".r"),
}
LAYOUTS: dict[Callable[[], nn.Module], Layout] = {
    cnn: {
        "0.weight": ((8, 1, 3, 3), "r.xx"),
        "0.bias": FIELD,
        **{f"1.{name}": FIELD for name in ("weight", "bias", "running_mean", "running_var")},
        "4.weight": ((8, 8, 2, 2), "rrxx"),
        "4.bias": FIELD,
        "6.weight": ((CLASSES, 8, 2, 2), ".rxx"),
    },
    mlp: OF_MLP,
    Tied: {
        "first.weight": ((16, SIDE, SIDE), "rxx"),
        "first.bias": ((16,), "r"),
        "one.weight": ((16, 16), "rr"),
        "one.bias": ((16,), "r"),
        "other.bias": ((16,), "r"),
        "head.weight": ((CLASSES, 16), ".r"),
    },
    Both: {f"{network}.{name}": row for network in ("one", "other") for name, row in OF_MLP.items()},
    maps: {
        "0.weight": ((16, 1, 3, 3), "r.xx"),
        "0.bias": ((16,), "r"),
        "2.weight": ((CLASSES, 16, 3, 3), ".rxx"),
    },
}


# The group -------------------------------------------------------------------------------------------------------


def moved(tensor: Tensor, row: tuple[tuple[int, ...], str], turns: int) -> Tensor:
    r"""What quarter turns make of a weight: (gK)[o, r; i, s] = rot_g K[o, r - g; i, s - g], channel = 4 · field + r."""
    sizes, kinds = row
    view = tensor.reshape(sizes)
    for dim, kind in enumerate(kinds):
        if kind == "r":
            view = view.unflatten(dim, (-1, 4)).roll(turns, dim + 1).flatten(dim, dim + 1)
    if "xx" in kinds:
        view = torch.rot90(view, turns, (-2, -1))
    return view.reshape(tensor.shape)


def mean(tensor: Tensor, row: tuple[tuple[int, ...], str]) -> Tensor:
    """P w, the mean over the four turns; sums are double, so that those of one orbit are rounded alike."""
    wide = tensor.detach().double()
    total = torch.zeros_like(wide)
    for turns in range(4):
        total = total + moved(wide, row, turns)
    return (total / 4).to(tensor.dtype)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics by name, themselves."""
    named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: value for name, value in named.items() if value.is_floating_point()}


def asymmetry(network: nn.Module, layout: Layout) -> float:
    """‖w - P w‖ / ‖w‖, of the parameters."""
    apart, whole = 0.0, 0.0
    for name, parameter in network.named_parameters():
        value = parameter.detach().double()
        whole += float(value.square().sum())
        if name in layout:
            apart += float((value - mean(value, layout[name])).square().sum())
    return (apart / whole) ** 0.5


def variation(network: nn.Module, back: Callable[[Tensor, int], Tensor] = lambda fx, turns: fx) -> float:
    """How far f(gx), brought back, is from f(x), relative to the largest output, in double precision."""
    network = copy.deepcopy(network).double().eval()
    x = torch.randn(5, 1, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        fx = network(x)
        apart = [back(network(torch.rot90(x, turns, (-2, -1))), turns) - fx for turns in (1, 2, 3)]
    return float(torch.stack(apart).abs().max() / fx.abs().max())


# Training --------------------------------------------------------------------------------------------------------


def sgd(parameters: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, eps=1e-3)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, eps=1e-3, weight_decay=0.3)


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)


class Trained(Classifier):
    """An ordinary module, for a Trainer."""

    def __init__(self, network: Callable[[], nn.Module] = cnn, optimizer: Callable[..., Any] = sgd) -> None:
        super().__init__(network)
        self.optimizer = optimizer

    def configure_optimizers(self) -> Any:
        return self.optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)


@torch.no_grad()
def start(network: nn.Module, layout: Layout) -> None:
    """Invariant parameters, each with the norm that it had."""
    for name, parameter in network.named_parameters():
        before = parameter.norm()
        if name in layout and before > 0:
            parameter.copy_(mean(parameter, layout[name]))
            parameter.mul_(before / parameter.norm())


@torch.no_grad()
def pull(network: nn.Module, layout: Layout, strength: float) -> None:
    """w <- w - a (w - P w), of running statistics too."""
    for name, value in weights_of(network).items():
        if name in layout:
            value -= strength * (value - mean(value, layout[name]))


def project_gradients(network: nn.Module, layout: Layout) -> None:
    for name, parameter in network.named_parameters():
        if name in layout and parameter.grad is not None:
            parameter.grad.copy_(mean(parameter.grad, layout[name]))


@dataclass(frozen=True)
class ByHand:
    """A training without a Trainer.

    Attributes:
        network: of `LAYOUTS`.
        optimizer: from parameters to one.
        mode: "project", "merge", or "plain", which knows of no group.
        strength: of the pull, from the number of steps taken, this one included; None without one.
        begin: what becomes of the network before anything else.
        count: of samples.
        processes: that each have a part of them.
        epochs: how often they are seen.
        accumulate: over how many batches gradients are averaged.
        clip: what becomes of gradients before a step.
        precision: as a Trainer calls it.
        scaler: of gradients in half precision.
        after: is called after each step.
        estimates: whether running statistics are those of a pass over the data at the end.
    """

    network: Callable[[], nn.Module] = cnn
    optimizer: Callable[..., Any] = sgd
    mode: str = "project"
    strength: Callable[[int], float] | None = None
    begin: Callable[[nn.Module], Any] = lambda network: None
    count: int = 12
    processes: int = 1
    epochs: int = 2
    accumulate: int = 1
    clip: Callable[[list[nn.Parameter]], Any] = lambda parameters: None
    precision: str = "32-true"
    scaler: Any = None
    after: Callable[[nn.Module], Any] = lambda network: None
    estimates: bool = True

    @property
    def layout(self) -> Layout:
        return {} if self.mode == "plain" else LAYOUTS[self.network]

    def plain(self) -> nn.Module:
        """Trained without a word of the group."""
        scaler = None if self.scaler is None else type(self.scaler)()
        return replace(self, mode="plain", strength=None, scaler=scaler, after=lambda network: None).run()

    def by_trainer(self, callbacks: Sequence[Any], kind: type[Any] = Trained, **options: Any) -> Any:
        """The module that a Trainer gives."""
        settings = {"data": loader(self.count, side=SIDE), "precision": self.precision, "max_epochs": self.epochs}
        if self.accumulate > 1:
            settings["accumulate_grad_batches"] = self.accumulate
        return fit(lambda: kind(self.network, self.optimizer), callbacks, **{**settings, **options})

    def run(self) -> nn.Module:
        """The network, trained."""
        network = made(self.network)
        self.begin(network)
        network.to({"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(self.precision, torch.float32))
        if self.mode == "project":
            start(network, self.layout)
        optimizer = self.optimizer(parameter for parameter in network.parameters() if parameter.requires_grad)
        steps = 0
        for place, shards in enumerate(self.batches() * self.epochs):
            due = (place + 1) % self.accumulate == 0
            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.step(lambda shards=shards: self.gradients(network, optimizer, shards, True, True))
            else:
                self.gradients(network, optimizer, shards, place % self.accumulate == 0, due)
                if due and self.scaler is None:
                    optimizer.step()
                elif due:
                    self.scaler.step(optimizer)
                    self.scaler.update()
            if due:
                steps += 1
                if self.strength is not None:
                    pull(network, self.layout, self.strength(steps))
                self.after(network)
        if self.strength is None or self.strength(steps) == 1.0:
            self.end(network)
        return network

    def batches(self) -> list[list[tuple[Tensor, Tensor]]]:
        """For each batch the shards of the processes."""
        x, y = (torch.stack(parts) for parts in zip(*loader(self.count, side=SIDE).dataset, strict=True))
        shards = [
            (x[rank :: self.processes].split(4), y[rank :: self.processes].split(4)) for rank in range(self.processes)
        ]
        return [[(images[n], labels[n]) for images, labels in shards] for n in range(len(shards[0][0]))]

    def gradients(self, network: nn.Module, optimizer: Any, shards: Any, first: bool, due: bool) -> Tensor:
        """Those of a batch, as the optimiser sees them if a step is due; and the loss."""
        if first:
            optimizer.zero_grad()
        loss = torch.stack([self.loss(network, x, y) for x, y in shards]).mean()
        scaled = loss / self.accumulate
        (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
        if due:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            if self.mode == "project" and self.strength is None:
                project_gradients(network, self.layout)
            self.clip(optimizer.param_groups[0]["params"])
        return loss

    def loss(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with self.autocast():
            return F.cross_entropy(network(x.to(next(network.parameters()).dtype)), y)

    def autocast(self) -> Any:
        halves = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        return torch.autocast("cpu", halves[self.precision]) if self.precision in halves else nullcontext()

    @torch.no_grad()
    def end(self, network: nn.Module) -> None:
        """Exact weights, and running statistics that are the means of those of all batches, projected."""
        pull(network, self.layout, 1.0)
        if self.network is not cnn or self.mode == "plain" or not self.estimates:
            return
        means, variances = [], []
        for x, _ in (shard for shards in self.batches() for shard in shards):
            with self.autocast():
                z = network[0](x.to(network[0].weight.dtype))
            z = z.to(network[1].running_mean.dtype).transpose(0, 1).flatten(1)
            means.append(z.mean(dim=1))
            variances.append(z.var(dim=1))
        network[1].running_mean.copy_(mean(torch.stack(means).mean(dim=0), FIELD))
        network[1].running_var.copy_(mean(torch.stack(variances).mean(dim=0), FIELD))


def matched(network: nn.Module, output: str | None = None) -> None:
    """The order that a merge begins with: `test_matching` says which."""
    symmetrize(network, C4(), torch.zeros(2, 1, SIDE, SIDE), output_action=output).match_()


def ramp(steps: int) -> Callable[[int], float]:
    """From 0 to 1 in so many steps."""
    return lambda step: min(1.0, step / steps)


# Comparing -------------------------------------------------------------------------------------------------------


def apart(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of parameters and running statistics."""
    pairs = zip(weights_of(one).values(), weights_of(other).values(), strict=True)
    return max(float((a.detach().double() - b.detach().double()).abs().max()) for a, b in pairs)


def assert_as_by_hand(network: nn.Module, hand: ByHand, tolerance: float = 1e-6, invariant: bool = True) -> None:
    """It was trained as by hand, which is not how it would have been without, and is exactly invariant, or is not."""
    expected = hand.run()
    assert apart(network, expected) < tolerance
    assert apart(expected, hand.plain()) > 1000 * tolerance
    assert variation(network) < 1e-12 if invariant else variation(network) > 1e-3
