"""Any network, made invariant or equivariant by pooling its output over the orbit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_invariance._checks import check_callable
from lightning_invariance._output_action import OutputActions, OutputMotion
from lightning_invariance.actions import Action
from lightning_invariance.baselines._pooling import Pool, check_group, check_pool, pool_over_group
from lightning_invariance.orbit import evaluate_orbit
from lightning_invariance.outputs import OrbitOutputs


class OrbitPooled(nn.Module):
    r"""A network whose output is pooled over the orbit.

    .. math::
        \bar f(x) = \mathrm{pool}_{g \in G} \; \rho(g)^{-1} f(gx)

    Exactly invariant, or equivariant where `output_action` says that the output moves, up to rounding wherever the
    action is exact, whatever the network; it costs |G| forwards.

    Args:
        network: from inputs ``(B, ...)`` to outputs ``(B, ...)``.
        action: the group, all elements listed.
        pool: ``"mean"`` or ``"max"``.
        output_action: :math:`\rho`: how the output moves when the input does, as for `evaluate_orbit`; it stays by
            default. Places that an interpolated motion carries out of the frame are pooled over the poses that see
            them.

    Raises:
        ValueError: if the action's elements are no group, `pool` is unknown, `output_action` has other elements, or
            ``"max"`` goes with one that changes values (the largest of turned components is no vector).

    Example:
        >>> import torch
        >>> from lightning_invariance import C4
        >>> from lightning_invariance.baselines import OrbitPooled
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).double()
        >>> x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
        >>> pooled = OrbitPooled(network, C4())
        >>> torch.allclose(pooled(x), pooled(C4().act(x, 1)), atol=1e-12)
        True
    """

    def __init__(
        self, network: nn.Module, action: Action, pool: Pool = "mean", *, output_action: OutputActions = None
    ) -> None:
        super().__init__()
        check_callable("network", network, "a module")
        check_group(action)
        check_pool(pool)
        self.network = network
        self.action = action
        motion = OutputMotion(output_action, action)
        if pool == "max" and motion.changes_values:
            raise ValueError(
                f"Expected `pool` to be 'mean' with output_action={output_action!r}, which changes values, but got "
                "'max'."
            )
        self.pool: Pool = pool
        self.output_action = output_action

    def forward(self, x: Tensor) -> Any:
        """Shape ``(B, ...)``, pooled over the orbit; a dict of such tensors where `output_action` is one."""
        outputs: Any = evaluate_orbit(self.network, x, self.action, output_action=self.output_action)
        if isinstance(outputs, dict):
            return {name: pooled_outputs(each, self.pool) for name, each in outputs.items()}
        return pooled_outputs(outputs, self.pool)

    def extra_repr(self) -> str:
        output = "" if self.output_action is None else f", output_action={self.output_action!r}"
        return f"action={self.action!r}, pool={self.pool!r}{output}"


def pooled_outputs(outputs: OrbitOutputs, pool: Pool = "mean") -> Tensor:
    """Outputs over an orbit, pooled: each place over the poses that see it, x itself among them."""
    orbit = torch.cat([outputs.logits[None], outputs.orbit_logits])
    if outputs.valid is None:
        return pool_over_group(orbit, pool)
    seen = torch.cat([torch.ones_like(outputs.valid[:1]), outputs.valid])
    if pool == "max":
        return orbit.masked_fill(~seen, -torch.inf).amax(dim=0)
    return torch.where(seen, orbit, 0.0).sum(dim=0) / seen.sum(dim=0)
