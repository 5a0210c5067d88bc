"""Runs a network over the orbit of the input of one of its own calls, as that call ran it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from lightning_invariance._arguments import Arguments
from lightning_invariance._isolation import RandomState, is_batch_coupled, preserved_buffers, preserved_random_state
from lightning_invariance._locate import OutputReader
from lightning_invariance._output_action import OutputMotion
from lightning_invariance.actions import Action, Flow
from lightning_invariance.callbacks._calls import NetworkCall, are_close
from lightning_invariance.lie import DirectionalDerivative, OutputFlow, lie_derivatives
from lightning_invariance.orbit import doubted, orbit_of
from lightning_invariance.outputs import OrbitOutputs
from lightning_invariance.saliency import Network, Saliency, predicted_class


@dataclass(frozen=True)
class OrbitOfCall:
    """A call of a network in a training step, to be repeated for group elements without leaving a trace.

    Running statistics and random streams stay as the step alone would leave them, and random numbers (dropout masks)
    are those of the call for every element. Gradients flow.

    Attributes:
        network: what was called.
        arguments: with what.
        call: what is known of the call; None where it could not be seen.
        action: the group.
        output: how the output moves when the input does.
        reader: takes the logits out of the network's output.
        max_batch: the most samples in one forward; if set, nothing is kept for the backward, which runs it again.
        coupled: whether samples are known to depend on others in their batch.
    """

    network: nn.Module
    arguments: Arguments
    call: NetworkCall | None
    action: Action
    output: OutputMotion
    reader: OutputReader
    max_batch: int | None = None
    coupled: bool = False

    def differs(self, logits: Tensor, element: int) -> Literal["alone", "together", None]:
        """Whether f(x), run again, is something else than what the call gave.

        Returns:
            ``"together"`` if it is so only where elements are stacked: samples depend on others in their batch;
            ``"alone"`` if it is so in any case; else None.
        """
        x = self.arguments.x
        with preserved_buffers(self.network), preserved_random_state(x.device):
            if not self._apart():
                stacked = orbit_of(self._run, x, self.action, [element], max_batch=self.max_batch).logits
                if are_close(stacked, logits):
                    return None
            alone = self._repeater()(x.clone())
        if not are_close(alone, logits):
            return "alone"
        return None if self._apart() else "together"

    def outputs(self, elements: list[int], base_logits: Tensor | None) -> OrbitOutputs:
        """f(x), run only where it is not given, and f(gx), brought back."""
        x = self.arguments.x
        # One element at a time where they must not be stacked.
        apart = self._apart()
        run = self._repeater() if apart else self._run
        with preserved_buffers(self.network), preserved_random_state(x.device):
            return orbit_of(
                run if self.max_batch is None else self._recomputed(run),
                x,
                self.action,
                elements,
                on_output=None if self.output.stays else self._on_output,
                base_logits=base_logits,
                max_batch=len(x) if apart else self.max_batch,
            )

    def gradient_maps(self, elements: list[int], base_logits: Tensor | None) -> OrbitOutputs:
        """The outputs with gradients of the class predicted on x: m(x) and g⁻¹ m(gx), differentiable.

        f(x) is run again: its own call recorded no gradient of the input.
        """
        x = self.arguments.x
        if not x.is_floating_point():
            raise ValueError(f"Expected the input to be floating point, to have a gradient, not {x.dtype}.")
        with preserved_buffers(self.network), preserved_random_state(x.device):
            repeat = self._repeater()
            if base_logits is None:
                with torch.no_grad():
                    base_logits = repeat(x)
            if base_logits.ndim != 2:
                raise ValueError(
                    f"Expected logits of shape (B, classes) for penalty='saliency' but got {tuple(base_logits.shape)}."
                )
            return orbit_of(
                repeat,
                x,
                self.action,
                elements,
                base_logits=base_logits,
                saliency=_DifferentiableGradient(),
                target=predicted_class(base_logits),
                max_batch=len(x),  # one element at a time: the graph of a gradient is large
            )

    def lie_derivatives(
        self, flow: Flow, output_flow: OutputFlow, generators: Sequence[int], derivative: DirectionalDerivative
    ) -> Tensor:
        """The Lie derivatives along some generators, ``(k, B, ...)``, differentiable; each takes a run of its own."""
        x = self.arguments.x
        if not x.is_floating_point():
            raise ValueError(f"Expected the input to be floating point, to be differentiated, not {x.dtype}.")
        with preserved_buffers(self.network), preserved_random_state(x.device):
            repeat = self._repeater()

            def run(moved: Tensor) -> Tensor:
                with preserved_buffers(self.network):  # all runs begin with the same
                    return repeat(moved)

            _, slopes = lie_derivatives(run, x, flow, generators, output_flow, derivative, differentiable=True)
        return slopes

    @property
    def has_independent_samples(self) -> bool:
        """Whether samples are known not to depend on each other."""
        return not self.coupled and not is_batch_coupled(self.network)

    def doubts(self, logits: Tensor) -> str | None:
        """Whether the output moves otherwise than was said; see `doubted`."""
        x = self.arguments.x
        repeat = self._repeater()

        def run(moved: Tensor) -> Tensor:
            try:
                return repeat(moved)
            except RuntimeError as error:
                # Networks that differentiate inside (forces from energies) need a graph where nobody else does.
                if "does not require grad" not in str(error):
                    raise
                with torch.enable_grad():
                    return repeat(moved.detach().clone()).detach()

        with torch.no_grad(), preserved_buffers(self.network), preserved_random_state(x.device):
            move = self._on_output(logits)
            return None if move is None else doubted(run, x, logits.detach(), self.action, move)

    def _on_output(self, logits: Tensor) -> Action | None:
        return self.output.on(self.action, self.arguments.x, logits, self.reader.packed())

    def _apart(self) -> bool:
        """Whether elements must not be stacked: they would share batch statistics, or draw other masks than x did."""
        return (
            self.coupled
            or self.call is None
            or self.call.drew_random_numbers
            or is_batch_coupled(self.network)
            or self.arguments.has_other_tensors
        )

    def _repeater(self) -> Callable[[Tensor], Tensor]:
        """Runs the network with the random numbers that the call had."""
        start = self.call.random_state if self.call is not None else RandomState(self.arguments.x.device)

        def repeat(x: Tensor) -> Tensor:
            start.restore()
            return self._run(x)

        return repeat

    def _recomputed(self, run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A run that keeps its input alone: the backward, in which no trace must be left either, runs it again."""

        def traceless(x: Tensor) -> Tensor:
            with preserved_buffers(self.network), preserved_random_state(x.device):
                return run(x.clone())  # a network may write into its input, which is needed twice

        def light(x: Tensor) -> Tensor:
            # Early stopping raises inside the user's forward; it is switched off.
            with set_checkpoint_early_stop(False):
                logits: Tensor = checkpoint(traceless, x, use_reentrant=False, preserve_rng_state=False)
            return logits

        return light

    def _run(self, moved: Tensor) -> Tensor:
        x = self.arguments.x
        if moved.shape == x.shape and moved.stride() != x.stride():
            moved = torch.empty_like(x).copy_(moved)  # dropout draws its masks in the order of memory
        args, kwargs = self.arguments.with_input(moved)
        run = self.network if self.call is None else partial(self.call.repeat, self.network)
        return self.reader.read(run(*args, **kwargs), len(moved))


class _DifferentiableGradient(Saliency):
    """The gradient of the target's logit, with a graph of its own."""

    def attribute(
        self, network: Network, x: Tensor, target: Tensor | None = None, max_batch: int | None = None
    ) -> tuple[Tensor, Tensor]:
        assert target is not None
        leaf = x.detach().requires_grad_()
        logits = network(leaf)
        (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf, create_graph=True)
        return logits, gradient
