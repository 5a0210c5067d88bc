"""What later calls of a network show that the first one of a training did not: branches, and inputs of other sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._containers import walk
from lightning_invariance._isolation import RandomState
from lightning_invariance.actions import Action
from lightning_invariance.callbacks._base import without_logging
from lightning_invariance.callbacks._calls import leaves_of
from lightning_invariance.symmetry._weights import Break, NotFiniteError, WeightSymmetry, in_list

#: How many sizes of the network's input are looked at, of those that come after the first.
_SIZES = 16

#: How often a parameter is looked for that a step uses, and the network does not when it is run again.
_ATTEMPTS = 3


class LaterCalls:
    """Follows the calls of a network whose weights are kept invariant.

    Nothing that goes wrong here ends a training that goes on: what cannot be made invariant is warned of.

    Args:
        symmetry: what the first call has shown.
        calls: the calls that it was found on.
        locate: finds the input in a call's arguments.
        refuse: raises a `ValueError` where weights of a symmetry must not be changed.
        warn: warns the user.

    Attributes:
        symmetry: what all calls so far have shown.
        late: the parameters that a step was the first to use, which have not begun invariant.
        has_learned: whether there are any since this was last asked.
    """

    def __init__(
        self,
        symmetry: WeightSymmetry,
        calls: Sequence[Arguments],
        locate: Callable[[tuple[Any, ...], dict[str, Any]], Arguments],
        refuse: Callable[[WeightSymmetry], None],
        warn: Callable[[str], None],
    ) -> None:
        self.symmetry = symmetry
        self.late: list[nn.Parameter] = []
        self.has_learned = False
        self._locate = locate
        self._refuse = refuse
        self._warn = warn
        self._sizes = {_sizes_of(call.args, call.kwargs) for call in calls}
        self._attempts: dict[str, int] = {}
        self._given_up: set[str] = set()
        self._find_unknown()

    def _find_unknown(self) -> None:
        named = dict(self.symmetry.network.named_parameters())
        self._unused = [name for name in self.symmetry.unused if named[name].requires_grad]
        self._unknown = {id(named[name]): name for name in self._unused if name not in self._given_up}

    @property
    def has_unused(self) -> bool:
        """Whether there are parameters to be trained that no call has used."""
        return bool(self._unused)

    @property
    def action(self) -> Action:
        """The group."""
        return self.symmetry.action

    def start_of_call(self, device: torch.device) -> RandomState | None:
        """The random streams, if they may be needed to go the way of the call that is about to be made."""
        return RandomState(device) if self._unknown and torch.is_grad_enabled() else None

    def see(
        self,
        module: LightningModule,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        start: RandomState | None,
    ) -> None:
        """A call of the network in a step has been made: is it known that it is invariant when it is called so?"""
        sizes = _sizes_of(args, kwargs)
        is_new = sizes not in self._sizes and len(self._sizes) <= _SIZES
        used: set[int] = set()
        if self._unknown and torch.is_grad_enabled():
            used = leaves_of(output) & self._unknown.keys()
        if not (is_new or used):
            return
        self._sizes.add(sizes)
        try:
            call = self._locate(args, kwargs)
            call.acting(self.action).check(call.x)
        except ValueError:  # the group does not act on what it is called with here
            return
        with without_logging(module):
            if used:
                self._learn(call, sorted(self._unknown[each] for each in used), start)
            else:
                self._check_size(call)

    def _check_size(self, call: Arguments) -> None:
        broken = self._broken_on(call)
        if broken is not None:
            self._warn(
                f"the network is not invariant under {self.action!r} when it is called with {call.in_words()}, though "
                f"it is for the sizes that came first: {broken}."
            )

    def _learn(self, call: Arguments, names: Sequence[str], start: RandomState | None) -> None:
        """Takes in a branch of the network that a step is the first to go through."""
        symmetry = self.symmetry
        try:
            symmetry = self.symmetry.extended(call, start)
            self._refuse(symmetry)
        except NotFiniteError:  # it shows nothing; another call will
            return
        except ValueError as error:
            self._warn(
                f"a step is the first to use {in_list(names)}, which cannot be made invariant and are left as they "
                f"are; the network is not invariant where it uses them. {error}"
            )
            self._give_up(names)
            return
        except Exception:
            symmetry = self.symmetry  # it does not run in eval mode, say
        before = {name for name, _ in self.symmetry.named_parameters()}
        found = {name: each for name, each in symmetry.named_parameters() if name not in before}
        if found:
            if not self.symmetry.moves_as(symmetry):
                self._warn(
                    f"the step that is the first to use {in_list(names)} leaves the weights that were trained before "
                    "fewer or other fields, and what these had learned is lost in part: give a list of calls that use "
                    "all weights as `example=`."
                )
                self.late += [each for name, each in symmetry.named_parameters() if name in before]
            self.late += found.values()
            self.symmetry = symmetry
            self.has_learned = True
        for name in names:
            self._attempts[name] = self._attempts.get(name, 0) + 1
        missed = [name for name in names if name not in found and self._attempts[name] >= _ATTEMPTS]
        if missed:
            # In train mode alone, as an auxiliary head is; what is run again is in eval mode.
            rank_zero_info(
                f"InvariantWeights: {in_list(missed)} are used in training and not when the network is run again, in "
                "eval mode: they are left as they are."
            )
        self._give_up(missed)

    def _give_up(self, names: Sequence[str]) -> None:
        self._given_up.update(names)
        self._find_unknown()

    def broken(self, module: LightningModule) -> Break | None:
        """Where the network is not invariant now, with invariant weights; None too where it does not run any more."""
        with without_logging(module):
            found = (self._broken_on(call) for call in self.symmetry.calls)
            return next((each for each in found if each is not None), None)

    def _broken_on(self, call: Arguments) -> Break | None:
        try:
            return self.symmetry.verify(call)
        except Exception:  # outputs that are not finite, or a network that takes other inputs by now
            return None


def _sizes_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The sizes of a call's tensors, but for the number of samples."""
    return tuple((path, tuple(tensor.shape[1:])) for path, tensor in walk({"args": args, "kwargs": kwargs}))


# Calls as they are kept in a checkpoint: without what was in their tensors ------------------------------------------


def outline_of(call: Arguments) -> dict[str, Any] | None:
    """A call as plain values, tensors as their sizes and precisions; None where it holds something else."""
    try:
        return {
            "args": _outline(call.args),
            "kwargs": _outline(call.kwargs),
            "paths": [[*path] for path in call.paths],
        }
    except TypeError:
        return None


def call_from(outline: Mapping[str, Any], action: Action, device: torch.device) -> Arguments:
    """A call of the same kind, with zeros."""
    args, kwargs = _filled(outline["args"], device), _filled(outline["kwargs"], device)
    return Arguments(args, kwargs, tuple(tuple(path) for path in outline["paths"])).joined(action)


def _outline(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": [*value.shape], "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [_outline(each) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[key, _outline(each)] for key, each in value.items()]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"{type(value).__name__} is no plain value")


def _filled(outline: Mapping[str, Any], device: torch.device) -> Any:
    if "tensor" in outline:
        return torch.zeros(outline["tensor"], dtype=getattr(torch, outline["dtype"]), device=device)
    if "dict" in outline:
        return {key: _filled(each, device) for key, each in outline["dict"]}
    if "value" in outline:
        return outline["value"]
    ((kind, values),) = outline.items()
    filled = [_filled(each, device) for each in values]
    return tuple(filled) if kind == "tuple" else filled
