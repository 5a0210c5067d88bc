"""The paper's weight-tied network: a multilayer perceptron whose first layer is tied over the group."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from lightning_invariance._checks import check_count, check_iterable
from lightning_invariance.actions import Action
from lightning_invariance.baselines._pooling import Pool, check_group, check_pool, pool_over_group


class TiedFirstLayerMLP(nn.Module):
    r"""A multilayer perceptron, weight-tied over a group in its first layer: the paper's WT.

    .. math::
        h_1(x) = \mathrm{pool}_{g \in G} \; \mathrm{ReLU}(W_1 \, gx + b_1)

    (Moskalev et al., 2023, section 4.1.) The rows of the first layer's tied weight are those of :math:`W_1`, moved by
    every element; pooling over them makes everything behind it exactly invariant. The paper does not name the pooling;
    the maximum is the default here. With weights ``hidden=(128,) * 5`` it has as many parameters as the paper's untied
    network.

    Args:
        action: the group, exact and with all elements listed (`C4`, `CyclicTranslations`, ...).
        in_shape: the shape of one sample, ``(1, 36, 36)`` for instance.
        num_classes: the number of logits.
        hidden: the widths of the hidden layers, the tied one first.
        pool: ``"max"`` or ``"mean"``.

    Raises:
        ValueError: if the action is not exact, its elements are no group, it cannot act on `in_shape`, or another
            argument has a wrong type or value.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4
        >>> from lightning_invariance.baselines import TiedFirstLayerMLP
        >>> network = TiedFirstLayerMLP(C4(), (1, 36, 36), num_classes=9)
        >>> sum(parameter.numel() for parameter in network.parameters())
        233225
        >>> x = torch.randn(2, 1, 36, 36)
        >>> torch.allclose(network(x), network(C4().act(x, 3)), atol=1e-5)
        True
    """

    def __init__(
        self,
        action: Action,
        in_shape: Sequence[int],
        num_classes: int,
        hidden: Sequence[int] = (128,) * 5,
        pool: Pool = "max",
    ) -> None:
        super().__init__()
        check_group(action)
        if not action.exact:
            raise ValueError(f"Expected `action` to be exact, so that the tied layer is invariant, but got {action!r}.")
        check_pool(pool)
        check_count("num_classes", num_classes)
        check_iterable("in_shape", in_shape, "the sizes of one sample")
        for size in in_shape:
            check_count("in_shape", size)
        check_iterable("hidden", () if hidden is None else hidden, "widths of layers")
        if not hidden:
            raise ValueError("Expected `hidden` to hold at least the width of the tied layer but got none.")
        for width in hidden:
            check_count("hidden", width)
        action.check(torch.empty(1, *in_shape, device="meta"))
        self.action = action
        self.in_shape = tuple(in_shape)
        self.pool: Pool = pool
        self.tied = nn.Linear(prod(in_shape), hidden[0])
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(hidden):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(hidden[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape ``(B, num_classes)``."""
        self.action.check(x)
        if x.shape[1:] != self.in_shape or not x.is_floating_point():
            raise ValueError(
                f"Expected `x` to be floating point of shape (B, {', '.join(map(str, self.in_shape))}) but got "
                f"{tuple(x.shape)} of {x.dtype}."
            )
        features = self.tied(self.action.orbit(x).flatten(2)).relu()
        logits: Tensor = self.head(pool_over_group(features, self.pool))
        return logits

    def extra_repr(self) -> str:
        return f"action={self.action!r}, pool={self.pool!r}"
