"""What the callbacks share: their injector's life in the trainer's, and what they say of what they found."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor, nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._locate import (
    InputSpec,
    LogitsOf,
    OutputReader,
    check_input_spec,
    check_logits_of,
    locate_in_batch,
    locate_in_call,
    resolve_network,
)
from lightning_invariance._messages import warn
from lightning_invariance._random import generator_for
from lightning_invariance.actions import Action
from lightning_invariance.callbacks._calls import CallSpec, NetworkCall, check_call_spec
from lightning_invariance.callbacks._injection import Injector, eject, inject, is_compiled


def check_network_name(network: object) -> None:
    """Raises unless `network` is a name or None."""
    if network is not None and not isinstance(network, str):
        raise ValueError(f"Expected `network` to be the name of a submodule or None but got {network!r}.")


def check_prefix(prefix: object) -> None:
    """Raises unless `prefix` is a name or None."""
    if prefix is not None and (not isinstance(prefix, str) or not prefix or prefix.strip("/") != prefix):
        raise ValueError(f"Expected `prefix` to be a name without slashes at its ends, or None, but got {prefix!r}.")


def positional_names(network: nn.Module) -> list[str]:
    """What a network's forward calls the arguments that it takes by position."""
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


@contextmanager
def without_logging(module: LightningModule) -> Iterator[None]:
    """What a forward logs in the block is not logged: it is no step's, and there are hooks where that is an error."""
    shadowed = {name: module.__dict__.get(name) for name in ("log", "log_dict")}
    module.__dict__.update(dict.fromkeys(shadowed, _do_nothing))
    try:
        yield
    finally:
        for name, value in shadowed.items():
            if value is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = value


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    return None


def place_among_peers(trainer: Trainer, callback: Callback) -> int:
    """How many callbacks of the same class come before this one."""
    return [each for each in trainer.callbacks if type(each) is type(callback)].index(callback)  # type: ignore[attr-defined]


def is_sharded(trainer: Trainer) -> bool:
    """Whether processes share the parameters out among them: then all must run the network equally often."""
    # By name: `pytorch_lightning` has classes of its own.
    return bool({"FSDPStrategy", "ModelParallelStrategy"} & {each.__name__ for each in type(trainer.strategy).__mro__})


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
    _name: str
    """What it is called in messages."""
    prefix: str | None = None
    """What is put before the names that it logs by."""

    def __init__(self, injector: Injector) -> None:
        self._injector = injector

    def logged_names(self) -> Iterable[str]:
        """The names that it logs by, without stage and prefix."""
        return ()

    @rank_zero_only
    def _warn_of(self, message: str) -> None:
        warn(f"{self._name}: {message}")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not in `on_fit_start`, which comes after the learning-rate finder and the batch-size scaler have run.
        if stage in self._stages:
            _refuse_equal_names(trainer, self)
            inject(pl_module, self._injector)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        eject(pl_module, self._injector)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # After an exception `teardown` is not called.
        eject(pl_module, self._injector)


