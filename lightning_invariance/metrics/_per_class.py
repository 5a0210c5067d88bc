"""Any measure, for each class of the target."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors
from torchmetrics.wrappers.abstract import WrapperMetric

from lightning_invariance._checks import check_count, check_target
from lightning_invariance._containers import describe_value
from lightning_invariance._messages import warn
from lightning_invariance.metrics._alike import lists_alike
from lightning_invariance.metrics._base import Estimate, InvarianceMetric, SampleMeanMetric, dim_of_samples


class PerClass(WrapperMetric):
    r"""Any measure, of the samples of each class alone.

    A copy of the metric for each class sees that class's samples, so that value and standard error are the measure's
    own: that of a ratio is the class's ratio. Samples whose label names no class (one to be ignored, say) are left out.
    Over several processes the result is that of a single one, also where some have seen no sample, or not all classes:
    of metrics whose states are tensors that are summed or reduced otherwise, or lists of tensors that are put in a row
    (``dist_reduce_fx="cat"``). One whose lists are reduced in another way can be computed only if all processes have as
    many entries. What a metric keeps outside of its states is each process's own.

    As input to ``update`` it takes what the metric's takes, and ``target``, the class of each sample, integers
    ``(B,)``. Samples are in the second dimension of ``valid``, ``lie_derivative`` and what begins with ``orbit_`` or
    ``perturbed_``, and in the first of everything else; `dims` says so of other names.

    Args:
        metric: the measure: any of this package, or a torchmetrics metric whose ``compute`` gives a tensor.
        num_classes: how many classes there are; by default as many as the first ``logits`` ``(B, C)`` have.
        dims: the dimension of the samples, 0 or 1, of inputs by their names.

    Raises:
        ValueError: if `metric` is no metric or has ``reduction="none"``, another argument has a wrong type or value,
            (in ``update``) labels are missing or the number of classes is not known, or (in ``compute``, over several
            processes) lists of the metric's states do not fit together.

    Example:
        >>> import torch
        >>> from lightning_invariance import LogitInvarianceError, PerClass
        >>> metric = PerClass(LogitInvarianceError())
        >>> logits, orbit_logits = torch.zeros(3, 2), torch.tensor([[[0.0, 2.0], [1.0, 1.0], [0.0, 0.0]]])
        >>> metric.update(logits, orbit_logits, target=torch.tensor([0, 1, 1]))
        >>> metric.compute()  # 2, and the mean of 1 and 0
        tensor([2.0000, 0.5000])
        >>> metric.samples
        tensor([1, 2])
    """

    def __init__(
        self, metric: Metric, num_classes: int | None = None, *, dims: Mapping[str, int] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(metric, Metric) or isinstance(metric, PerClass):
            raise ValueError(f"Expected `metric` to be a torchmetrics metric of all samples but got {metric!r}.")
        if isinstance(metric, InvarianceMetric) and metric.reduction == "none":
            raise ValueError("Expected `metric` to have the reduction 'mean' or 'element' but got 'none'.")
        if num_classes is not None:
            check_count("num_classes", num_classes)
        dims = {} if dims is None else dims
        if not isinstance(dims, Mapping) or not all(dim in (0, 1) for dim in dims.values()):
            raise ValueError(f"Expected `dims` to map names of inputs to 0 or 1 but got {dims!r}.")
        self.num_classes = num_classes
        self._dims = dict(dims)
        self._template = metric.clone()
        self._template.reset()
        self._counts = _ClassCounts()
        self._by_class = nn.ModuleList()
        self._grow(num_classes or 0)

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """Whether that is so of the measure."""
        return self._template.higher_is_better

    @property
    def plot_lower_bound(self) -> float | None:  # type: ignore[override]
        """The measure's."""
        return self._template.plot_lower_bound

    @property
    def plot_upper_bound(self) -> float | None:  # type: ignore[override]
        """The measure's."""
        return self._template.plot_upper_bound

    @property
    def metric(self) -> Metric:
        """The measure, which has seen nothing."""
        return self._template

    @property
    def samples(self) -> Tensor:
        """How many samples of each class this process has seen, ``(C,)``."""
        return self._counts.counts[1:].long()

    @property
    def left_out(self) -> int:
        """How many samples whose label names no class this process has seen."""
        return int(self._counts.counts[0])

    @property
    def inputs(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What ``update`` needs, and what it takes besides where it is there."""
        parameters = self._takes().values()
        needed = [each.name for each in parameters if each.default is inspect.Parameter.empty]
        besides = tuple(each.name for each in parameters if each.name not in needed and each.name != "target")
        return tuple(dict.fromkeys([*needed, "target"])), besides

    def _filter_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """Of what a `torchmetrics.MetricCollection` is given, what this one takes."""
        return {name: value for name, value in kwargs.items() if name in {*self._takes(), "target", "classes"}}

    def _takes(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self._template.update).parameters)

    def update(self, *args: Any, target: Tensor | None = None, classes: Tensor | None = None, **kwargs: Any) -> None:
        """Adds a batch.

        Args:
            args: what the metric's ``update`` takes.
            target: the class of each sample.
            classes: the same, where `target` is something else, which goes to the metric.
            kwargs: what the metric's ``update`` takes.
        """
        names = self._takes()
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if target is None and classes is None:
            target = given.get("target")
        elif target is not None and "target" in names:
            given["target"] = target
        classes = target if classes is None else classes
        rows = [value.shape[self._dim(name)] for name, value in given.items() if isinstance(value, Tensor)]
        check_target(classes, max(rows, default=0), "class indices")
        assert classes is not None
        if not len(self._by_class):
            self.begin(self._found_classes(given.get("logits")))
        count = len(self._by_class)
        classes = classes.detach().long()
        named = (classes >= 0) & (classes < count)
        self._counts.update(torch.where(named, classes + 1, 0), count)
        numbers = classes[named].unique().tolist()
        if isinstance(self._template, SampleMeanMetric):
            # One update for all classes: each sample's summands go to its class.
            with self._template.summands() as summands:
                self._template.update(**given)
            (each,) = summands
            sums = each.new_zeros(count, *each.shape[1:]).index_add_(0, classes[named], each[named])
            for number in numbers:
                copy = self._copy(number)
                assert isinstance(copy, SampleMeanMetric)
                copy.add_sums(sums[number])
            return
        for number in numbers:
            chosen = (classes == number).nonzero()[:, 0]
            parts = {name: self._part(name, value, chosen, len(classes)) for name, value in given.items()}
            self._copy(number).update(**parts)

    def _found_classes(self, logits: Any) -> int:
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(
                f"Expected `num_classes` to be given where `logits` are no scores of classes (B, C) but got None with "
                f"{describe_value(logits)}."
            )
        return logits.shape[1]

    def _dim(self, name: str) -> int:
        return self._dims.get(name, dim_of_samples(name))

    def _part(self, name: str, value: Any, chosen: Tensor, samples: int) -> Any:
        dim = self._dim(name)
        # A mask may be the same for all samples.
        whole = not isinstance(value, Tensor) or value.shape[dim] != samples
        return value if whole else value.index_select(dim, chosen.to(value.device))

    def _copy(self, number: int) -> Metric:
        copy = self._by_class[number]
        assert isinstance(copy, Metric)
        return copy

    def begin(self, count: int) -> None:
        """Says how many classes there are, where that is not known yet."""
        if not len(self._by_class):
            self._grow(count)

    def _grow(self, count: int) -> None:
        """Copies for so many classes, where the template is."""
        while len(self._by_class) < count:
            self._by_class.append(self._template.clone())
        self._counts.grow(count)

    def compute(self) -> Tensor:
        """The measure of each class over everything seen since the last reset.

        Returns:
            Shape ``(C,)``, or ``(C, |G| - 1)`` of a metric with ``reduction="element"``. NaN, with one warning, for
            classes without samples.
        """
        return self.compute_with_error().value

    def compute_with_error(self) -> Estimate:
        """The measure of each class and its standard error over that class's samples.

        Returns:
            An `Estimate`, both parts of the shape that `compute` gives; the error is NaN where the metric has none.
        """
        # Every process learns how many samples of each class there are in all: they compute the same copies, each of
        # which is a meeting of all processes.
        counts = self._counts.in_all(self._to_sync)
        self._grow(len(counts) - 1)
        there = counts[1:] > 0
        numbers = there.nonzero()[:, 0].tolist()
        with once_each(), lists_alike([self._copy(number) for number in numbers], self._to_sync):
            found = {number: self._estimate_of(number) for number in numbers}
            lacking = (~there).nonzero()[:, 0].tolist()
            if lacking or not len(there):
                which = f"the classes {lacking}" if len(there) else "any class"
                warn(f"Values by class are NaN where there are no samples: of {which}.")
            if counts[0] > 0:
                warn(
                    f"Labels of {int(counts[0])} of {int(counts.sum())} samples name none of {len(there)} classes: "
                    "values by class leave them out."
                )
        if not found:
            nothing = torch.full((len(there),), torch.nan, device=counts.device)
            return Estimate(nothing, nothing.clone())
        like = next(iter(found.values()))
        undefined = Estimate(*(torch.full_like(part, torch.nan) for part in like))
        each = [found.get(number, undefined) for number in range(len(there))]
        return Estimate(*(torch.stack(list(parts)) for parts in zip(*each, strict=True)))

    def _estimate_of(self, number: int) -> Estimate:
        copy = self._copy(number)
        copy._to_sync = self._to_sync
        copy._computed = None  # kept from before, it would keep this process from a meeting that the others go to
        if isinstance(copy, InvarianceMetric):
            return copy.compute_with_error()
        with warnings.catch_warnings():
            # Another process may have had all samples of the class.
            warnings.filterwarnings("ignore", "The ``compute`` method of metric .* was called before the ``update``")
            value = copy.compute()
        if not isinstance(value, Tensor):
            raise ValueError(
                f"Expected `metric` to compute a tensor but {type(copy).__name__} gives {describe_value(value)}."
            )
        value = value if value.is_floating_point() else value.float()
        return Estimate(value, torch.full_like(value, torch.nan))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Adds a batch and gives its own value."""
        self.update(*args, **kwargs)
        alone = self.clone()
        alone.reset()
        alone._to_sync = False
        alone.update(*args, **kwargs)
        value: Tensor = alone.compute()
        return value

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        self._template.reset()
        self._counts.reset()
        self._by_class = nn.ModuleList()
        self._grow(self.num_classes or 0)

    def extra_repr(self) -> str:
        return "" if self.num_classes is None else f"num_classes={self.num_classes}"


class _ClassCounts(Metric):
    """How many samples of each class there are; in front of them, how many name none."""

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=_gather_padded)
        self.add_state("counts", torch.zeros(1, dtype=torch.float64), dist_reduce_fx="sum")

    def grow(self, count: int) -> None:
        lacking = count + 1 - len(self.counts)
        if lacking > 0:
            self.counts = torch.cat([self.counts, self.counts.new_zeros(lacking)])

    def update(self, places: Tensor, count: int) -> None:
        self.grow(count)
        # Not in place: a state that was reset in inference mode could not be written outside of it.
        self.counts = self.counts.double() + torch.bincount(places, minlength=count + 1)

    def compute(self) -> Tensor:
        return self.counts

    def in_all(self, over_processes: bool) -> Tensor:
        """The counts of all processes, as many classes as the one that knows most of them."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=over_processes):
            counts: Tensor = self.counts
        return counts


def _gather_padded(state: Tensor, group: Any | None = None) -> list[Tensor]:
    """Counts of all processes, of one length: one that has seen nothing may not know how many classes there are."""
    gathered: list[Tensor] = gather_all_tensors(state.double(), group)
    longest = max(len(each) for each in gathered)
    return [torch.cat([each, each.new_zeros(longest - len(each))]) for each in gathered]


@contextmanager
def once_each(owner: str = "", unless: str | None = None) -> Iterator[None]:
    """What is warned of in the block, said once where several classes say it.

    Args:
        owner: whose it is, which is put in front.
        unless: a pattern of what is said elsewhere, and is not said here.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message, category in dict.fromkeys((str(each.message), each.category) for each in caught):
        if unless is None or not re.search(unless, message):
            warn(f"{owner}: {message}" if owner else message, category)
