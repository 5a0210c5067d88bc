"""Measures in every validation and test epoch how strongly a network answers to changes of its input."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule

from lightning_invariance._checks import check_choice, check_count
from lightning_invariance._locate import InputSpec, LogitsOf
from lightning_invariance._output_action import OutputActions
from lightning_invariance.actions import Action, Flow
from lightning_invariance.actions._flow import as_action
from lightning_invariance.callbacks._calls import CallSpec
from lightning_invariance.callbacks._monitor import InvarianceMonitor
from lightning_invariance.metrics._base import Estimate
from lightning_invariance.sensitivity import layer_spectral_norms


class SensitivityMonitor(InvarianceMonitor):
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

    It is an `InvarianceMonitor` of these measures, which has them by name too.

    Everything that was measured, with standard errors over samples, is in `history`. The network runs in eval mode and
    without autocast. A monitor leaves training as it was bit for bit. Under distributed sampling the samples, and the
    numbers, are those of a single process.

    Args:
        action: the group, for the selectivity; None to leave that out.
        samples: how many samples of each data loader, from the first, are measured.
        every_n_epochs: measures in every n-th training epoch only (validation outside of ``fit`` and tests always).
        layers: whether to measure the layers too.
        output_action: how the output moves when the input does, for the selectivity; as for `InvarianceMonitor`.
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
        ValueError: if an argument has a wrong type or value; before training, if a strategy shares the parameters
            out among processes (FSDP, model parallel), or a process may skip validation because its loader is empty; in
            the first validation step, if the input is not floating point, the group cannot act on it, or network, input
            or logits cannot be found.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_invariance import C4, InvarianceMonitor, SensitivityMonitor
        >>> monitors = [InvarianceMonitor(C4()), SensitivityMonitor(C4(), samples=128)]
        >>> trainer = Trainer(callbacks=monitors, logger=False, enable_checkpointing=False)
    """

    _name = "SensitivityMonitor"
    action: Action | None  # type: ignore[assignment]

    def __init__(
        self,
        action: Action | Flow | None = None,
        samples: int = 64,
        every_n_epochs: int = 1,
        *,
        layers: bool = False,
        output_action: OutputActions = None,
        network: str | None = None,
        input: InputSpec = None,
        logits: LogitsOf | None = None,
        call: CallSpec = None,
        max_batch: int | None = None,
        prefix: str | None = None,
    ) -> None:
        check_count("samples", samples)
        check_choice("layers", layers, (False, True))
        super().__init__(
            action,  # type: ignore[arg-type]
            ["jacobian_spectral_norm"] if action is None else ["jacobian_spectral_norm", "selectivity"],
            every_n_epochs=every_n_epochs,
            sensitivity_samples=samples,
            output_action=output_action,
            network=network,
            input=input,
            logits=logits,
            call=call,
            max_batch=max_batch,
            prefix=prefix,
        )
        self.samples = samples
        self.layers = layers

    def _as_action(self, action: Action | Flow | None) -> Action:
        return action if action is None else as_action(action)  # type: ignore[return-value]

    def logged_names(self) -> tuple[str, ...]:
        """The names that it logs by, without stage and prefix."""
        return (*super().logged_names(), *(["spectral_norm"] if self.layers else []))

    def _besides(self, pl_module: LightningModule) -> dict[str, Estimate]:
        if not self.layers:
            return {}
        # Weights are no samples: there is nothing to estimate an error from.
        return {
            f"spectral_norm/{name}" if name else "spectral_norm": Estimate(norm, torch.full_like(norm, torch.nan))
            for name, norm in layer_spectral_norms(self._network_of(pl_module)).items()
        }
