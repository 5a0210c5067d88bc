"""Measures in every validation and test epoch how strongly a network answers to changes of its input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._checks import check_choice, check_count
from lightning_invariance._containers import describe_value
from lightning_invariance._isolation import full_precision, ordinary, undisturbed
from lightning_invariance._locate import InputSpec, LogitsOf, what_stays
from lightning_invariance._random import generator_for
from lightning_invariance.actions import Action
from lightning_invariance.actions._base import check_action
from lightning_invariance.callbacks._base import is_sharded
from lightning_invariance.callbacks._calls import CallSpec, NetworkCall
from lightning_invariance.callbacks._epochs import EpochMonitor, LoaderPlace, positions_of
from lightning_invariance.evaluation import NetworkOfInput
from lightning_invariance.functional._orbit_values import OrbitValues
from lightning_invariance.metrics._base import Estimate, SampleMeanMetric
from lightning_invariance.metrics._selectivity import Selectivity
from lightning_invariance.orbit import evaluate_orbit, evaluate_perturbations
from lightning_invariance.sensitivity import jacobian_spectral_norm, layer_spectral_norms

_NAME = "SensitivityMonitor"


class SensitivityMonitor(EpochMonitor):
    r"""Measures and logs how strongly a network answers to changes of its input, in each validation and test epoch.

    Small invariance errors may come of a network that became insensitive to its input altogether, as regularization
    makes it (figure 5 of "On genuine invariance learning without weight-tying", Moskalev et al., 2023). Logged as
    ``val/<name>`` and ``test/<name>``, like the measures of `InvarianceMonitor`, beside which it is to be read:

    - ``jacobian_spectral_norm``: the mean over samples of the Jacobian's largest singular value; see
      `lightning_invariance.jacobian_spectral_norm`;
    - with an action ``selectivity``: how far the group moves the logits, over random perturbations as large, the same
      in every epoch; see `lightning_invariance.functional.selectivity`;
    - with ``layers=True`` ``spectral_norm/<layer>`` of each linear and convolutional layer; see
      `lightning_invariance.layer_spectral_norms`.

    Everything that was measured, with standard errors over samples, is in `history`. The network runs in eval mode and
    without autocast. A monitor leaves training as it was bit for bit. Under distributed sampling the samples, and the
    numbers, are those of a single process.

    Args:
        action: the group, for the selectivity; None to leave that out.
        samples: how many samples of each data loader, from the first, are measured.
        every_n_epochs: measures in every n-th training epoch only (validation outside of ``fit`` and tests always).
        layers: whether to measure the layers too.
        network: the name of the submodule whose output are the logits; the module's own forward by default.
        input: where the network's arguments hold the input: a position, a keyword or a key, or a list of those that
            change together, all floating point; by default the only tensor that the group can act on.
        logits: a function from the network's output to its logits; by default the output itself, or its ``logits``.
        call: which of several calls of the network in a step is measured: an index, ``"last"``, or ``"all"``; the only
            one if None.
        max_batch: the most samples in one forward.
        prefix: put before the names that are logged, to tell two monitors apart.

    Attributes:
        history: a `MonitorRecord` for each epoch and data loader, in order.

    Raises:
        ValueError: if an argument is none of what is expected; before training, if a strategy shares the parameters
            out among processes (FSDP, model parallel), or a process may skip validation because its loader is empty; in
            the first validation step, if the input is not floating point, the group cannot act on it, or network, input
            or logits cannot be found.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_invariance import C4, InvarianceMonitor, SensitivityMonitor
        >>> monitors = [InvarianceMonitor(C4()), SensitivityMonitor(C4(), samples=128)]
        >>> trainer = Trainer(callbacks=monitors, logger=False, enable_checkpointing=False)
    """

    _name = _NAME

    def __init__(
        self,
        action: Action | None = None,
        samples: int = 64,
        every_n_epochs: int = 1,
        *,
        layers: bool = False,
        network: str | None = None,
        input: InputSpec = None,
        logits: LogitsOf | None = None,
        call: CallSpec = None,
        max_batch: int | None = None,
        prefix: str | None = None,
    ) -> None:
        if action is not None:
            check_action(action)
        check_count("samples", samples)
        check_choice("layers", layers, (False, True))
        if max_batch is not None:
            check_count("max_batch", max_batch)
        super().__init__(action, every_n_epochs, network=network, input=input, logits=logits, call=call, prefix=prefix)
        self.samples = samples
        self.layers = layers
        self.max_batch = max_batch
        self._loaders: list[_LoaderSums] = []
        self._verified = False

    def logged_names(self) -> tuple[str, ...]:
        """The names that it logs by, without stage and prefix."""
        names = ["jacobian_spectral_norm"]
        names += ["selectivity"] if self.action is not None else []
        return (*names, *(["spectral_norm"] if self.layers else []))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._verified = False

    def _check_strategy(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_sharded(trainer):
            raise ValueError(
                f"{_NAME}: expected a strategy that keeps the network's parameters whole in every process, to send "
                f"several gradients through one graph, but got {type(trainer.strategy).__name__}: measure a "
                "checkpoint with `jacobian_spectral_norm` instead."
            )

    def _begin(self, trainer: Trainer, pl_module: LightningModule, loaders: int) -> None:
        self._loaders = [_LoaderSums(pl_module.device) for _ in range(loaders)]

    def _sums(self, dataloader_idx: int) -> _LoaderSums | None:
        return self._loaders[dataloader_idx] if self._loaders else None

    def _measure(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, call: NetworkCall | None, loader: LoaderPlace
    ) -> None:
        sums = self._loaders[loader.index]
        self._check_weights(pl_module, call)
        arguments, base = self._arguments_and_logits(pl_module, self.action, batch, call)
        arguments.check_max_batch(self.max_batch, _NAME)
        for each in arguments.inputs:
            if not each.is_floating_point():
                raise ValueError(
                    f"{_NAME}: expected the input to be floating point, to have a gradient, but got {each.dtype}."
                )
        if not self._verified:
            self._verified = True
            if self.action is not None:
                arguments.acting(self.action).verify(arguments.x)
                for message in what_stays(_NAME, self.input, self.action, arguments, None):
                    rank_zero_warn(message)
            self._findings.say(
                network=self._network_in_words(pl_module),
                call="" if call is None else call.in_words(),
                input=arguments.in_words(),
                logits="that are computed again" if base is None else describe_value(base),
            )
        positions, kept = positions_of(loader, sums.samples, len(arguments.x))
        sums.samples += len(arguments.x)
        wanted = [position for position in positions[:kept] if position < self.samples]
        if wanted:
            with torch.inference_mode(False):
                self._add(trainer, self._network_of(pl_module), arguments, wanted, sums)

    def _add(
        self, trainer: Trainer, module: nn.Module, arguments: Arguments, positions: list[int], sums: _LoaderSums
    ) -> None:
        """Measures the first samples of a batch; outside of inference mode, so that gradients can be had."""
        first = arguments.first(len(positions))
        x = ordinary(first.x)

        @contextmanager
        def precision() -> Iterator[None]:
            # The network's own, but for autocast: differences of nearly equal logits say nothing in half precision.
            with trainer.precision_plugin.val_step_context(), full_precision(x.device):
                yield

        network = NetworkOfInput(module, first, self.logits, _NAME, precision)
        sums.norms.update(jacobian_spectral_norm(network, x, max_batch=self.max_batch))
        if self.action is None:
            return
        action = first.acting(self.action)
        with undisturbed(network, x.device), torch.no_grad():
            outputs = evaluate_orbit(network, x, action, max_batch=self.max_batch)
            perturbed = evaluate_perturbations(
                network,
                x,
                action,
                directions=_directions(x, len(self.action) - 1, positions),
                max_batch=self.max_batch,
            )
            sums.selectivity.update(outputs.logits, outputs.orbit_logits, perturbed)

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        layers: dict[str, Estimate] = {}
        if self._loaders and self.layers:
            norms = layer_spectral_norms(self._network_of(pl_module))
            for name, norm in norms.items():
                # Weights are no samples: there is nothing to estimate an error from.
                layers[f"spectral_norm/{name}" if name else "spectral_norm"] = Estimate(
                    norm, torch.full_like(norm, torch.nan)
                )
        for dataloader_idx, sums in enumerate(self._loaders):
            # Every process takes part, whether it has seen a sample or not.
            computed = {"jacobian_spectral_norm": sums.norms.compute_with_error()}
            if self.action is not None:
                computed["selectivity"] = sums.selectivity.compute_with_error()
            self._publish(trainer, pl_module, stage, dataloader_idx, len(self._loaders), {**computed, **layers})

    def _forget(self) -> None:
        self._loaders = []


class _LoaderSums:
    """What has been seen of a data loader."""

    def __init__(self, device: torch.device) -> None:
        self.samples = 0
        self.norms = _MeanNorm().to(device)
        self.selectivity = Selectivity().to(device)


class _MeanNorm(SampleMeanMetric):
    """The mean over samples of the Jacobian's spectral norm."""

    _measure = "The Jacobian's spectral norm"

    def __init__(self) -> None:
        super().__init__(reduction="mean", nan_strategy="warn")

    def update(self, norms: Tensor) -> None:
        """Adds a batch's norms, shape ``(B,)``."""
        finite = norms.isfinite()
        self._add(OrbitValues(torch.where(finite, norms, 0.0), norms[None]), finite)


def _directions(x: Tensor, elements: int, positions: list[int]) -> Tensor:
    """Standard normal numbers, ``(elements, B, ...)``, that depend on the samples' positions in the data set alone."""
    precision = torch.promote_types(x.dtype, torch.float32)
    shape = (elements, *x.shape[1:])
    drawn = [torch.randn(shape, dtype=precision, generator=generator_for(_NAME, each)) for each in positions]
    return torch.stack(drawn, dim=1).to(x.device)
