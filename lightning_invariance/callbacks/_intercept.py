"""Runs something of ours around a network's calls, for the length of a step."""

from __future__ import annotations

import copy
import copyreg
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

#: Gets what would run, whether that is the whole call (with its hooks) or the forward alone, and the arguments.
Interceptor = Callable[..., Any]

#: The interceptors of the networks that have some, by the network's `id`.
_INTERCEPTORS: dict[int, list[Interceptor]] = {}


@contextmanager
def intercepted(network: nn.Module, interceptor: Interceptor) -> Iterator[None]:
    """Lets the interceptor run whenever the network, or its ``forward``, is called inside the block.

    Not a hook: steps often call ``self.forward(x)``, which hooks do not see, and a hook added to a network that has
    been compiled in place does not fire. Nor, where it can be helped, an instance attribute: a copy of the network that
    the step makes (a teacher, an inner loop) would take it along and run the network itself, with its weights. So the
    network gets a subclass of its class for the time.
    """
    # Compiled or scripted, or with a forward of its own already: there is no way but an instance attribute.
    name = "_compiled_call_impl" if network.__dict__.get("_compiled_call_impl") is not None else "forward"
    if name in network.__dict__ or isinstance(network, torch.jit.ScriptModule):
        with _as_instance_attribute(network, name, interceptor):
            yield
        return
    interceptors = _INTERCEPTORS.setdefault(id(network), [])
    if not interceptors:
        cls: Any = type(network)
        _set_class(network, _intercepting(cls))
    interceptors.append(interceptor)
    try:
        yield
    finally:
        interceptors.remove(interceptor)
        if not interceptors:
            del _INTERCEPTORS[id(network)]
            _set_class(network, type(network).__mro__[1])


@contextmanager
def _as_instance_attribute(network: nn.Module, name: str, interceptor: Interceptor) -> Iterator[None]:
    was_instance_attribute = name in network.__dict__
    original = getattr(network, name)
    network.__dict__[name] = functools.wraps(original)(functools.partial(interceptor, original, True))
    try:
        yield
    finally:
        if was_instance_attribute:
            network.__dict__[name] = original
        else:
            network.__dict__.pop(name, None)


def _set_class(network: nn.Module, cls: Any) -> None:
    # Not by `nn.Module.__setattr__`, which classes write anew.
    object.__setattr__(network, "__class__", cls)


@functools.lru_cache(maxsize=64)
def _intercepting(cls: Any) -> Any:
    """The class with calls that ask for interceptors. A copy has none, and is of the class itself."""

    @functools.wraps(cls.__call__)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return run_intercepted(self, functools.partial(cls.__call__, self), True, args, kwargs)

    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return run_intercepted(self, functools.partial(cls.forward, self), False, args, kwargs)

    def run_intercepted(self: nn.Module, run: Any, whole: bool, args: Any, kwargs: Any) -> Any:
        for interceptor in _INTERCEPTORS.get(id(self), ()):
            run = functools.partial(interceptor, run, whole)
        return run(*args, **kwargs)

    def as_itself(self: nn.Module, run: Callable[..., Any], *args: Any) -> Any:
        present = type(self)
        _set_class(self, cls)
        try:
            return run(self, *args)
        finally:
            _set_class(self, present)

    def reduced(self: nn.Module, protocol: Any) -> Any:
        make, arguments, *rest = as_itself(self, lambda each: each.__reduce_ex__(protocol))
        # Of `copyreg.__newobj__` pickle wants that it makes what the network is an instance of.
        return (_new if make is copyreg.__newobj__ else make, arguments, *rest)  # type: ignore[attr-defined]

    def deep_copied(self: nn.Module, memo: Any) -> Any:
        return as_itself(self, copy.deepcopy, memo)

    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    methods = {"__call__": call, "forward": forward, "__reduce_ex__": reduced, "__deepcopy__": deep_copied}
    return type(cls)(cls.__name__, (cls,), {**names, **methods})


def _new(cls: Any, *args: Any) -> Any:
    return cls.__new__(cls, *args)
