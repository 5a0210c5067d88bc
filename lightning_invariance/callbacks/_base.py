"""What the callbacks share: their injector's life in the trainer's."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_invariance.callbacks._injection import Injector, NetworkCall, eject, inject, is_compiled
from lightning_invariance.callbacks._locate import Arguments, InputSpec, locate_input, logits_of
from lightning_invariance.callbacks._random import generator_for


def check_spec(name: str, spec: object) -> None:
    """Raises unless `spec` names a place: a position, a key or None."""
    if spec is not None and (not isinstance(spec, (int, str)) or isinstance(spec, bool)):
        raise ValueError(f"Expected `{name}` to be a position, a key or None but got {spec!r}.")


def check_network_name(network: object) -> None:
    """Raises unless `network` is a name or None."""
    if network is not None and not isinstance(network, str):
        raise ValueError(f"Expected `network` to be the name of a submodule or None but got {network!r}.")


def place_among_peers(trainer: Trainer, callback: Callback) -> int:
    """How many callbacks of the same class come before this one."""
    return [each for each in trainer.callbacks if type(each) is type(callback)].index(callback)  # type: ignore[attr-defined]


def is_sharded(trainer: Trainer) -> bool:
    """Whether processes share the parameters out among them: then all must run the network equally often."""
    # By name: `pytorch_lightning` has classes of its own.
    return bool({"FSDPStrategy", "ModelParallelStrategy"} & {each.__name__ for each in type(trainer.strategy).__mro__})


def suffix_among_peers(trainer: Trainer, callback: Callback) -> str:
    """What to put behind logged names: nothing for the first callback of its class, ``/1`` for the second and so on.

    Lightning takes the mean of what is logged under one name.
    """
    place = place_among_peers(trainer, callback)
    return f"/{place}" if place else ""


def step_generator(
    purpose: str, trainer: Trainer, callback: Callback, seed: int | None, batch_idx: int
) -> torch.Generator:
    """The random stream of a callback in one training step.

    Two callbacks of a class have streams of their own: two augmentations that drew the same numbers would not draw from
    the product of their groups.
    """
    seed = torch.initial_seed() if seed is None else seed
    place = place_among_peers(trainer, callback)
    return generator_for(purpose, place, seed, trainer.current_epoch, batch_idx, trainer.global_rank)


class InjectingCallback(Callback):
    """A callback that takes part in a module's steps from ``setup`` to ``teardown``, or until an exception."""

    _stages: tuple[str, ...] = ("fit",)

    def __init__(self, injector: Injector) -> None:
        self._injector = injector

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not in `on_fit_start`, which comes after the learning-rate finder and the batch-size scaler have run.
        if stage in self._stages:
            inject(pl_module, self._injector)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        eject(pl_module, self._injector)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # After an exception `teardown` is not called.
        eject(pl_module, self._injector)


def arguments_and_logits(
    owner: str, module: LightningModule, network: str | None, spec: InputSpec, batch: Any, call: NetworkCall | None
) -> tuple[Arguments, Tensor | None]:
    """The network's arguments and its logits, from its own call in the step.

    Inside a compiled step no call can be seen: there the input is taken from the batch, and the logits are None.

    Args:
        owner: the callback, for messages.
        module: the user's module.
        network: the name of the submodule that was watched; None for the module itself.
        spec: where the tensor is that the group acts on.
        batch: the step's batch.
        call: the network's call, or None where there was none.

    Raises:
        ValueError: if there was no call, or it has no such tensor or no logits.
    """
    if call is not None:
        return locate_input(call.args, call.kwargs, spec, owner, "the network's arguments"), logits_of(
            call.output, owner
        )
    if is_compiled(module):
        located = locate_input((batch,), {}, spec, owner, "the batch")
        return Arguments((located.x,), {}, ("args", 0)), None
    children = ", ".join(repr(name) for name, _ in module.named_children())
    looked_for = "its own forward" if network is None else f"its submodule {network!r}"
    raise ValueError(
        f"{owner}: expected the step of {type(module).__name__} to call {looked_for}, whose input and logits are "
        f"needed, but saw no such call: name the submodule that the step calls with `network=` (such as {children})."
    )
