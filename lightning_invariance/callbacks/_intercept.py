"""Runs something of ours around a network's calls, for the length of a step."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

from torch import nn

#: Gets what would run, whether that is the whole call (with its hooks) or the forward alone, and the arguments.
Interceptor = Callable[..., Any]

_WHOLE, _FORWARD = "_compiled_call_impl", "forward"


@contextmanager
def intercepted(network: nn.Module, interceptor: Interceptor) -> Iterator[None]:
    """Lets the interceptor run whenever the network, or its ``forward``, is called inside the block.

    Not a hook: steps often call ``self.forward(x)``, which hooks do not see, and a hook added to a network that has
    been compiled in place does not fire. Nor another class: users ask for it, and list it. What is put into the
    network's dictionary takes care of copies that the step makes (a teacher, an inner loop), which take it along.
    """
    compiled = network.__dict__.get(_WHOLE)
    with ExitStack() as stack:
        # Where there is something in this place, `nn.Module` calls it instead of going through hooks and forward.
        whole = network._call_impl if compiled is None else compiled
        stack.enter_context(_put(network, _WHOLE, whole, interceptor))
        if compiled is None:  # a compiled call has the forward in it
            stack.enter_context(_put(network, _FORWARD, network.forward, interceptor))
        yield


@contextmanager
def _put(network: nn.Module, name: str, original: Callable[..., Any], interceptor: Interceptor) -> Iterator[None]:
    attributes = network.__dict__
    shadowed = attributes.get(name)
    attributes[name] = _Interceptor(network, name, original, shadowed, interceptor)
    try:
        yield
    finally:
        if shadowed is None:
            attributes.pop(name, None)
        else:
            attributes[name] = shadowed


class StandIn:
    """What stands in an object's dictionary in place of one of its methods.

    A deep copy of the object gets the method itself, bound to the copy, and so does one that is unpickled.

    Args:
        owner: the object.
        name: the method's.
        original: what is called by that name otherwise.
        shadowed: what was in the dictionary before, or None.
        run: what is called instead.
    """

    def __init__(
        self, owner: Any, name: str, original: Callable[..., Any], shadowed: Any, run: Callable[..., Any]
    ) -> None:
        functools.update_wrapper(self, original)  # with the signature, which Lightning inspects
        self.owner = owner
        self.name = name
        self.original = original
        self.shadowed = shadowed
        self.run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self.shadowed is not None:
            return copy.deepcopy(self.shadowed, memo)
        return MethodType(getattr(type(self.owner), self.name), memo.get(id(self.owner), self.owner))

    def __reduce__(self) -> Any:
        return getattr, (self.owner, self.name)


class _Interceptor(StandIn):
    """In place of a network's call or its forward."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        called = _called_module()
        if called is not None and called is not self.owner:  # a shallow copy, as meta-learning makes them
            own: Any = type(called)._call_impl if self.name == _WHOLE else type(called).forward
            return own(called, *args, **kwargs)
        return self.run(self.original, self.name == _WHOLE, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return None if self.shadowed is None and self.name == _WHOLE else super().__deepcopy__(memo)

    def __reduce__(self) -> Any:
        return (type(None), ()) if self.shadowed is None and self.name == _WHOLE else super().__reduce__()


def _called_module() -> nn.Module | None:
    """The module whose call has led here, where `nn.Module` itself is the caller: only there can it be seen."""
    caller = sys._getframe(2)
    if caller.f_code.co_filename != _MODULE_FILE:
        return None
    called = caller.f_locals.get("self")
    return called if isinstance(called, nn.Module) else None


_MODULE_FILE = nn.Module.__call__.__code__.co_filename
