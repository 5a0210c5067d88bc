"""Interpolating actions against pixel coordinates written out in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from lightning_invariance.actions import SO2, AffineAction, Rotations, Scalings

Floats = npt.NDArray[np.float64]


def centred(height: int, width: int) -> tuple[Floats, Floats]:
    """The pixels' coordinates from the image's centre: to the right, and down."""
    rows, columns = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    return columns, rows


def reflected(place: Floats, size: int) -> Floats:
    """Folded back at the outer edges of the first and the last pixel."""
    folded = np.mod(place + 0.5, 2 * size)
    return np.clip(np.minimum(folded, 2 * size - folded) - 0.5, 0, size - 1)


def look_up(image: Floats, right: Floats, down: Floats, padding: str = "zeros") -> Floats:
    """Bilinear interpolation of one image at coordinates from its centre."""
    height, width = image.shape
    column, row = right + (width - 1) / 2, down + (height - 1) / 2
    if padding == "border":
        column, row = np.clip(column, 0, width - 1), np.clip(row, 0, height - 1)
    if padding == "reflection":
        column, row = reflected(column, width), reflected(row, height)
    out = np.zeros_like(column)
    left, top = np.floor(column).astype(int), np.floor(row).astype(int)
    for r, c in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        weight = (1 - np.abs(row - r)) * (1 - np.abs(column - c))
        inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        out += np.where(inside, weight * image[np.clip(r, 0, height - 1), np.clip(c, 0, width - 1)], 0.0)
    return out


def turned(image: Floats, degrees: float, padding: str = "zeros") -> Floats:
    """Counter-clockwise on the screen: the value at a pixel comes from the place turned clockwise."""
    right, down = centred(*image.shape)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    up = -down
    return look_up(image, cos * right + sin * up, -(cos * up - sin * right), padding)


def mapped(image: Floats, matrix: Floats) -> Floats:
    """The image moved by p -> A p + t, with t in halves of the width and the height."""
    height, width = image.shape
    right, down = centred(height, width)
    back = np.linalg.inv(matrix[:, :2])
    right, down = right - matrix[0, 2] * width / 2, down - matrix[1, 2] * height / 2
    return look_up(image, back[0, 0] * right + back[0, 1] * down, back[1, 0] * right + back[1, 1] * down)


def images(height: int, width: int, *leading: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*(leading or (3,)), height, width, generator=generator, dtype=torch.float64)


def one_by_one(x: Tensor, move: Callable[[Floats], Floats]) -> Tensor:
    return torch.from_numpy(np.stack([move(image) for image in x.numpy()]))


def close(got: Tensor, expected: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def test_quarter_turns_are_numpys_and_half_turns_take_any_image() -> None:
    x = images(7, 7)
    for element in range(4):
        close(Rotations(4).act(x, element), one_by_one(x, lambda image, e=element: np.rot90(image, e)))
        close(Rotations(4).invert(x, element), one_by_one(x, lambda image, e=element: np.rot90(image, -e)))
    for height, width in ((5, 8), (7, 4)):
        x = images(height, width)
        close(Rotations(2).act(x, 1), x.flip(-2, -1))


@pytest.mark.parametrize(
    ("height", "width", "padding"), [(8, 8, "zeros"), (6, 11, "border"), (9, 5, "reflection"), (5, 8, "zeros")]
)
def test_rotations_in_pixel_units(height: int, width: int, padding: str) -> None:
    x = images(height, width)
    action = Rotations(8, padding=padding)  # type: ignore[arg-type]
    moved = [one_by_one(x, lambda image, e=element: turned(image, 45 * e, padding)) for element in range(8)]
    close(action.orbit(x), torch.stack(moved))
    for element in range(1, 8):
        close(action.act(x, element), moved[element])
        close(action.invert(x, element), one_by_one(x, lambda image, e=element: turned(image, -45 * e, padding)))


def test_one_rotation_a_sample() -> None:
    x = images(6, 9, 4)
    index = torch.tensor([3, 0, 1, 4])
    moved = Rotations(5).act(x, index)
    back = Rotations(5).invert(x, index)
    for sample, element in enumerate(index.tolist()):
        close(moved[sample], torch.from_numpy(turned(x[sample].numpy(), 72 * element)))
        close(back[sample], torch.from_numpy(turned(x[sample].numpy(), -72 * element)))


def test_nearest_takes_whole_pixels() -> None:
    x = images(7, 8)
    right, down = centred(7, 8)
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    column = np.rint(cos * right - sin * down + 3.5).astype(int)
    row = np.rint(cos * down + sin * right + 3).astype(int)
    inside = (row >= 0) & (row < 7) & (column >= 0) & (column < 8)
    moved = Rotations(12, interpolation="nearest").act(x, 1)
    expected = np.where(inside, x.numpy()[:, np.clip(row, 0, 6), np.clip(column, 0, 7)], 0)
    assert torch.equal(moved, torch.from_numpy(expected))


def wave(right: Floats, down: Floats) -> Floats:
    return np.sin(0.25 * right + 0.4) * np.cos(0.2 * down - 0.1) + 0.05 * right


def test_bicubic_interpolation_of_a_smooth_function() -> None:
    right, down = centred(24, 30)
    x, radius = torch.from_numpy(wave(right, down))[None], np.hypot(right, down)

    def near(moved: Tensor, right: Floats, down: Floats, within: float) -> None:
        inside = torch.from_numpy(radius < within)
        close(moved[0, inside], torch.from_numpy(wave(right, down))[inside], atol=0.03)

    cos, sin = math.cos(math.radians(54)), math.sin(math.radians(54))
    turns, scaling = Rotations(20, interpolation="bicubic"), Scalings([1.5], interpolation="bicubic")
    near(turns.act(x, 3), cos * right - sin * down, sin * right + cos * down, 9)
    near(scaling.act(x, 1), right / 1.5, down / 1.5, 7)
    near(scaling.invert(x, 1), right * 1.5, down * 1.5, 6)


MATRICES = [[[1.1, 0.4, 0.2], [-0.3, 0.8, -0.35]], [[1.0, 0, -0.6], [0, 1.0, 0.5]], [[-1.0, 0, 0], [0, 1.0, 0]]]


@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 9)])
def test_any_affine_map(height: int, width: int) -> None:
    given = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]], *MATRICES], dtype=torch.float64)
    action, x = AffineAction(given), images(height, width)
    for element, matrix in enumerate(given.numpy().copy()):
        close(action.act(x, element), one_by_one(x, lambda image, m=matrix: mapped(image, m)))
        # In pixels the inverse is p -> A^-1 (p - t).
        back, halves = np.linalg.inv(matrix[:, :2]), np.array([width / 2, height / 2])
        shift = -back @ (matrix[:, 2] * halves) / halves
        inverse = np.concatenate([back, shift[:, None]], axis=1)
        close(action.invert(x, element), one_by_one(x, lambda image, m=inverse: mapped(image, m)))
    given.zero_()  # they were copied
    close(action.act(x, 3), x.flip(-1))


def test_scalings_enlarge_by_their_factors() -> None:
    x = images(8, 11)
    for element, factor in enumerate((0.5, 2.0), start=1):
        scaled = one_by_one(x, lambda image, f=factor: mapped(image, np.array([[f, 0, 0], [0, f, 0]])))
        close(Scalings([0.5, 2.0]).act(x, element), scaled)
    shrunk = Scalings([0.5]).act(torch.ones(1, 8, 12), 1)[0]
    assert float(shrunk.sum()) == float(shrunk[2:6, 3:9].sum()) == 24


def test_so2_turns_by_its_angles() -> None:
    before = torch.get_rng_state()
    action, x = SO2(6, seed=1), images(7, 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert action.degrees[0] == 0
    assert all(0 <= angle < 360 for angle in action.degrees)
    assert len({*action.degrees, *SO2(5, seed=4).degrees}) == 12
    for element, angle in enumerate(action.degrees):
        close(action.act(x, element), one_by_one(x, lambda image, a=angle: turned(image, a)))