class NetworkCallback(InjectingCallback):
    """A callback that looks at a network's own calls in the steps.

    Args:
        injector: its part in the steps.
        network: the name of the submodule whose output are the logits; the module's own forward by default.
        input: where the network's arguments hold the tensors that the group acts on.
        logits: from the network's output to its logits.
        call: which of several calls in a step is meant.
        prefix: put before the names that are logged.

    Raises:
        ValueError: if an argument has a wrong type or value.
    """

    def __init__(
        self,
        injector: Injector,
        *,
        network: str | None,
        input: InputSpec,
        logits: LogitsOf | None,
        call: CallSpec,
        prefix: str | None,
    ) -> None:
        check_network_name(network)
        check_input_spec("input", input)
        check_logits_of(logits)
        check_call_spec(call)
        check_prefix(prefix)
        super().__init__(injector)
        self.network = network
        self.input = input
        self.logits = logits
        self.call = call
        self.prefix = prefix
        self._findings = Findings(self._name)

    def _network_of(self, module: LightningModule) -> nn.Module:
        return resolve_network(module, self.network)

    def _network_in_words(self, module: LightningModule) -> str:
        return f"the forward of {type(module).__name__}" if self.network is None else f"the submodule {self.network!r}"

    def _without_call(self, module: LightningModule) -> str:
        """What to say of a step that did not call the network."""
        start = "" if self.network is None else f"{self.network}."
        inside = [start + name for name, _ in self._network_of(module).named_children()]
        children = ", ".join(repr(name) for name in inside or [name for name, _ in module.named_children()])
        return (
            f"the step of {type(module).__name__} to call {self._network_in_words(module)}, whose input and logits are "
            "needed, but saw no such call: name the submodule that the step calls with `network=` (such as "
            f"{children})."
        )

    def _arguments_and_logits(
        self, module: LightningModule, action: Action | None, batch: Any, call: NetworkCall | None, reader: OutputReader
    ) -> tuple[Arguments, Tensor | None]:
        """The network's arguments and its logits, from one of its own calls in the step.

        Inside a compiled step no call can be seen: there the input is taken from the batch, and the logits are None. So
        they are where the step has changed the output in place.

        Args:
            module: the user's module.
            action: the group, where one acts.
            batch: the step's batch.
            call: the network's call, or None where none can be seen.
            reader: takes the logits out of the output.

        Raises:
            ValueError: if there is no such tensor or no logits, or the group cannot act on it.
        """
        if call is not None:
            names = positional_names(self._network_of(module))
            arguments = locate_in_call(call.args, call.kwargs, self.input, action, names)
            self._check_action(module, arguments, action)
            logits = reader.read(call.output, len(arguments.inputs[0]))
            return arguments.joined(action), None if call.is_written_to() else logits
        assert is_compiled(module)
        located = locate_in_batch(batch, self.input, action)
        return Arguments.positional(located.inputs).joined(action), None

    def _check_action(self, module: LightningModule, arguments: Arguments, action: Action | None) -> None:
        """Raises a `ValueError` where the group cannot act on what the network was called with."""
        if action is None or len(arguments.paths) > 1:
            return
        try:
            action.check(arguments.inputs[0])
        except ValueError as error:
            raise ValueError(
                f"Expected the network to be called with what {action!r} can act on, but "
                f"{self._network_in_words(module)} was called with {arguments.in_words()}. {error} If "
                "another network or another of its arguments is meant, name it with `network=` or `input=`."
            ) from error

    def _check_weights(self, module: LightningModule, call: NetworkCall | None) -> None:
        """Raises a `ValueError` where a call ran with other weights than the network's own (a functional call)."""
        if call is None or is_sharded(module.trainer):
            return
        now = tuple(self._network_of(module).parameters())
        if len(now) != len(call.weights) or any(a is not b for a, b in zip(now, call.weights, strict=True)):
            raise ValueError(
                f"Expected {self._network_in_words(module)} to be called with its own parameters but a "
                "call was made with others (`torch.func.functional_call`, say), which are gone: choose a call of its "
                "own with `call=`."
            )


def _refuse_equal_names(trainer: Trainer, callback: InjectingCallback) -> None:
    """Lightning takes the mean of what two callbacks log by one name."""
    names = set(callback.logged_names())
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        if other is callback:
            return
        if isinstance(other, InjectingCallback) and other.prefix == callback.prefix:
            both = sorted(names & set(other.logged_names()))
            if both:
                raise ValueError(
                    f"{type(callback).__name__}: expected the names that are logged by to be its own but another "
                    f"{type(other).__name__} logs {both} too: tell them apart with `prefix=`, 'c4' for instance."
                )


class Findings:
    """Says once what a callback found in the first batch, so that a wrong guess is seen before work is lost."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._said = False

    def forget(self) -> None:
        """Before another run."""
        self._said = False

    def say(self, **found: str) -> None:
        """Says it at the first time; the names are what was found."""
        if not self._said:
            self._said = True
            parts = "; ".join(f"{name} {what}" for name, what in found.items() if what)
            rank_zero_info(f"{self._owner} found: {parts}.")
