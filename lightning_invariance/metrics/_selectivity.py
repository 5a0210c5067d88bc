"""The selectivity, accumulated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_invariance.functional._orbit_values import (
    Reduction,
    check_orbit,
    check_outputs,
    check_valid,
    finite_samples,
    flat_samples,
)
from lightning_invariance.functional._selectivity import check_perturbed, movements, ratio, warn_insensitive
from lightning_invariance.metrics._base import Estimate, InvarianceMetric, NanStrategy, concatenated


class Selectivity(InvarianceMetric):
    r"""How far the group moves the logits, against random perturbations of the same size.

    .. math::
        R = \frac{\mathbb{E}_{x, g} \, \| f(gx) - f(x) \|^2}
        {\mathbb{E}_{x, g} \, \| f(x + \epsilon_{x, g}) - f(x) \|^2},
        \qquad \| \epsilon_{x, g} \| = \| gx - x \|

    In :math:`[0, \infty)`, lower is more invariant; near 1 where the group moves the logits as anything else does; see
    `lightning_invariance.functional.selectivity`. The standard error is that of a ratio of means,
    :math:`\mathrm{Var}[a - R b] / (n \bar b^2)` for numerators a and denominators b of n samples.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, ...)``: any output.
    - ``orbit_logits``: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, ...)``.
    - ``perturbed_logits``: :math:`f(x + \epsilon_{x, g})`, shape ``(|G| - 1, B, ...)``; see `evaluate_perturbations`.
    - ``valid``: which places both poses see, bool, broadcastable to ``orbit_logits``; see `OrbitOutputs`.
      None for all.

    Args:
        reduction: ``"mean"``, ``"element"`` (one value for each element but the identity) or ``"none"`` (one a sample).
        nan_strategy: what `compute` does about samples with NaN or infinite logits: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, or (in ``update``) shapes do not match.

    Example:
        A linear network that has learnt nothing of the group:

        >>> import torch
        >>> from lightning_invariance import C4, Selectivity, evaluate_orbit, evaluate_perturbations
        >>> _ = torch.manual_seed(0)
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 200))
        >>> metric, x = Selectivity(), torch.randn(50, 1, 8, 8)
        >>> with torch.no_grad():
        ...     outputs = evaluate_orbit(network, x, C4())
        ...     metric.update(outputs.logits, outputs.orbit_logits, evaluate_perturbations(network, x, C4()))
        >>> bool((metric.compute() - 1).abs() < 0.05)
        True
    """

    higher_is_better: bool = False
    plot_lower_bound: float = 0.0
    _measure = "The selectivity"

    def __init__(self, *, reduction: Reduction = "mean", nan_strategy: NanStrategy = "warn", **kwargs: Any) -> None:
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, **kwargs)
        self._sums = f"{self._state_prefix}_sums"
        self._values = f"{self._state_prefix}_values"
        # Rows: samples, samples not finite, squares of the logits; a, b, a², b², ab. One column, which broadcasts, or
        # one for each element.
        self.add_state(self._sums, torch.zeros(8, 1, dtype=torch.float64), dist_reduce_fx="sum")
        if reduction == "none":
            self.add_state(self._values, [], dist_reduce_fx="cat")

    def update(
        self, logits: Tensor, orbit_logits: Tensor, perturbed_logits: Tensor, valid: Tensor | None = None
    ) -> None:
        """Adds a batch."""
        check_orbit(logits, orbit_logits)
        check_outputs(logits)
        check_perturbed(orbit_logits, perturbed_logits)
        check_valid(valid, orbit_logits)
        self._check_batch(logits, len(orbit_logits), self._sums)
        finite = finite_samples(logits, orbit_logits)
        finite = finite & flat_samples(perturbed_logits, before=2).isfinite().all(dim=2).all(dim=0)
        moved = movements(logits, orbit_logits, perturbed_logits, valid)
        a, b = moved.by_group.T, moved.by_noise.T
        if self.reduction != "element":
            a, b = a.mean(dim=1, keepdim=True), b.mean(dim=1, keepdim=True)
        kept = finite[:, None]
        counts = torch.stack([finite.double(), (~finite).double(), moved.squares], dim=1)[..., None].expand(
            -1, -1, a.shape[1]
        )
        columns = torch.stack([a, b, a.square(), b.square(), a * b], dim=1)
        rows = torch.cat([counts, columns], dim=1)
        usable = finite[:, None, None] | (torch.arange(8, device=rows.device) < 2)[:, None]
        # Not in place: a state that was reset in inference mode could not be written outside of it.
        setattr(self, self._sums, getattr(self, self._sums) + torch.where(usable, rows, 0.0).sum(dim=0))
        if self.reduction == "none":
            getattr(self, self._values).append(torch.where(kept, a, torch.nan)[:, 0].to(self.dtype))

    def _estimate(self) -> Estimate:
        sums: Tensor = getattr(self, self._sums)
        samples, nonfinite, squares = sums[0], sums[1], sums[2]
        self._report(samples[0], torch.zeros(()), nonfinite[0])
        a, b, aa, bb, ab = sums[3:] / samples
        value = ratio(a, b, squares / samples)
        if bool(value.isnan().any()) and samples[0] > 0:
            warn_insensitive()
        if self.reduction == "none":
            values = concatenated(getattr(self, self._values), sums.device)
            share = values / torch.where(value.isnan(), torch.nan, b)
            return Estimate(share.float(), torch.full_like(values, torch.nan).float())
        # The delta method: R̂ − R ≈ mean(a − R b) / mean(b), and a − R̂ b has mean 0.
        spread = (aa - 2 * value * ab + value.square() * bb).clamp_min(0.0)
        error = (spread / (samples - 1)).sqrt() / b
        error = error.masked_fill(samples < 2, torch.nan)
        result = Estimate(value.float(), error.float())
        return result if self.reduction == "element" else Estimate(result.value[0], result.standard_error[0])
