"""What measuring every layer costs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.networks import poses, residual18
from benchmarks.pairs import Pair, Setting, clocked, relative_difference
from lightning_invariance import C4, evaluate_layers


def residual_layers(setting: Setting) -> Pair:
    """All layers of ResNet-18, against running it over the orbit and looking at nothing."""
    network = residual18(width=setting.size(64, 4)).to(setting.device).eval()
    side = setting.size(97, 33)
    batches = setting.rand(setting.size(96, 4), 3, side, side).split(setting.size(8, 2))

    def theirs() -> None:
        with torch.no_grad():
            for batch in batches:
                for pose in poses(batch):
                    network(pose)

    def difference() -> float:
        few = [batch[:2] for batch in batches[:2]]
        rows = evaluate_layers(network, few, C4(), progress=False).rows
        outputs = _outputs(network, poses(torch.cat(few)))
        ours = torch.stack([row.invariance.value for row in rows])
        return relative_difference(torch.stack([_share(each) for each in outputs]), ours.to(setting.device))

    return Pair(
        f"evaluate_layers, C4, ResNet-18, {sum(map(len, batches))} images of {side}×{side}",
        "the network over the orbit, nothing measured",
        clocked(lambda: evaluate_layers(network, batches, C4(), progress=False), setting),
        clocked(theirs, setting),
        1.5,
        difference,
        1e-4,
    )


def _outputs(network: nn.Module, orbit: Tensor) -> list[Tensor]:
    """What each layer gives in each pose, ``(|G|, N, ...)``."""
    layers = [each for each in network.modules() if not [*each.children()]]
    seen: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    handles = [layer.register_forward_hook(lambda m, args, out: seen[m].append(out.clone())) for layer in layers]
    with torch.no_grad():
        for pose in orbit:
            network(pose)
    for handle in handles:
        handle.remove()
    return [torch.stack(seen[layer]) for layer in layers]


def _share(orbit: Tensor) -> Tensor:
    """The variance within orbits over all of it."""
    flat = orbit.double().flatten(2)
    means = flat.mean(dim=0)
    within = (flat - means).square().sum(dim=2).mean()
    return within / (within + (means - means.mean(dim=0)).square().sum(dim=1).mean())
