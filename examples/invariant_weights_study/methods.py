"""The ways to a network that are compared, by the names that the tables give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import lightning as L
from torch import nn

from examples.invariant_weights_study.networks import build, steerable
from examples.invariant_weights_study.settings import GROUPS
from examples.paper.methods import MERGED_BY, LateRamp
from lightning_invariance import Action, InvarianceRegularizer, InvariantWeights, OrbitAugmentation
from lightning_invariance.baselines import OrbitPooled


@dataclass(frozen=True)
class Method:
    """How a network is trained.

    Attributes:
        augmented: whether each training image is moved by a random element.
        weight: ν of `InvarianceRegularizer`; 0 for none.
        invariant: the mode of `InvariantWeights`; None for none.
        pull: its constant strength; None for its default.
        late: whether a merge goes by a ramp that closes most of the gap near its end.
        made: the network itself, ``"pooled"`` over the orbit, or escnn's in its place.
        start: the method whose trained network it starts from; fresh weights if None.
        length: how long it trains: as DA; not at all; as a merge; as DA and a merge together; as many epochs of DA as
            last as long as *project*.
        projected: for networks that are not trained any more: whether weights are projected, and channels paired first.
        best: whether the start is DA's best epoch by validation accuracy and not its last.
        rate: the method whose rate it has; its own if None.
    """

    augmented: bool = True
    weight: float = 0.0
    invariant: Literal["project", "merge"] | None = None
    pull: float | None = None
    late: bool = False
    made: Literal["plain", "pooled", "escnn"] = "plain"
    start: str | None = None
    length: Literal["DA", "none", "merge", "DA and merge", "time of project"] = "DA"
    projected: Literal["no", "yes", "matched"] = "no"
    best: bool = False
    rate: str | None = "DA"


PULLS = (1e-4, 1e-3, 1e-2)
WEIGHTS = (0.1, 1.0, 10.0)

METHODS: dict[str, Method] = {
    "DA": Method(rate=None),
    "DA, best epoch": Method(start="DA", length="none", best=True),
    "DA, as many epochs as DA, then merge": Method(length="DA and merge"),
    "DA, as much time as project": Method(length="time of project"),
    **{f"IR, ν = {weight:g}": Method(weight=weight) for weight in WEIGHTS},
    "DA, pooled when it predicts": Method(made="pooled", start="DA", length="none"),
    "pooled": Method(augmented=False, made="pooled", rate=None),
    "escnn, as many parameters": Method(augmented=False, made="escnn", rate=None),
    "escnn, as many channels": Method(augmented=False, made="escnn", rate=None),
    "DA, projected": Method(start="DA", length="none", projected="yes"),
    "DA, matched and projected": Method(start="DA", length="none", projected="matched"),
    "project": Method(augmented=False, invariant="project", rate="project + DA"),
    "project + DA": Method(invariant="project", rate=None),
    "merge": Method(invariant="merge", rate=None),
    "merge, late": Method(invariant="merge", late=True, rate=None),
    "DA, then merge": Method(invariant="merge", start="DA", length="merge"),
    **{f"pull {pull:g}": Method(invariant="project", pull=pull, rate="project + DA") for pull in PULLS},
}

#: In this order: what matters most comes first. Those that start from DA's network stand with it, see `plan`.
FROM_DA = tuple(name for name, method in METHODS.items() if method.start == "DA")


def callbacks_of(method: Method, action: Action, steps: int) -> list[L.Callback]:
    """What a Trainer needs besides, for a training of so many steps."""
    callbacks: list[L.Callback] = [OrbitAugmentation(action)] if method.augmented else []
    if method.weight:
        callbacks.append(InvarianceRegularizer(action, method.weight))
    if method.invariant is not None:
        strength = LateRamp(MERGED_BY * steps) if method.late else method.pull
        callbacks.append(InvariantWeights(action, mode=method.invariant, strength=strength))
    return callbacks


def network_of(name: str, network: str, group: str) -> nn.Module:
    """A network with fresh weights, as the method wants it."""
    made = METHODS[name].made
    plain = steerable(name) if made == "escnn" else build(network, group)
    return OrbitPooled(plain, GROUPS[group]) if made == "pooled" else plain
