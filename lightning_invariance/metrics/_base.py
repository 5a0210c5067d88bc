"""What the metrics share: sums over samples in double precision, states that survive empty ranks, standard errors."""

from __future__ import annotations

import inspect
import re
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE
from torchmetrics.wrappers import BootStrapper

from lightning_invariance._checks import check_choice, check_same_device
from lightning_invariance._messages import warn
from lightning_invariance.functional._orbit_values import REDUCTIONS, OrbitValues, Reduction

NanStrategy = Literal["error", "warn", "ignore"]


class Estimate(NamedTuple):
    """A measure and how well the samples pin it down.

    Attributes:
        value: the measure.
        standard_error: the standard deviation of `value` over draws of the samples (not over pairs of a sample and
            an element, which are no independent draws). NaN with fewer than two samples.
    """

    value: Tensor
    standard_error: Tensor

    def _repr_html_(self) -> str:
        """A table, as notebooks show it."""
        from lightning_invariance.report._notebook import estimate_html  # a room further right, which imports this one

        return estimate_html(self)


class SampleCounts(NamedTuple):
    """How many samples a measure rests on.

    Attributes:
        measured: those that are in it.
        not_finite: those left out as something of them, in some pose, is NaN or infinite.
        undefined: those left out as it is undefined of them: a norm is 0, or nothing is left to compare.
    """

    measured: int
    not_finite: int
    undefined: int

    @property
    def total(self) -> int:
        """All that it was given."""
        return sum(self)


def gather_states(state: Tensor, group: Any | None = None) -> list[Tensor]:
    """Gathers a state from all processes; sums of one that has seen no sample yet get the shape of the others."""
    # Values kept sample by sample have one dimension, sums have more.
    if state.ndim == 1:
        values: list[Tensor] = gather_all_tensors(state, group)
        return values
    # A module cast with `to` (Lightning's "bf16-true") casts sums too until they are first added to: all processes
    # must send the same precision.
    return list(torch.broadcast_tensors(*gather_all_tensors(state.double(), group)))


def dim_of_samples(name: str) -> int:
    """The dimension of the samples in an input of a measure, by its name."""
    return int(name in ("valid", "lie_derivative") or name.startswith(("orbit_", "perturbed_")))


class InvarianceMetric(Metric):
    """A torchmetrics `Metric` over orbits.

    States are sums and counts, float64, named after the class and its options, so that a `MetricCollection` never
    takes two measures for one. Samples with NaN or infinite input are counted without waiting for the device and dealt
    with in `compute`.
    """

    is_differentiable: bool = False
    full_state_update: bool = False
    _measure: str
    """The measure's name in messages."""

    def __init__(self, *, reduction: Reduction, nan_strategy: NanStrategy, variant: str = "", **kwargs: Any) -> None:
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("nan_strategy", nan_strategy, ("error", "warn", "ignore"))
        kwargs.setdefault("dist_sync_fn", gather_states)
        super().__init__(**kwargs)
        self.reduction: Reduction = reduction
        self.nan_strategy: NanStrategy = nan_strategy
        snake = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        self._state_prefix = "_".join(part for part in (snake, variant, reduction) if part)
        self._motions: int | None = None
        self._in_forward = False
        self.counts: SampleCounts | None = None
        """How many samples the last value rests on, over all processes; None before there is one."""

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_bootstrap()
        return super().__getstate__()

    def _refuse_bootstrap(self) -> None:
        """Raises where a `BootStrapper` copies the metric.

        It draws from the first dimension of every input, which would draw elements and not samples of some. What comes
        of that is an index error, or a number that means nothing, and the metric itself would see no difference.
        """
        names = [name for name in inspect.signature(self.update).parameters if dim_of_samples(name)]
        frame = sys._getframe(1) if names else None
        while frame is not None:
            if frame.f_code is BootStrapper.__init__.__code__:
                raise ValueError(
                    f"Expected `base_metric` of BootStrapper to have the samples in the first dimension of every input "
                    f"but {type(self).__name__} takes {names[0]!r}, which has them in its second: "
                    "`compute_with_error` gives the standard error over samples, without drawing."
                )
            frame = frame.f_back

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Adds a batch and gives its own value; see `torchmetrics.Metric`."""
        self._in_forward = True  # it resets the states to see the batch alone, and adds the others again
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._in_forward = False

    def reset(self) -> None:
        """Forgets everything seen."""
        for name, default in self._defaults.items():
            if isinstance(default, list):
                setattr(self, name, [])  # torchmetrics empties the list itself, which `Running` has taken for its own
        super().reset()
        if not self._in_forward:
            self._motions = None

    def _check_batch(self, values: Tensor, motions: int, state: str) -> None:
        """Raises where a batch cannot be added: it is elsewhere, or of another group (one column would broadcast)."""
        check_same_device("logits", values, getattr(self, state).device, f"{type(self).__name__}'s states")
        if self.reduction != "element":
            return
        if self._motions not in (None, motions):
            raise ValueError(
                f"Expected a batch of {self._motions} elements besides the identity, as those before, with "
                f"reduction='element' but got {motions}: reset the metric before another group."
            )
        self._motions = motions

    def compute(self) -> Tensor:
        """The measure over everything seen since the last reset.

        Returns:
            A scalar, ``(|G| - 1,)`` with ``reduction="element"``, or one value a sample with ``reduction="none"``. NaN,
            with a warning, where it is undefined.

        Raises:
            RuntimeError: if a sample was not finite and ``nan_strategy="error"``.
        """
        return self._estimate().value

    def compute_with_error(self) -> Estimate:
        """The measure and its standard error over samples; across processes, like `compute`, where there are several.

        Returns:
            An `Estimate`, both parts of the shape that `compute` gives.

        Raises:
            RuntimeError: if a sample was not finite and ``nan_strategy="error"``.
            ValueError: with ``reduction="none"``, which estimates nothing.
        """
        if self.reduction == "none":
            raise ValueError("Expected `reduction` to be 'mean' or 'element' for a standard error but got 'none'.")
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return self._estimate()

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plots one value or several.

        Args:
            val: what `compute` or `forward` gave, or a sequence of those; the present value if None.
            ax: the axes to draw on.

        Returns:
            The figure and its axes.

        Raises:
            ModuleNotFoundError: if matplotlib is not installed.
        """
        return self._plot(val, ax)

    @abstractmethod
    def _estimate(self) -> Estimate:
        """The value and its standard error from the states."""

    def _report(self, samples: Tensor, undefined: Tensor, nonfinite: Tensor) -> None:
        """Deals with samples that were left out of the sums."""
        bad, lacking, total = int(nonfinite), int(undefined), int(samples + undefined + nonfinite)
        self.counts = SampleCounts(int(samples), bad, lacking)
        if bad and self.nan_strategy == "error":
            raise RuntimeError(f"{self._measure}: {bad} of {total} samples held NaN or infinite values.")
        if bad and self.nan_strategy == "warn":
            warn(f"{self._measure}: {bad} of {total} samples held NaN or infinite values and are left out.")
        if lacking:
            warn(
                f"{self._measure} is undefined for {lacking} of {total} samples (a norm is 0, or nothing is left "
                "to compare): they are left out."
            )
        if total == bad + lacking:
            warn(f"{self._measure} of no samples is undefined: NaN.")


