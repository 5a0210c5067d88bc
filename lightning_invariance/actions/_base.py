"""What every group action has in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from lightning_invariance._checks import check_count, check_iterable, check_not_meta, check_seed, format_sizes
from lightning_invariance._containers import describe_value
from lightning_invariance.actions._motion_sizes import MotionSizes
from lightning_invariance.actions._value import Value

if TYPE_CHECKING:
    from lightning_invariance.actions._flow import Flow
    from lightning_invariance.actions._product import ProductAction


Kept = TypeVar("Kept")


class Action(Value):
    r"""A group acting on the trailing dimensions of a batch.

    An action lists its elements, and **index 0 is always the identity**. It is a small immutable value: equal
    arguments make equal actions, it holds no parameters, and it can be copied, pickled and kept inside a module
    without adding anything to that module's ``state_dict``.

    Batches have the shape ``(B, ...)``; an action never touches the first dimension and keeps shape and dtype.

    A subclass writes `__len__`, `check`, `_act_one`, `_invert_one` and `_arguments`.
    """

    #: Whether ``invert(act(x, g), g)`` gives ``x`` back bit for bit.
    exact: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """The number of elements, the identity included."""

    @abstractmethod
    def check(self, x: Tensor) -> None:
        """Raises a `ValueError`, which says what would work, where the group cannot act on `x`."""

    @abstractmethod
    def _act_one(self, x: Tensor, element: int) -> Tensor:
        """The whole batch under one element (not the identity)."""

    @abstractmethod
    def _invert_one(self, x: Tensor, element: int) -> Tensor:
        """The whole batch under the inverse of one element (not the identity)."""

    # What a subclass may know better --------------------------------------------------------------------------------

    @property
    def labels(self) -> tuple[str, ...]:
        """A short name for each element, the identity's first; used in tables, figures and log keys."""
        return ("identity", *(f"element{index}" for index in range(1, len(self))))

    @property
    def dims(self) -> tuple[int, ...] | None:
        """The (negative) dimensions acted on, or None where they are not known."""
        return None

    @property
    def places(self) -> tuple[int, ...] | None:
        """The (negative) dimensions along which values move from place to place, as pixels do; None if not known.

        Empty where values change and stay where they are, as the coordinates of turned points do.
        """
        return None

    def places_in(self, x: Tensor) -> tuple[int, ...] | None:
        """`places`, found out on a batch where the action itself does not know them."""
        return self.places

    def in_view(self, x: Tensor, element: int) -> Tensor | None:
        r"""Which places of `x` an element leaves inside the frame, so that bringing :math:`gx` back returns them.

        Args:
            x: a batch, shape ``(B, ...)``.
            element: an element's index.

        Returns:
            bool, of as many dimensions as `x` and broadcastable to it; None where all places stay in view.

        Example:
            >>> import torch
            >>> from lightning_invariance import C4, Scalings
            >>> x = torch.ones(1, 1, 4, 4)
            >>> C4().in_view(x, 1) is None
            True
            >>> Scalings([2.0]).in_view(x, 1)[0, 0].int()  # enlarged, the border is out of sight
            tensor([[0, 0, 0, 0],
                    [0, 1, 1, 0],
                    [0, 1, 1, 0],
                    [0, 0, 0, 0]], dtype=torch.int32)
        """
        return None

    def motion_sizes(self, x: Tensor) -> MotionSizes | None:
        """How far each element moves, where that is one number: an angle, pixels, a factor.

        Args:
            x: a batch, shape ``(B, ...)``: how many pixels a shift goes may follow from its size.

        Returns:
            A size for each element, the identity's first; None where it is not known, or no single number.

        Example:
            >>> import torch
            >>> from lightning_invariance import C4, CyclicTranslations
            >>> C4().motion_sizes(torch.zeros(1, 8, 8))
            MotionSizes(name='angle', unit='degrees', values=(0.0, 90.0, 180.0, 270.0))
            >>> CyclicTranslations(4).motion_sizes(torch.zeros(1, 8, 8)).values
            (0.0, 2.0, 4.0, 6.0)
        """
        return None

    @property
    def cayley_table(self) -> Tensor | None:
        r"""The group's multiplication table, or None where the listed elements are no group.

        ``table[i, j]`` is the index of :math:`g_i g_j`: acting with ``j`` and then with ``i``. Shape ``(|G|, |G|)``,
        int64.
        """
        return None

    @property
    def drawn(self) -> bool:
        """Whether the elements besides the identity are draws from a larger group, as those of `SO3` are."""
        return False

    @property
    def flow(self) -> Flow | None:
        """The continuous group by its generators, for Lie derivatives; None where there is none, or it is not known.

        Example:
            >>> from lightning_invariance import C4, SO2
            >>> SO2(samples=4).flow, C4().flow
            (RotationFlow(window=0.125), None)
        """
        known: Flow | None = self.__dict__.get("_of_flow")
        return self._own_flow() if known is None else known

    def _own_flow(self) -> Flow | None:
        return None

    def _redraw(self, seed: int, samples: int | None) -> Action:
        """The same group with other draws; written by every action that is `drawn`."""
        raise TypeError(f"{type(self).__name__} is drawn and has to write `_redraw`.")

    def attached(self, x: Tensor) -> Action:
        """The action on `x` and on what is attached to it: gradients, saliency maps.

        Where an action reads from `x` how to move it, as `SetPermutations` reads the places of its padding, a map of
        `x` is brought back by the result and not by the action itself, since the map does not say.

        Args:
            x: a batch, shape ``(B, ...)``.

        Returns:
            An action on batches of the shape of `x`, whatever they hold; the action itself where it reads nothing.

        Raises:
            ValueError: if the group cannot act on `x`.

        Example:
            >>> import torch
            >>> from lightning_invariance import SetPermutations
            >>> x = torch.tensor([[[5.0], [6.0], [0.0], [0.0]]])
            >>> action = SetPermutations(samples=3, padding=0).attached(x)
            >>> action.invert(action.act(torch.tensor([[[0.0], [1.0], [2.0], [3.0]]]), 1), 1).flatten()
            tensor([0., 1., 2., 3.])
        """
        self.check(x)
        return self

    def alongside(self, x: Tensor, other: Tensor) -> Action:
        """The action that moves another input of the network together with `x`.

        Args:
            x: a batch, shape ``(B, ...)``.
            other: a batch of the same samples, shape ``(B, ...)``.

        Returns:
            An action on batches of the shape of `other`: the action itself, but for `SetPermutations`, whose set lies
            in the same dimension of both, counted from the front. It need not be able to act on `other`: `check` says.

        Raises:
            ValueError: if the group cannot act on `x`, or `other` has not the set of `x`.

        Example:
            >>> import torch
            >>> from lightning_invariance import SetPermutations
            >>> positions, charges = torch.randn(2, 9, 3), torch.arange(18).reshape(2, 9)
            >>> SetPermutations(samples=3).alongside(positions, charges)
            SetPermutations(samples=3, seed=0, dim=-1)
        """
        self.check(x)
        return self

    def for_whole_numbers(self) -> Action:
        """The action on values that must not be mixed, such as classes; the action itself but where it interpolates."""
        return self

    def on_output(self, x: Tensor, output: Tensor) -> Action:
        """The action on what a network makes of `x`, in the same dimensions: `alongside`, checked.

        Args:
            x: a batch, shape ``(B, ...)``.
            output: the network's output, shape ``(B, ...)``; it may be smaller than `x`, as a feature map is.

        Raises:
            ValueError: if the group cannot act on it.
        """
        action = self.alongside(x, output)
        action.check(output)
        places = self.places_in(x)
        if places and action.places_in(output) == places:
            _check_layout(x, output, places)
        return action

    def _act_each(self, x: Tensor, index: Tensor) -> Tensor:
        return self._grouped(x, index, self._act_one)

    def _invert_each(self, x: Tensor, index: Tensor) -> Tensor:
        return self._grouped(x, index, self._invert_one)

    def _orbit(self, x: Tensor, elements: Sequence[int]) -> Tensor:
        return torch.stack([x if element == 0 else self._act_one(x, element) for element in elements])

    # What users call ------------------------------------------------------------------------------------------------

    def act(self, x: Tensor, index: int | Tensor) -> Tensor:
        r"""Acts with one element on the whole batch, or with one element a sample.

        Args:
            x: a batch, shape ``(B, ...)``.
            index: an element's index, or a tensor of ``B`` indices, one a sample.

        Returns:
            :math:`g x`, of the same shape and dtype.

        Raises:
            ValueError: if the group cannot act on `x`, or `index` names no element or has the wrong shape.

        Example:
            >>> import torch
            >>> from lightning_invariance import C4
            >>> x = torch.arange(8.0).reshape(2, 2, 2)
            >>> C4().act(x, 1)[0]
            tensor([[1., 3.],
                    [0., 2.]])
            >>> C4().act(x, torch.tensor([0, 2]))[1]
            tensor([[7., 6.],
                    [5., 4.]])
            >>> torch.equal(C4().invert(C4().act(x, 1), 1), x)
            True
        """
        return self._apply(x, index, self._act_one, self._act_each)

    def invert(self, x: Tensor, index: int | Tensor) -> Tensor:
        r"""Acts with the inverse: :math:`g^{-1} x`. Arguments, result and errors are those of `act`."""
        return self._apply(x, index, self._invert_one, self._invert_each)

    def orbit(self, x: Tensor, elements: Sequence[int] | None = None) -> Tensor:
        r"""The batch under every element, `x` itself first.

        Args:
            x: a batch, shape ``(B, ...)``.
            elements: indices of the elements wanted, in this order; all of them by default.

        Returns:
            Shape ``(|G|, B, ...)``, or ``(len(elements), B, ...)``.

        Raises:
            ValueError: if the group cannot act on `x`, or an index names no element.

        Example:
            >>> import torch
            >>> from lightning_invariance import C4
            >>> x = torch.randn(5, 3, 8, 8)
            >>> C4().orbit(x).shape, torch.equal(C4().orbit(x)[0], x)
            (torch.Size([4, 5, 3, 8, 8]), True)
        """
        self.check(x)
        if elements is not None:
            check_iterable("elements", elements, "indices of elements")
        chosen = range(len(self)) if elements is None else [self._check_element(element) for element in elements]
        if not chosen:
            raise ValueError("Expected `elements` to name at least one element but got none.")
        return self._orbit(x, chosen)

    def sample(
        self, n: int, generator: torch.Generator | None = None, *, device: torch.device | str | None = None
    ) -> Tensor:
        """Draws `n` indices uniformly from all elements, the identity included.

        Args:
            n: how many.
            generator: the random stream; torch's default one if None.
            device: where the result lies. Drawing happens on the generator's own device, so that a seed
                gives the same elements everywhere.

        Returns:
            int64 indices, shape ``(n,)``.
        """
        check_count("n", n, minimum=0)
        check_generator(generator)
        drawn_on = "cpu" if generator is None else generator.device
        return torch.randint(len(self), (n,), generator=generator, device=drawn_on).to(device or drawn_on)

    def redrawn(self, seed: int, samples: int | None = None) -> Action:
        """The same group, its elements drawn with another seed.

        Training and measuring on the same few rotations says little about the others.

        Args:
            seed: of the draw: equal seeds give equal elements. Each factor of a product draws from a seed of its own
                that follows from this one.
            samples: how many elements are drawn besides the identity (by each factor of a product that is drawn); as
                many as before if None.

        Returns:
            The action itself where its elements are not `drawn`.

        Raises:
            ValueError: if `seed` is no integer of at most 64 bits, or `samples` no integer of at least 1.

        Example:
            >>> from lightning_invariance import C4, SO3
            >>> SO3(samples=4).redrawn(seed=7)
            SO3(samples=4, seed=7, dim=-1)
            >>> C4().redrawn(seed=7)
            C4()
        """
        check_seed("seed", seed)
        if samples is not None:
            check_count("samples", samples)
        if not self.drawn:
            return self
        redrawn = self._redraw(seed, samples)
        if "_of_flow" in self.__dict__:
            redrawn.__dict__["_of_flow"] = self.__dict__["_of_flow"]
        return redrawn

    def fresh(self, n: int, generator: torch.Generator | None = None) -> tuple[Action, Tensor]:
        """An action, and `n` of its elements, each drawn uniformly from the whole group and independent of the others.

        What data augmentation needs: one element a sample. Of a group whose elements are not `drawn` it is `sample`;
        of one that is, the action has new elements, and index 0, the identity, is not among the indices.

        Args:
            n: how many.
            generator: the random stream; torch's default one if None.

        Returns:
            The action, and int64 indices into it, shape ``(n,)``, on the generator's device.

        Raises:
            ValueError: if `n` is no integer of at least 0, or `generator` no generator.

        Example:
            >>> import torch
            >>> from lightning_invariance import SO3
            >>> action, index = SO3(samples=4).fresh(3, torch.Generator().manual_seed(0))
            >>> len(action), index
            (4, tensor([1, 2, 3]))
            >>> action.act(torch.randn(3, 100, 3), index).shape
            torch.Size([3, 100, 3])
        """
        if not self.drawn:
            return self, self.sample(n, generator)
        check_count("n", n, minimum=0)
        check_generator(generator)
        drawn_on = "cpu" if generator is None else generator.device
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device=drawn_on))
        return self.redrawn(seed, n or None), torch.arange(1, n + 1, device=drawn_on)

    @torch.no_grad()
    def verify(self, x: Tensor) -> None:
        r"""Checks on a batch that every element keeps shape and dtype, and that its inverse undoes it.

        The callbacks do so on the first batch, since an inverse that does not invert shows in no number: maps are
        merely brought to the wrong pose. An exact action must give `x` back bit for bit; another, which may lose
        detail, must bring :math:`gx` nearer to it, or noise of the batch's shape where the batch does not tell.

        Args:
            x: a batch, shape ``(B, ...)``; its first samples are used.

        Raises:
            ValueError: if the group cannot act on `x`, or an element fails; the message says which.

        Example:
            >>> import torch
            >>> from lightning_invariance import FunctionAction
            >>> wrong = FunctionAction([(lambda x: x.roll(1, -1), lambda x: x.roll(1, -1))], labels=["shifted"])
            >>> wrong.verify(torch.eye(4))
            Traceback (most recent call last):
                ...
            ValueError: Expected the inverse of 'shifted' in FunctionAction('shifted') to undo it, but it does not.
        """
        self.check(x)
        check_not_meta("x", x)
        few = x[:4].detach()
        if few.is_floating_point():
            few = few.nan_to_num(0.0, 0.0, 0.0)
        for element, label in enumerate(self.labels):
            moved = self.act(few, element)
            back = self.invert(moved, element)
            for name, value in (("element", moved), ("the inverse of", back)):
                if value.shape != few.shape or value.dtype != few.dtype:
                    raise ValueError(
                        f"Expected {name} {label!r} in {self!r} to keep shape {tuple(few.shape)} and {few.dtype} "
                        f"but got {tuple(value.shape)} and {value.dtype}."
                    )
            if not self._undoes(few, moved, back, element):
                raise ValueError(f"Expected the inverse of {label!r} in {self!r} to undo it, but it does not.")

    def _undoes(self, x: Tensor, moved: Tensor, back: Tensor, element: int) -> bool:
        if self.exact or not x.is_floating_point() or not x.numel():
            return torch.equal(back, x)
        # On a few numbers every other wrong inverse comes nearer to x by chance: the fewer, the clearer it has to be.
        if _comes_nearer(x, moved, back, 0.98 - 3 / x.numel() ** 0.5):
            return True
        # And blank or symmetric images show nothing.
        noise = _noise_like(x)
        moved = self.act(noise, element)
        back = self.invert(moved, element)
        left, size = (float(each.double().norm()) for each in (back - noise, noise))
        return left <= 8 * torch.finfo(x.dtype).eps * size or _comes_nearer(noise, moved, back, 0.98)

    def __mul__(self, other: Action) -> ProductAction:
        """The product: `other` acts first, then this one."""
        from lightning_invariance.actions._product import ProductAction

        if not isinstance(other, Action):
            return NotImplemented
        return ProductAction(self, other)

    def __getstate__(self) -> dict[str, Any]:
        # What can be built again does not travel.
        return {
            name: value
            for name, value in self.__dict__.items()
            if name != "_placed" and not isinstance(getattr(type(self), name, None), cached_property)
        }

    # Shared machinery -----------------------------------------------------------------------------------------------

    def _apply(
        self,
        x: Tensor,
        index: int | Tensor,
        one: Callable[[Tensor, int], Tensor],
        each: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        self.check(x)
        if isinstance(index, Tensor) and index.ndim > 0:
            return each(x, self._check_indices(index, x))
        element = self._check_element(index)
        return x if element == 0 else one(x, element)

    def _keep(self, key: Hashable, build: Callable[[], Kept]) -> Kept:
        """A constant (an index table, matrices, places), built once for each size, device and precision."""
        if torch.compiler.is_compiling():
            return build()
        placed: dict[Hashable, Any] = self.__dict__.setdefault("_placed", {})
        if key not in placed:
            # A tensor made under inference mode could not be saved for a later backward.
            with torch.inference_mode(False):
                placed[key] = build()
        kept: Kept = placed[key]
        return kept

    def _check_element(self, index: Any) -> int:
        if isinstance(index, Tensor):
            self._check_integers(index)
            check_not_meta("index", index)
        elif not isinstance(index, int) and not hasattr(index, "__index__"):
            raise ValueError(
                f"Expected `index` to be an integer or a tensor of one integer a sample but got {index!r}."
            )
        element = int(index)
        if not 0 <= element < len(self):
            raise ValueError(f"Expected `index` to be between 0 and {len(self) - 1} for {self!r} but got {element}.")
        return element

    def _check_integers(self, index: Tensor) -> None:
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise ValueError(f"Expected `index` to hold integers but got {index.dtype}.")

    def _check_indices(self, index: Tensor, x: Tensor) -> Tensor:
        self._check_integers(index)
        if index.shape != x.shape[:1]:
            raise ValueError(
                f"Expected `index` to hold one element for each of the {len(x)} samples "
                f"but got shape {tuple(index.shape)}."
            )
        if not x.is_meta:
            check_not_meta("index", index)
        # On an accelerator the check would wait for the device; there an index out of range fails in the gather.
        if index.device.type == "cpu" and not torch.compiler.is_compiling() and index.numel():
            self._check_element(index.min())
            self._check_element(index.max())
        return index.to(x.device, torch.int64)

    def _grouped(self, x: Tensor, index: Tensor, one: Callable[[Tensor, int], Tensor]) -> Tensor:
        """One element a sample, by gathering the samples that share an element."""
        out = torch.empty_like(x)
        sizes = torch.bincount(index, minlength=len(self)).tolist()
        for element, members in enumerate(index.argsort().split(sizes)):
            if len(members):
                # Faster than `x[members]` and `out[members] = ...`, which go number by number.
                part = x.index_select(0, members)
                out.index_copy_(0, members, part if element == 0 else one(part, element))
        return out


def _comes_nearer(x: Tensor, moved: Tensor, back: Tensor, share: float) -> bool:
    left, distance = (float((each - x).double().norm()) for each in (back, moved))
    return left < share * distance


def _noise_like(x: Tensor, numbers: int = 65536) -> Tensor:
    """So many numbers in the range of `x`, in samples of its shape; the same ones every time."""
    low, high = float(x.min()), float(x.max())
    samples = max(1, -(-numbers // x[0].numel()))
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((samples, *x.shape[1:]), generator=generator, device="cpu")
    return (low + noise * ((high - low) or 1.0)).to(x.device, x.dtype)


def check_action(action: object) -> None:
    """Raises unless `action` is an `Action` with an element besides the identity."""
    if not isinstance(action, Action):
        raise ValueError(f"Expected `action` to be an Action, such as C4(), but got {action!r}.")
    if len(action) < 2:
        raise ValueError(f"Expected `action` to have an element besides the identity but got {action!r}.")


def check_labels(labels: Sequence[str], count: int) -> tuple[str, ...]:
    """The labels; raises unless they are so many distinct names, as keys of what is logged have to be."""
    check_iterable("labels", labels, "a name for each element")
    names = tuple(labels)
    if len(names) != count or len(set(names)) != count or not all(isinstance(name, str) for name in names):
        raise ValueError(f"Expected `labels` to hold {count} distinct names, one an element, but got {list(names)}.")
    return names


def check_paired(name: str, action: Action, other: Action, other_name: str) -> None:
    """Raises unless element i of one action can be meant to go with element i of the other."""
    if len(action) != len(other):
        raise ValueError(
            f"Expected `{name}` to have as many elements as `{other_name}`, {other!r}, which has {len(other)}, but got "
            f"{action!r} with {len(action)}."
        )
    labels, others = action.labels, other.labels
    if labels != others and not _is_numbered(labels) and not _is_numbered(others):
        place = next(i for i, (a, b) in enumerate(zip(labels, others, strict=True)) if a != b)
        raise ValueError(
            f"Expected `{name}` to have the elements of `{other_name}`, {other!r}, in the same order, but element "
            f"{place} is {labels[place]!r} in {action!r} and {others[place]!r} in the other."
        )
    seeds = [getattr(each, "seed", None) for each in (action, other)]
    if action.drawn and other.drawn and None not in seeds and seeds[0] != seeds[1]:
        raise ValueError(
            f"Expected `{name}` to be drawn with the seed of `{other_name}`, {seeds[1]}, so that both have the same "
            f"elements, but got {seeds[0]}."
        )


def check_drawn_together(name: str, action: Action, other: Action) -> None:
    """Raises where the elements of one action are about to be drawn anew, and those of the other could not be."""
    if action.drawn == other.drawn:
        return
    if other.drawn:
        raise ValueError(
            f"Expected `{name}` to draw its elements anew, as {other!r} does, but got {action!r}, whose elements are "
            "fixed."
        )
    raise ValueError(
        f"Expected `{name}` to have fixed elements, as {other!r} has, but got {action!r}, whose elements are drawn "
        "anew."
    )


def fresh_together(
    action: Action, other: Action, n: int, generator: torch.Generator | None
) -> tuple[Action, Action, Tensor]:
    """`Action.fresh` of two actions, which get the same elements, and the indices that both share."""
    check_drawn_together("the other action", other, action)
    generator = torch.default_generator if generator is None else generator
    again = torch.Generator(generator.device)
    again.set_state(generator.get_state())
    first, index = action.fresh(n, generator)
    second, _ = other.fresh(n, again)
    return first, second, index


def _is_numbered(labels: tuple[str, ...]) -> bool:
    """Whether the elements have no names of their own."""
    return labels[1:] == tuple(f"element{index}" for index in range(1, len(labels)))


def is_scaled(sizes: Sequence[int], others: Sequence[int]) -> bool:
    """Whether other sizes are these, all multiplied or divided by the same whole number; up to rounding of odd ones."""
    if min(others, default=0) < 2:
        return False
    if others[0] > sizes[0]:
        sizes, others = others, sizes
    factor = round(sizes[0] / others[0])
    pairs = zip(sizes, others, strict=True)
    return factor <= _LARGEST_FACTOR and all(b in (a // factor, -(-a // factor)) for a, b in pairs)


#: From an image to its smallest feature map.
_LARGEST_FACTOR = 32


def _is_cropped(sizes: Sequence[int], others: Sequence[int]) -> bool:
    """Whether other sizes are these less a margin that is the same in both, as convolutions without padding leave."""
    largest = min(size // max(other, 1) for size, other in zip(sizes, others, strict=True))
    margins = ([a - factor * b for a, b in zip(sizes, others, strict=True)] for factor in range(1, largest + 1))
    return any(abs(margin[0] - margin[1]) < max(sizes[0] // others[0], 1) for margin in margins)


def _check_layout(x: Tensor, output: Tensor, places: tuple[int, ...]) -> None:
    """Raises where the places of `x` are no places of `output`: coordinates, classes, channels that come last."""
    if all(output.shape[dim] == x.shape[dim] for dim in places):
        return
    remedy = "give it an action of its own: a LinearAction for vectors, your functions in a FunctionAction for others"
    if set(places) <= {-2, -1} and (x.ndim >= 4 or len(places) == 2):
        sizes, others = x.shape[-2:], output.shape[-2:]
        ratios = [other / size for size, other in zip(sizes, others, strict=True)] if output.ndim >= 3 else []
        if not ratios or (abs(ratios[0] - ratios[1]) > 1 / min(sizes) and not _is_cropped(sizes, others)):
            raise ValueError(
                f"Expected images in the last two dimensions, of the proportions of the input's {format_sizes(sizes)}, "
                f"but got {tuple(output.shape)}: {remedy}."
            )
    elif len(places) == 1 and output.ndim < x.ndim:
        size, other = x.shape[places[0]], output.shape[places[0]]
        strided = {rounded for power in range(8) for rounded in (size >> power, -(-size >> power))}
        if other not in strided and other < size / 2 - 2:
            raise ValueError(
                f"Expected about the input's {size} places in dimension {places[0]}, or a half or a quarter of them, "
                f"but got {tuple(output.shape)}: {remedy}."
            )


def check_generator(generator: object) -> None:
    """Raises unless `generator` is a generator or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"Expected `generator` to be a torch.Generator or None but got {generator!r}.")


def check_batch(action: Action, x: Tensor, trailing: int) -> None:
    """Raises unless `x` is a tensor with a batch dimension and at least `trailing` more."""
    if not isinstance(x, Tensor):
        raise ValueError(f"Expected `x` to be a tensor for {action!r} but got {describe_value(x)}.")
    if x.ndim < trailing + 1:
        raise ValueError(
            f"Expected `x` to have a batch dimension and at least {trailing} more for {action!r} "
            f"but got shape {tuple(x.shape)}."
        )


def group_table(listed: Tensor, compose: Callable[[Tensor, Tensor], Tensor], atol: float) -> Tensor | None:
    """The multiplication table of the listed elements under `compose`, or None where a product is not listed.

    Args:
        listed: shape ``(|G|, ...)``.
        compose: ``compose(listed, listed[j])[i]`` is element ``i`` after element ``j``.
        atol: how far two equal elements may lie apart.
    """
    flat = listed.flatten(1).double()
    if bool((torch.cdist(flat, flat, p=torch.inf) <= atol).sum() > len(flat)):
        return None  # an element is listed twice
    columns = []
    for element in listed:
        distance = torch.cdist(compose(listed, element).flatten(1).double(), flat, p=torch.inf)
        nearest = distance.min(dim=1)
        if bool((nearest.values > atol).any()):
            return None
        columns.append(nearest.indices)
    return torch.stack(columns, dim=1)


def permutation_group_table(table: Tensor) -> Tensor | None:
    """The multiplication table of permutations; None where one is listed twice, or a product is not listed.

    Each permutation is known by a sum of its entries with random weights, and what is found by it is compared.
    """
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(2**62, table.shape[1:], generator=generator, device="cpu")
    keys, order = (table * weights).sum(dim=1).sort()
    if bool((keys[1:] == keys[:-1]).any()):
        return None
    columns = []
    for element in table:  # first this one, then each of the others
        products = element[table]
        place = torch.searchsorted(keys, (products * weights).sum(dim=1)).clamp_max(len(keys) - 1)
        column = order[place]
        if not torch.equal(table[column], products):
            return None
        columns.append(column)
    return torch.stack(columns, dim=1)
