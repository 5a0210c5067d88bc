"""The orbit share of a layer's activations: sums over batches, none of which grows with the number of elements."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_invariance.functional._orbit_values import ROUNDING_STEPS

#: What float32 sums over a batch may be wrong by, of their size.
_SUMMING = 2.0**-19

#: So many values of a batch are worked on at a time on a CPU: few enough to stay in its cache.
_TOGETHER = 1 << 16


class OrbitMean:
    """The mean over the elements seen so far, at each sample, and the squared distances from it (Welford, 1962).

    What is added to the sums are squares of differences, so that an exactly invariant layer reads 0 and no rounding.

    Args:
        first: the activations of one element, shape ``(B, ...)``.
    """

    def __init__(self, first: Tensor) -> None:
        self.dtype = first.dtype
        precision = torch.promote_types(first.dtype, torch.float32)
        self.mean = first.detach().to(precision, copy=True, memory_format=torch.contiguous_format)
        self.within = torch.zeros(len(first), dtype=torch.float64, device=first.device)
        self.count = 1
        self.norms = self.mean.new_empty(len(first))
        blocks = _blocks(self.mean)
        scratch = torch.empty_like(self.mean[blocks[0]])
        # Rows, and for these the means, what they are compared in, and where norms go.
        self.blocks = [(rows, self.mean[rows], scratch[: rows.stop - rows.start], self.norms[rows]) for rows in blocks]

    def restart(self, first: Tensor) -> OrbitMean:
        """The same memory for another batch, if it fits."""
        if self.mean.shape != first.shape or self.dtype != first.dtype or self.mean.device != first.device:
            return OrbitMean(first)
        self.mean.copy_(first)
        self.within.zero_()
        self.count = 1
        return self

    def copy_rows(self, start: int) -> OrbitMean:
        """The same of the samples from `start` alone."""
        other = OrbitMean(self.mean[start:])
        other.dtype, other.count = self.dtype, self.count
        other.within = self.within[start:].clone()
        return other

    def add(self, values: Tensor) -> None:
        """Adds the activations of another element."""
        self.begin()
        for number, (rows, *_) in enumerate(self.blocks):
            self.add_block(number, values if len(self.blocks) == 1 else values[rows])
        self.end()

    def begin(self) -> None:
        """Another element, which comes block by block."""
        self.count += 1

    def add_block(self, number: int, values: Tensor) -> None:
        """Adds the element's activations of the samples of a block."""
        _, mean, difference, norms = self.blocks[number]
        torch.sub(values, mean, out=difference)
        torch.linalg.vector_norm(difference.flatten(1), dim=1, out=norms)
        mean.add_(difference, alpha=1 / self.count)

    def end(self) -> None:
        """After the last block."""
        self.within += self.norms.double().square_() * ((self.count - 1) / self.count)


def _blocks(values: Tensor) -> list[slice]:
    samples = len(values)
    if values.device.type != "cpu" or not samples:
        return [slice(0, samples)]
    step = max(1, _TOGETHER // max(values[0].numel(), 1))
    return [slice(start, min(start + step, samples)) for start in range(0, samples, step)]


@dataclass(frozen=True)
class Share:
    """An orbit share, and what it rests on.

    Attributes:
        value: W / (W + V); NaN where V is 0 up to rounding, or something is not finite.
        standard_error: over samples.
        variance: W + V.
        square: the mean square of the activations, added up over a sample's.
        note: why it is NaN; nothing otherwise.
    """

    value: float
    standard_error: float
    variance: float
    square: float
    note: str = ""


class ShareSums:
    """Sums over samples of what an orbit share is made of."""

    def __init__(self) -> None:
        self.samples = 0
        self._mean: Tensor | None = None  # of the orbits' means, float64, one sample's activations large
        self._between: Tensor | None = None  # squared distances from it, added up
        self._within: Tensor | None = None
        # Sums of w², w v and v² for the standard error, v being the distances from the mean so far.
        self._products: Tensor | None = None
        self._dtype = torch.float32

    @property
    def shape(self) -> torch.Size | None:
        """The shape of a sample's activations; None before the first."""
        return None if self._mean is None else self._mean.shape

    def add(self, orbit: OrbitMean) -> None:
        """Adds a batch, all of whose elements have been seen."""
        samples = len(orbit.mean)
        if not samples:
            return
        rows = orbit.mean.reshape(samples, -1)
        centre = (rows.new_ones(samples) @ rows).double().div_(samples)
        within = orbit.within / orbit.count
        total = self.samples + samples
        if self._mean is None or self._between is None or self._within is None or self._products is None:
            mean, moved = centre, centre.new_zeros(())
            self._between = centre.new_zeros(())
            self._within, self._products = centre.new_zeros(()), centre.new_zeros(3)
        else:
            step = (centre - self._mean.reshape(-1)) * (samples / total)
            mean, moved = self._mean.reshape(-1) + step, step.square().sum()
        reference = mean.to(rows.dtype)
        for _, some, difference, norms in orbit.blocks:
            torch.sub(some.flatten(1), reference, out=difference.flatten(1))
            torch.linalg.vector_norm(difference.flatten(1), dim=1, out=norms)
        between = orbit.norms.double().square_()
        self._between = self._between + self.samples * moved + between.sum()
        self._within = self._within + within.sum()
        products = torch.stack([within.square().sum(), (within * between).sum(), between.square().sum()])
        self._products = self._products + products
        self._mean = mean.reshape(orbit.mean.shape[1:])
        self._dtype = orbit.dtype
        self.samples = total

    def share(self) -> Share:
        """The share of all samples so far."""
        nan = float("nan")
        if self._mean is None or self._between is None or self._within is None or self._products is None:
            return Share(nan, nan, nan, nan, "no sample was measured")
        n = self.samples
        within, between = float(self._within) / n, float(self._between) / n
        square = within + between + float(self._mean.square().sum())
        variance = within + between
        if not square < float("inf"):
            return Share(nan, nan, nan, nan, "its activations are not finite")
        if n < 2:
            return Share(nan, nan, variance, square, "a single sample has no variance between orbits")
        if not between > square * max(ROUNDING_STEPS * torch.finfo(self._dtype).eps, _SUMMING) ** 2:
            return Share(nan, nan, variance, square, "its activations are the same for all samples")
        ww, wv, vv = (float(product) / n for product in self._products)
        # The share's differential in W and V (the delta method).
        spread = (
            between**2 * (ww - within**2)
            - 2 * between * within * (wv - within * between)
            + within**2 * (vv - between**2)
        )
        error = (max(spread, 0.0) / (n - 1)) ** 0.5 / variance**2
        return Share(within / variance, error, variance, square)
