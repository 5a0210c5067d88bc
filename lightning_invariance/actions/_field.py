"""Points and what is attached to them, moved by the same element: fields of vectors and tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_invariance.actions._base import Action, check_drawn_together, check_paired, fresh_together
from lightning_invariance.actions._motion_sizes import MotionSizes


class FieldAction(Action):
    r"""Moves points by one action and what is attached to them by another, with the same element.

    .. math::
        (g f)(p) = \rho(g)\, f(g^{-1} p)

    (Weiler and Cesa, 2019.) Unlike a product (``*``), which has every pair of elements, element ``i`` is the pair of
    both actions' elements ``i``. `fibres` acts last. A field of vectors on the plane has its pixels turned and its
    vectors too; the stress of a molecule, :math:`R S R^\top`, is turned by the same rotation in both of its dimensions.

    Args:
        points: where the values lie.
        fibres: the values themselves, as many elements; where both are drawn, their draws are to be the same.

    Raises:
        ValueError: if one is no action, they have not as many elements, or both have labels and these differ.

    Example:
        >>> import torch
        >>> from lightning_invariance import SO3, FieldAction
        >>> stress = torch.randn(5, 3, 3)
        >>> rotation = SO3(samples=4)
        >>> action = FieldAction(SO3(samples=4, dim=-2), SO3(samples=4, dim=-1))
        >>> matrix = rotation.act(torch.eye(3)[None], 2)[0].T  # rows are turned basis vectors
        >>> torch.allclose(action.act(stress, 2), matrix @ stress @ matrix.T, atol=1e-5)
        True
    """

    def __init__(self, points: Action, fibres: Action) -> None:
        for name, part in (("points", points), ("fibres", fibres)):
            if not isinstance(part, Action):
                raise ValueError(f"Expected `{name}` to be an Action, such as C4(), but got {part!r}.")
        check_paired("fibres", fibres, points, "points")
        self.points = points
        self.fibres = fibres

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.points.exact and self.fibres.exact

    def __len__(self) -> int:
        return len(self.points)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.points.labels

    def motion_sizes(self, x: Tensor) -> MotionSizes | None:
        """Those of the points; see `Action.motion_sizes`."""
        return self.points.motion_sizes(x)

    @property
    def dims(self) -> tuple[int, ...] | None:
        if self.points.dims is None or self.fibres.dims is None:
            return None
        return tuple(sorted({*self.points.dims, *self.fibres.dims}))

    @property
    def places(self) -> tuple[int, ...] | None:
        if self.points.places is None or self.fibres.places is None:
            return None
        return tuple(sorted({*self.points.places, *self.fibres.places}))

    @property
    def cayley_table(self) -> Tensor | None:
        return self.points.cayley_table

    @property
    def drawn(self) -> bool:
        return self.points.drawn or self.fibres.drawn

    def _redraw(self, seed: int, samples: int | None) -> Action:
        check_drawn_together("fibres", self.fibres, self.points)
        return FieldAction(self.points.redrawn(seed, samples), self.fibres.redrawn(seed, samples))

    def fresh(self, n: int, generator: torch.Generator | None = None) -> tuple[Action, Tensor]:
        """The same fresh elements of both actions; see `Action.fresh`."""
        if not self.drawn:
            return super().fresh(n, generator)
        points, fibres, index = fresh_together(self.points, self.fibres, n, generator)
        return FieldAction(points, fibres), index

    def attached(self, x: Tensor) -> Action:
        """Both actions as they act on what is attached to `x`; see `Action.attached`."""
        return self._of(self.points.attached(x), self.fibres.attached(x))

    def in_view(self, x: Tensor, element: int) -> Tensor | None:
        """The places that both leave in view; see `Action.in_view`."""
        points, fibres = self.points.in_view(x, element), self.fibres.in_view(x, element)
        if points is None or fibres is None:
            return points if fibres is None else fibres
        return points & fibres

    def _of(self, points: Action, fibres: Action) -> Action:
        return self if points is self.points and fibres is self.fibres else FieldAction(points, fibres)

    def check(self, x: Tensor) -> None:
        self.points.check(x)
        self.fibres.check(x)

    def verify(self, x: Tensor) -> None:
        """Verifies both actions, each on its own; see `Action.verify`."""
        self.points.verify(x)
        self.fibres.verify(x)

    def _act_one(self, x: Tensor, element: int) -> Tensor:
        return self.fibres.act(self.points.act(x, element), element)

    def _invert_one(self, x: Tensor, element: int) -> Tensor:
        return self.points.invert(self.fibres.invert(x, element), element)

    def _act_each(self, x: Tensor, index: Tensor) -> Tensor:
        return self.fibres.act(self.points.act(x, index), index)

    def _invert_each(self, x: Tensor, index: Tensor) -> Tensor:
        return self.points.invert(self.fibres.invert(x, index), index)

    def _arguments(self) -> dict[str, object]:
        return {"points": self.points, "fibres": self.fibres}
