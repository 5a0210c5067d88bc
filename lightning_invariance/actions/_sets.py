"""The orders of a set's elements, where all sets are as long, or padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod
from numbers import Integral

import torch
from torch import Tensor

from lightning_invariance._checks import check_count, check_seed, is_number
from lightning_invariance.actions._base import Action, check_batch
from lightning_invariance.actions._permutation import PermutationAction


class SetPermutations(PermutationAction):
    """The identity and `samples` drawn orders of a set's elements, shape ``(B, ..., set, features)``.

    The symmetric group is far too large to list, so it is sampled: the drawn orders depend on `seed` and on the size of
    the set alone. Exact bit for bit.

    With `padding`, a place of the set is padding where all that a sample holds there equals that number: in ``(B, set,
    features)`` all features of the element. Padding stays in its place, and the other elements are exchanged among
    themselves, by the drawn order of all places restricted to theirs. So an order still depends on `seed`, the padded
    size and the sample's own padding alone. An element that equals the padding cannot be told from it.

    Args:
        samples: how many orders are drawn besides the identity.
        seed: of the draw.
        dim: the dimension of the set, counted from the end (negative): -1 for tokens ``(B, set)``.
        padding: the number that sets are padded with, or None where all their elements count.

    Raises:
        ValueError: if `samples` is no integer of at least 1, `dim` is not negative, or `padding` is no number.

    Example:
        >>> import torch
        >>> from lightning_invariance import SetPermutations
        >>> points = torch.randn(2, 100, 3)
        >>> SetPermutations(samples=5).orbit(points).shape
        torch.Size([6, 2, 100, 3])

        Tokens, padded with 0:

        >>> tokens = torch.tensor([[7, 8, 9, 0, 0], [3, 4, 5, 6, 0]])
        >>> action = SetPermutations(samples=5, dim=-1, padding=0)
        >>> moved = action.act(tokens, 2)
        >>> torch.equal(moved == 0, tokens == 0), torch.equal(action.invert(moved, 2), tokens)
        (True, True)
    """

    def __init__(self, samples: int, seed: int = 0, *, dim: int = -2, padding: float | None = None) -> None:
        check_count("samples", samples)
        check_seed("seed", seed)
        if not isinstance(dim, int) or dim >= 0:
            raise ValueError(f"Expected `dim` to be negative (counted from the end) but got {dim!r}.")
        if padding is not None and (not is_number(padding) or padding != padding):
            raise ValueError(f"Expected `padding` to be a number, not NaN, or None but got {padding!r}.")
        self.samples = samples
        self.seed = seed
        self.dim = dim
        self.padding = int(padding) if isinstance(padding, Integral) else None if padding is None else float(padding)

    def __len__(self) -> int:
        return self.samples + 1

    @property
    def labels(self) -> tuple[str, ...]:
        return ("identity", *(f"order{index}" for index in range(1, len(self))))

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.dim,)

    @cached_property
    def cayley_table(self) -> None:
        return None

    @property
    def drawn(self) -> bool:
        return True

    def _redraw(self, seed: int, samples: int | None) -> Action:
        return SetPermutations(samples or self.samples, seed, dim=self.dim, padding=self.padding)

    def attached(self, x: Tensor) -> Action:
        """The action held by the padding of `x`, where there is a `padding`; see `Action.attached`."""
        self.check(x)
        return self if self.padding is None else self._held_by(x, self.dim)

    def alongside(self, x: Tensor, other: Tensor) -> Action:
        """The action on a tensor with the same set, in the same dimension from the front; see `Action.alongside`."""
        self.check(x)
        dim = _same_dim(self, x, other, self.dim)
        if self.padding is not None:
            return self._held_by(x, dim)
        return self if dim == self.dim else SetPermutations(self.samples, self.seed, dim=dim)

    def index_table(self, sizes: tuple[int, ...]) -> Tensor:
        """The drawn orders, for sets without padding; see `PermutationAction.index_table`."""
        length, features = sizes[0], prod(sizes[1:])
        return (self.orders(length)[:, :, None] * features + torch.arange(features, device="cpu")).flatten(1)

    def orders(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """What each place of a set of `size` elements is filled from, shape ``(|G|, size)``."""
        orders: Tensor = self._keep(
            ("orders", size, str(device)), lambda: _drawn_orders(size, self.samples, self.seed).to(device)
        )
        return orders

    def ranks(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """Where each place's element goes, shape ``(|G|, size)``: the inverses of `orders`."""
        return self._keep(("ranks", size, str(device)), lambda: self.orders(size, device).argsort(dim=1))

    @property
    def _faithful_sizes(self) -> tuple[int, ...]:
        return (2, *(1,) * (-self.dim - 1))

    def check(self, x: Tensor) -> None:
        if isinstance(x, Tensor) and 1 < x.ndim <= -self.dim:
            way = "for tokens (B, L) pass dim=-1" if x.ndim == 2 else f"pass a `dim` from {1 - x.ndim} to -1"
            raise ValueError(
                f"Expected `x` to have a batch dimension and at least {-self.dim} more for {self!r} "
                f"but got shape {tuple(x.shape)}: {way}."
            )
        check_batch(self, x, -self.dim)

    # Held by padding, the orders are those of one batch -------------------------------------------------------------

    def _act_one(self, x: Tensor, element: int) -> Tensor:
        if self.padding is not None:
            return self._held_by(x, self.dim)._act_one(x, element)
        orders = self.orders(x.shape[self.dim], x.device)  # on a line of its own: here a compiled graph breaks
        return x.index_select(self.dim, orders[element])

    def _invert_one(self, x: Tensor, element: int) -> Tensor:
        if self.padding is not None:
            return self._held_by(x, self.dim)._invert_one(x, element)
        ranks = self.ranks(x.shape[self.dim], x.device)
        return x.index_select(self.dim, ranks[element])

    def _act_each(self, x: Tensor, index: Tensor) -> Tensor:
        if self.padding is not None:
            return self._held_by(x, self.dim)._act_each(x, index)
        orders = self.orders(x.shape[self.dim], x.device)
        return _taken(x, orders[index], self.dim)

    def _invert_each(self, x: Tensor, index: Tensor) -> Tensor:
        if self.padding is not None:
            return self._held_by(x, self.dim)._invert_each(x, index)
        ranks = self.ranks(x.shape[self.dim], x.device)
        return _taken(x, ranks[index], self.dim)

    def _orbit(self, x: Tensor, elements: Sequence[int]) -> Tensor:
        return super()._orbit(x, elements) if self.padding is None else self._held_by(x, self.dim)._orbit(x, elements)

    def _held_by(self, x: Tensor, dim: int) -> _HeldPermutations:
        with torch.inference_mode(False):  # a tensor made under inference mode could not be saved for a later backward
            is_padding = self._is_padding(x.detach()).movedim(self.dim, 1)
            padded = is_padding.reshape(*is_padding.shape[:2], prod(is_padding.shape[2:])).all(dim=2)
        return _HeldPermutations(self, padded, dim)

    def _is_padding(self, x: Tensor) -> Tensor:
        assert self.padding is not None
        if x.is_floating_point() or x.is_complex():
            return x == self.padding
        # An integer tensor would take another number for one of its own: 255 is -1 to uint8.
        low, high = (0, 1) if x.dtype == torch.bool else (torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max)
        if not low <= self.padding <= high or self.padding != int(self.padding):
            return torch.zeros_like(x, dtype=torch.bool)
        return x == int(self.padding)

    def _arguments(self) -> dict[str, object]:
        chosen = {"dim": self.dim} if self.dim != -2 else {}
        padding = {"padding": self.padding} if self.padding is not None else {}
        return {"samples": self.samples, "seed": self.seed, **chosen, **padding}


