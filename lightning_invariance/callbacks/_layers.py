"""Measures in every validation and test epoch which layer breaks invariance or equivariance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_invariance._checks import check_count
from lightning_invariance._isolation import full_precision, undisturbed
from lightning_invariance._locate import InputSpec, OutputReader
from lightning_invariance._messages import errors_of
from lightning_invariance._output_action import OutputAction
from lightning_invariance.actions import Action, Flow
from lightning_invariance.actions._flow import as_action
from lightning_invariance.callbacks._base import is_sharded
from lightning_invariance.callbacks._calls import CallSpec, NetworkCall
from lightning_invariance.callbacks._epochs import EpochMonitor, LoaderPlace
from lightning_invariance.evaluation._draws import output_for_measuring
from lightning_invariance.evaluation._layers import (
    LayerEvaluator,
    LayerResults,
    LayerRow,
    Layers,
    check_layer_options,
)


class LayerMonitor(EpochMonitor):
    r"""Measures and logs each layer's orbit share, in each validation and test epoch, and says which layer breaks.

    Logged as ``val/orbit_share/<layer>`` and ``test/orbit_share/<layer>``: the layer's error, which is the smallest of
    the orbit shares of its activations as they are, moved back, and moved back with the best permutation of channels;
    see `evaluate_layers`. A layer that is called again has ``/call1`` behind it. What breaks is said when it is another
    layer than before.

    The network runs in eval mode and without autocast. A monitor leaves training as it was bit for bit. It measures in
    a single process: permutations are found on the first samples, which several processes do not share.

    Args:
        action: the group. Elements that are drawn are drawn with a seed that no training callback uses.
        layers: which modules: their names in the network, or a function of name and module; by default all calls of
            modules in which no other module is called.
        layer_actions: how the outputs of some layers move, by the layers' names; as for `evaluate_layers`.
        samples: how many samples of each data loader, from the first, are measured. A batch of which no part can be run
            counts as a whole.
        every_n_epochs: measures in every n-th training epoch only (validation outside of ``fit`` and tests always).
        floor: up to where an error is none, in place of the one that follows from the precision.
        max_channels: the most channels, or flat features, that are matched; 0 for none.
        network: the name of the submodule whose layers are measured; the module's own forward by default.
        input: where the network's arguments hold the input, as for `InvarianceMonitor`.
        call: which of several calls of the network in a step is measured: an index, ``"last"``, or ``"all"``; the only
            one if None.
        max_batch: the most samples that are run together.
        prefix: put before the names that are logged, to tell two monitors apart.

    Attributes:
        history: a `MonitorRecord` for each epoch and data loader, in order.
        results: the `evaluation.LayerResults` of the same epochs and data loaders, with all that was measured.

    Raises:
        ValueError: if an argument has a wrong type or value; before training, if there are several processes, or
            parameters are sharded; in the first validation step, if the step is compiled as a whole, the group cannot
            act on the input, or network, input or layers cannot be found.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_invariance import C4, LayerMonitor
        >>> monitor = LayerMonitor(C4(), every_n_epochs=5)
        >>> trainer = Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False)
    """

    _name = "LayerMonitor"
    action: Action

    def __init__(
        self,
        action: Action | Flow,
        *,
        layers: Layers = None,
        layer_actions: Mapping[str, OutputAction] | None = None,
        samples: int = 64,
        every_n_epochs: int = 1,
        floor: float | None = None,
        max_channels: int = 1024,
        network: str | None = None,
        input: InputSpec = None,
        call: CallSpec = None,
        max_batch: int | None = None,
        prefix: str | None = None,
    ) -> None:
        action = as_action(action)
        check_count("samples", samples)
        if max_batch is not None:
            check_count("max_batch", max_batch)
        check_layer_options(layers, layer_actions, floor, max_channels)
        if layer_actions:
            output_for_measuring(dict(layer_actions), action, "layer_actions")
        super().__init__(action, every_n_epochs, network=network, input=input, logits=None, call=call, prefix=prefix)
        self.layers = layers if layers is None or callable(layers) else tuple(layers)
        self.layer_actions = layer_actions
        self.samples = samples
        self.floor = floor
        self.max_channels = max_channels
        self.max_batch = max_batch
        self.results: list[LayerResults] = []
        self._given_action = action
        self._loaders: list[_Loader] = []
        self._last: object = _NOTHING

    def logged_names(self) -> tuple[str, ...]:
        """The names that it logs by, without stage and prefix."""
        return ("orbit_share/<layer>",)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with errors_of(self._name):
            if stage in self._stages:
                if trainer.world_size > 1:
                    raise ValueError(
                        f"Expected a single process, since permutations of channels are found on the first samples, "
                        f"but got {trainer.world_size}: measure a checkpoint with `evaluate_layers` instead."
                    )
                self._evaluator(pl_module)  # wrong names fail before any work is done
        super().setup(trainer, pl_module, stage)

    def _check_strategy(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_sharded(trainer):
            raise ValueError(
                f"Expected a strategy that keeps the network's parameters whole but got "
                f"{type(trainer.strategy).__name__}: measure a checkpoint with `evaluate_layers` instead."
            )

    def _evaluator(self, pl_module: LightningModule) -> LayerEvaluator:
        return LayerEvaluator(
            self._network_of(pl_module),
            self._given_action,
            layers=self.layers,
            layer_actions=self.layer_actions,
            floor=self.floor,
            max_channels=self.max_channels,
        )

    def _begin(self, trainer: Trainer, pl_module: LightningModule, loaders: int) -> None:
        with errors_of(self._name):
            self._loaders = [_Loader(self._evaluator(pl_module)) for _ in range(loaders)]

    def _sums(self, dataloader_idx: int) -> _Loader | None:
        return self._loaders[dataloader_idx] if self._loaders else None

    def _measure(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, call: NetworkCall | None, loader: LoaderPlace
    ) -> None:
        if call is None:
            raise ValueError(
                "Expected a step that is not compiled as a whole, whose layers no hook can see, but got one that is: "
                "compile the network alone, or measure a checkpoint with `evaluate_layers`."
            )
        network, sums = self._network_of(pl_module), self._loaders[loader.index]
        arguments, _ = self._arguments_and_logits(pl_module, self.action, batch, call, _Unread(None))
        self._check_weights(pl_module, call)
        rows = len(arguments.inputs[0])
        wanted = self.samples - sums.samples
        sums.samples += rows
        if wanted <= 0 or not rows:
            return
        device = arguments.inputs[0].device

        def run(*args: Any, **kwargs: Any) -> Any:
            # Hooks run outside of the precision's own context. Autocast would make differences of its own.
            with trainer.precision_plugin.val_step_context(), full_precision(device):
                return network(*args, **kwargs)

        with undisturbed(network, device):
            kept = min(wanted, rows) if arguments.is_divisible else rows
            sums.evaluator.update(run, arguments.part(slice(kept)), max_batch=self.max_batch)
        self._findings.say(
            network=self._network_in_words(pl_module),
            call=call.in_words(),
            input=arguments.in_words(),
            group=repr(self.action),
        )

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for dataloader_idx, sums in enumerate(self._loaders):
            if not sums.evaluator.samples:
                continue
            with errors_of(self._name):
                results = sums.evaluator.results()
            shares = {f"orbit_share/{_log_name(row)}": row.error for row in results.rows}
            self._publish(trainer, pl_module, stage, dataloader_idx, len(self._loaders), shares)
            if trainer.sanity_checking:
                continue
            self.results.append(results)
            if results.breaks_at != self._last:
                self._last = results.breaks_at
                rank_zero_info(f"{self._name}, epoch {trainer.current_epoch}: {results.in_words()}")

    def _forget(self) -> None:
        self._loaders = []


_NOTHING = object()


@dataclass
class _Loader:
    evaluator: LayerEvaluator
    samples: int = 0


class _Unread(OutputReader):
    """What the network gives does not matter: it is run again."""

    def read(self, output: Any, samples: int) -> Tensor:
        return torch.zeros(samples)


def _log_name(row: LayerRow) -> str:
    call = f"/call{row.call}" if row.call else ""
    return (row.name or "self") + call + "".join(f"/{step}" for step in row.path)
