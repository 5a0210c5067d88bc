"""Any network, made invariant by pooling its output over the orbit."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_invariance._checks import check_callable
from lightning_invariance.actions import Action
from lightning_invariance.baselines._pooling import Pool, check_group, check_pool, pool_over_group


class OrbitPooled(nn.Module):
    r"""A network whose output is pooled over the orbit: :math:`\bar f(x) = \mathrm{pool}_{g \in G} f(gx)`.

    Exactly invariant up to rounding wherever the action is exact, whatever the network; it costs |G| forwards.

    Args:
        network: from inputs ``(B, ...)`` to outputs ``(B, ...)``.
        action: the group, all elements listed.
        pool: ``"mean"`` or ``"max"``.

    Raises:
        ValueError: if the action's elements are no group, or `pool` is unknown.

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

    def __init__(self, network: nn.Module, action: Action, pool: Pool = "mean") -> None:
        super().__init__()
        check_callable("network", network, "a module")
        check_group(action)
        check_pool(pool)
        self.network = network
        self.action = action
        self.pool: Pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(B, ...)``, pooled over the orbit."""
        orbit = self.action.orbit(x)
        outputs: Any = self.network(orbit.flatten(0, 1))
        rows = orbit.shape[0] * orbit.shape[1]
        if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != rows:
            got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"Expected `network` to give a tensor of {rows} rows, one a sample, but got {got}.")
        return pool_over_group(outputs.unflatten(0, orbit.shape[:2]), self.pool)

    def extra_repr(self) -> str:
        return f"action={self.action!r}, pool={self.pool!r}"