class _HeldPermutations(Action):
    """Orders of the sets of one batch, whose padding stays in its place, acting on whatever has these sets.

    Args:
        action: the drawn orders.
        padded: which places of each sample are padding, shape ``(B, set)``, bool.
        dim: the dimension of the set, counted from the end.
    """

    exact = True

    def __init__(self, action: SetPermutations, padded: Tensor, dim: int) -> None:
        self.action = action
        self.padded = padded
        self.dim = dim

    def __len__(self) -> int:
        return len(self.action)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.action.labels

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def places(self) -> tuple[int, ...]:
        return self.dims

    @property
    def drawn(self) -> bool:
        return True

    def _redraw(self, seed: int, samples: int | None) -> Action:
        redrawn = self.action.redrawn(seed, samples)
        assert isinstance(redrawn, SetPermutations)
        return _HeldPermutations(redrawn, self.padded, self.dim)

    def alongside(self, x: Tensor, other: Tensor) -> Action:
        self.check(x)
        return _HeldPermutations(self.action, self.padded, _same_dim(self, x, other, self.dim))

    def check(self, x: Tensor) -> None:
        check_batch(self, x, -self.dim)
        if (len(x), x.shape[self.dim]) != tuple(self.padded.shape):
            samples, size = self.padded.shape
            raise ValueError(
                f"Expected `x` to have {samples} samples, and {size} places in dimension {self.dim}, for {self!r} "
                f"but got shape {tuple(x.shape)}."
            )

    def verify(self, x: Tensor) -> None:
        """Verifies on the first samples, and the padding of these; see `Action.verify`."""
        self.check(x)
        Action.verify(_HeldPermutations(self.action, self.padded[:4], self.dim), x[:4])

    def _act_one(self, x: Tensor, element: int) -> Tensor:
        return self._act_each(x, torch.full((len(x),), element, device=x.device))

    def _invert_one(self, x: Tensor, element: int) -> Tensor:
        return self._invert_each(x, torch.full((len(x),), element, device=x.device))

    def _act_each(self, x: Tensor, index: Tensor) -> Tensor:
        return _taken(x, self._sources(x, index), self.dim)

    def _invert_each(self, x: Tensor, index: Tensor) -> Tensor:
        return _taken(x, self._sources(x, index).argsort(dim=1), self.dim)

    def _sources(self, x: Tensor, index: Tensor) -> Tensor:
        """What each place of each sample is filled from, shape ``(B, set)``."""
        padded, size = self.padded.to(x.device), self.padded.shape[1]
        ranks = self.action.ranks(size, x.device)
        places = torch.arange(size, device=x.device).expand(padded.shape)
        # The places that hold elements come first: as they lie, and as the drawn order comes upon them.
        lying = self._keep(x.device, lambda: places.masked_fill(padded, size).argsort(dim=1))
        coming = ranks[index].masked_fill(padded, size).argsort(dim=1)
        return torch.where(padded, places, torch.empty_like(lying).scatter(1, lying, coming))

    def _arguments(self) -> dict[str, object]:
        return {"action": self.action, "padded": tuple(map(tuple, self.padded.tolist())), "dim": self.dim}

    def __repr__(self) -> str:
        return f"{self.action!r} held by the padding of {len(self.padded)} samples"


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph holds no generator
def _drawn_orders(size: int, samples: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(size, generator=generator, device="cpu") for _ in range(samples)]
    return torch.stack([torch.arange(size, device="cpu"), *drawn])


def _same_dim(action: Action, x: Tensor, other: Tensor, dim: int) -> int:
    """The dimension `dim` of `x`, counted from the front, in `other`, counted from the end; raises without one."""
    check_batch(action, other, 0)
    place = x.ndim + dim
    if other.ndim <= place or (len(other), other.shape[place]) != (len(x), x.shape[place]):
        raise ValueError(
            f"Expected `other` to have {len(x)} samples, and {x.shape[place]} places in dimension {place}, as `x` of "
            f"shape {tuple(x.shape)} for {action!r}, but got shape {tuple(other.shape)}."
        )
    return place - other.ndim


def _taken(x: Tensor, sources: Tensor, dim: int) -> Tensor:
    """Each sample's places filled from `sources`, shape ``(B, set)``, along one dimension."""
    place = x.ndim + dim
    if place == 1 and x.ndim > 2:  # whole rows are copied at once
        starts = x.shape[1] * torch.arange(len(x), device=x.device)
        rows = (sources + starts[:, None]).flatten()
        return x.flatten(0, 1).index_select(0, rows).reshape(x.shape)
    where = sources.reshape(len(x), *(1,) * (place - 1), x.shape[place], *(1,) * (-dim - 1))
    return x.gather(place, where.expand(x.shape))