def concatenated(kept: Tensor | list[Tensor], device: torch.device) -> Tensor:
    """Values kept sample by sample: a list, or a tensor once they are synchronised."""
    if isinstance(kept, Tensor):
        return kept
    return torch.cat(kept) if kept else torch.zeros(0, device=device)


class SampleMeanMetric(InvarianceMetric):
    """A measure that is a mean over samples.

    One state: the rows are the sums of the values and of their squares, and the numbers of samples kept, undefined and
    not finite; one column, or one for each element. Starting from a single column of zeros, which broadcasts, a
    process that has seen nothing can be added to others. With ``reduction="none"`` the values themselves are kept
    besides.
    """

    def __init__(self, *, reduction: Reduction, nan_strategy: NanStrategy, variant: str = "", **kwargs: Any) -> None:
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, variant=variant, **kwargs)
        self._sums = f"{self._state_prefix}_sums"
        self._values = f"{self._state_prefix}_values"
        self.add_state(self._sums, torch.zeros(5, 1, dtype=torch.float64), dist_reduce_fx="sum")
        if reduction == "none":
            self.add_state(self._values, [], dist_reduce_fx="cat")
        self._rows: list[Tensor] | None = None  # takes each sample's summands instead of the sums, where it is a list

    @contextmanager
    def summands(self) -> Iterator[list[Tensor]]:
        """Updates in the block add nothing; what each sample would have added is in the list, ``(B, 5, columns)``."""
        rows: list[Tensor] = []
        self._rows = rows
        try:
            yield rows
        finally:
            self._rows = None

    def add_sums(self, batch: Tensor) -> None:
        """Adds sums of such rows."""
        # Not in place: a state that was reset in inference mode could not be written outside of it.
        setattr(self, self._sums, getattr(self, self._sums) + batch)

    def _add(self, values: OrbitValues, finite: Tensor) -> None:
        """Adds a batch's values; `finite` says whose input was finite, shape ``(B,)``."""
        self._check_batch(values.per_sample, len(values.per_element), self._sums)
        defined = ~values.per_sample.isnan()
        kept = (finite & defined)[:, None]
        columns = values.per_element.T if self.reduction == "element" else values.per_sample[:, None]
        summands = torch.where(kept, columns.double(), 0.0)
        counts = torch.stack([kept[:, 0], finite & ~defined, ~finite])
        if self._rows is not None:
            each = counts.T.double()[..., None].expand(-1, 3, summands.shape[1])
            self._rows.append(torch.cat([torch.stack([summands, summands.square()], dim=1), each], dim=1))
            return
        sums = torch.stack([summands.sum(dim=0), summands.square().sum(dim=0)])
        self.add_sums(torch.cat([sums, counts.sum(dim=1).double()[:, None].expand(3, sums.shape[1])]))
        if self.reduction == "none":
            getattr(self, self._values).append(torch.where(finite, values.per_sample, torch.nan).to(self.dtype))

    def _estimate(self) -> Estimate:
        sums: Tensor = getattr(self, self._sums)
        total, squares, samples = sums[0], sums[1], sums[2]
        self._report(sums[2, 0], sums[3, 0], sums[4, 0])
        if self.reduction == "none":
            values = concatenated(getattr(self, self._values), sums.device)
            return Estimate(values, torch.full_like(values, torch.nan))
        mean = total / samples  # 0 / 0 is NaN: undefined without samples
        variance = (squares - samples * mean.square()).clamp_min(0.0) / (samples - 1)
        error = (variance / samples).sqrt().masked_fill(samples < 2, torch.nan)
        result = Estimate(mean.float(), error.float())
        return result if self.reduction == "element" else Estimate(result.value[0], result.standard_error[0])
