"""Moving images between their pixels by the trigonometric polynomial through them: the band-limited interpolation.

Of an even number of pixels the fastest oscillation has no direction: it is interpolated by a cosine, whose derivative
at the pixels is 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: The fewest pixels over which a window falls, where the image has twice as many.
LEAST_RAMP = 8


def derivative(x: Tensor, dim: int) -> Tensor:
    """The derivative along a (negative) dimension, per pixel, of images that go on periodically."""
    size = x.shape[dim]
    frequencies = _frequencies(size, x) * _has_direction(size, x)
    spectrum = torch.fft.rfft(x, dim=dim)
    slopes: Tensor = torch.fft.irfft(spectrum * _along(1j * frequencies, dim), n=size, dim=dim)
    return slopes


def shift_change(x: Tensor, shift: Tensor, dim: int) -> Tensor:
    """What changes where values move forward along a dimension by `shift` pixels; exactly 0 where that is 0.

    Args:
        x: images ``(..., H, W)``.
        shift: how far, broadcastable to `x` with 1 in that dimension.
        dim: -1 or -2.
    """
    size = x.shape[dim]
    phases = _along(_frequencies(size, x), dim) * shift
    # The fastest oscillation of an even size: a cosine alone.
    sines = phases.sin() * _along(_has_direction(size, x), dim)
    change = torch.complex(phases.cos() - 1, -sines)
    changed: Tensor = torch.fft.irfft(torch.fft.rfft(x, dim=dim) * change, n=size, dim=dim)
    return changed


def zoom_change(x: Tensor, t: Tensor, dim: int) -> Tensor:
    """What changes where a dimension is enlarged about its middle by e^t; exactly 0 where t is 0."""
    size = x.shape[dim]
    places = torch.arange(size, dtype=torch.float64, device=x.device)
    middle = (size - 1) / 2
    start = middle + (places - middle)
    came_from = middle + (-t.double()).exp() * (places - middle)
    frequencies = _frequencies(size, x.new_zeros((), dtype=torch.float64))
    # A frequency and its negative go together; the mean and the fastest oscillation of an even size stand alone.
    counted = (1 + _has_direction(size, frequencies) * (frequencies > 0)) / size
    ends, starts, pixels = (each[:, None] * frequencies for each in (came_from, start, places))
    matrix = ((ends.cos() - starts.cos()) * counted) @ pixels.cos().T
    matrix = matrix + ((ends.sin() - starts.sin()) * counted) @ pixels.sin().T
    matrix = matrix.to(x.dtype)
    return x @ matrix.T if dim == -1 else matrix @ x


def window(height: int, width: int, share: float, like: Tensor, ratios: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """1 inside, falling smoothly to 0 at the edges over this share of the sides (8 pixels at least), ``(H, W)``.

    Args:
        height: how many places there are from top to bottom.
        width: how many there are from left to right.
        share: of the sides.
        like: of the device and dtype that the result is to have.
        ratios: how many places there are for each pixel, along both sides.
    """
    rows, columns = (
        _ramp(size / ratio / 2 - (_from_middle(size, like) / ratio).abs(), size / ratio, share)
        for size, ratio in zip((height, width), ratios, strict=True)
    )
    return (rows[:, None] * columns).to(like.dtype)


def round_window(
    height: int, width: int, share: float, like: Tensor, ratios: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """The same in the largest disc about the centre: 1 inside, 0 outside of it."""
    down, right = (_from_middle(size, like) / ratio for size, ratio in zip((height, width), ratios, strict=True))
    from_centre = torch.hypot(down[:, None], right)
    size = min(height / ratios[0], width / ratios[1])
    return _ramp(size / 2 - from_centre, size, share).to(like.dtype)


def _from_middle(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, dtype=torch.float64, device=like.device) - (size - 1) / 2


def _ramp(from_edge: Tensor, size: float, share: float) -> Tensor:
    # A ramp of fewer pixels than that has frequencies that the pixels do not.
    width = min(max(share * size, LEAST_RAMP), size / 2)
    rise = (from_edge / width).clamp(0.0, 1.0)
    # The polynomial from 0 to 1 whose first three derivatives are 0 at both ends.
    ramp: Tensor = rise**4 * (35 - 84 * rise + 70 * rise**2 - 20 * rise**3)
    return ramp


def _frequencies(size: int, like: Tensor) -> Tensor:
    frequencies: Tensor = 2 * math.pi * torch.fft.rfftfreq(size, dtype=like.dtype, device=like.device)
    return frequencies


def _has_direction(size: int, like: Tensor) -> Tensor:
    """1 for each frequency but the fastest of an even size, 0 for that one."""
    places = torch.arange(size // 2 + 1, device=like.device)
    return (2 * places != size).to(like.dtype)


def _along(values: Tensor, dim: int) -> Tensor:
    return values if dim == -1 else values[:, None]
