"""Flows of images, against images whose motion is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_invariance import (
    C4,
    BrightnessFlow,
    ContrastFlow,
    Flow,
    FunctionFlow,
    PointRotationFlow,
    PointTranslationFlow,
    RotationFlow,
    ScalingFlow,
    ShearFlow,
    TranslationFlow,
)

# Torch's own, when it loads its rules.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

PLANE: dict[str, Callable[..., Flow]] = {
    "translation": TranslationFlow,
    "rotation": RotationFlow,
    "scaling": ScalingFlow,
    "shear": ShearFlow,
}
IMAGE, POINTS = (2, 3, 7, 10), (2, 5, 3)
FLOWS: dict[str, tuple[Flow, tuple[int, ...]]] = {
    **{name: (make(), IMAGE) for name, make in PLANE.items()},
    **{f"{name}, periodic": (make(window=None), (2, 8, 8)) for name, make in PLANE.items()},
    "brightness": (BrightnessFlow(), IMAGE),
    "contrast": (ContrastFlow(), IMAGE),
    "contrast about a half": (ContrastFlow(centre=0.5), IMAGE),
    "points turned": (PointRotationFlow(), POINTS),
    "points turned, first dimension": (PointRotationFlow(dim=-2), (2, 3, 4)),
    "points moved": (PointTranslationFlow(), POINTS),
    "a function": (FunctionFlow({"gain": lambda x, t: x * t.exp(), "grow": lambda x, t: x + x**3 * t}), IMAGE),
}
each = pytest.mark.parametrize(("flow", "shape"), FLOWS.values(), ids=FLOWS)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# What every flow promises ----------------------------------------------------------------------------------------


@each
def test_at_0_it_is_the_identity_bit_for_bit(flow: Flow, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = noise(*shape).to(dtype)
        for generator in flow.generators:
            for zero in (0, 0.0, torch.zeros(()), torch.zeros((), dtype=torch.float64, requires_grad=True)):
                assert torch.equal(flow.move(x, generator, zero), x)


@each
def test_the_tangent_is_the_derivative_at_0_both_ways(flow: Flow, shape: tuple[int, ...]) -> None:
    x, zero = noise(*shape), torch.zeros((), dtype=torch.float64)
    for index, generator in enumerate(flow.generators):
        tangent = flow.tangent(x, generator)
        assert torch.equal(tangent, flow.tangent(x, index))
        assert float(tangent.abs().max()) > 0.1
        _, forwards = torch.func.jvp(lambda t, k=index: flow.move(x, k, t), (zero,), (torch.ones_like(zero),))
        backwards = torch.autograd.functional.jacobian(lambda t, k=index: flow.move(x, k, t), zero)
        step = 1e-5
        differences = (flow.move(x, index, step) - flow.move(x, index, -step)) / (2 * step)
        torch.testing.assert_close(forwards, tangent, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(backwards, tangent, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(differences, tangent, rtol=1e-7, atol=1e-7)


@each
def test_gradients_away_from_0(flow: Flow, shape: tuple[int, ...]) -> None:
    x = noise(*shape)[:1].requires_grad_()
    for t in (0.3, -0.7):
        time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, time: flow.move(x, 0, time), (x, time), fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: flow.tangent(x, 0), x, fast_mode=True)


@each
def test_computed_in_float32_or_better(flow: Flow, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x = noise(*shape).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            got = flow.tangent(x, 0), flow.move(x, 0, 0.4)
        for half, precise in zip(got, (flow.tangent(x.double(), 0), flow.move(x.double(), 0, 0.4)), strict=True):
            assert half.dtype == dtype
            unit = torch.finfo(dtype).eps
            # A function of the user's own is computed in float32, but by him.
            torch.testing.assert_close(half.double(), precise, rtol=2 * unit, atol=2 * unit)


# Closed forms ----------------------------------------------------------------------------------------------------


def places(side: int) -> tuple[Tensor, Tensor]:
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return place, place[:, None]


def blob(side: int, right: float, down: float, sigma: float) -> Tensor:
    across, along = places(side)
    return torch.exp(-((across - right).square() + (along - down).square()) / (2 * sigma**2))[None, None]


def derivatives(side: int, right: float, down: float, sigma: float) -> dict[tuple[str, str], Tensor]:
    """How the blob changes, by its gradient."""
    across, along = places(side)
    value = blob(side, right, down, sigma)
    gx, gy = -(across - right) / sigma**2 * value, -(along - down) / sigma**2 * value
    return {
        ("translation", "right"): -gx,
        ("translation", "down"): -gy,
        ("rotation", "rotation"): across * gy - along * gx,
        ("scaling", "scaling"): -(across * gx + along * gy),
        ("shear", "horizontal"): -along * gx,
        ("shear", "vertical"): -across * gy,
    }


@pytest.mark.parametrize("sigma", [2.0, 3.0, 4.0])
@pytest.mark.parametrize(("side", "window"), [(64, None), (65, None), (96, 0.125), (97, 0.25)])
def test_gaussian_blobs_have_the_derivative_that_they_have(side: int, window: float | None, sigma: float) -> None:
    """To 0.1 %, and to rounding where nothing of the blob reaches the edge."""
    where = (side, 3.3, -2.6, sigma)
    for (name, generator), expected in derivatives(*where).items():
        flow, x = PLANE[name](window=window), blob(*where)
        for dtype, tolerance in ((torch.float64, 1e-3), (torch.float32, 1e-3)):
            error = float((flow.tangent(x.to(dtype), generator) - expected).abs().max() / expected.abs().max())
            assert error < tolerance
        if window is None:
            assert float((flow.tangent(x, generator) - expected).abs().max() / expected.abs().max()) < 1e-7


def test_bilinear_interpolation_is_wrong_by_percents() -> None:
    """Why the derivative is not taken through `grid_sample`."""
    where = (64, 3.3, -2.6, 2.0)
    expected = derivatives(*where)["rotation", "rotation"]

    def turned(x: Tensor, t: Tensor) -> Tensor:
        matrix = torch.stack([torch.stack([t.cos(), -t.sin()]), torch.stack([t.sin(), t.cos()])]).to(x)
        theta = torch.cat([matrix, matrix.new_zeros(2, 1)], dim=1)[None]
        grid = torch.nn.functional.affine_grid(theta, [*x.shape], align_corners=False)
        return torch.nn.functional.grid_sample(x, grid, align_corners=False)

    x = blob(*where)
    zero = torch.zeros((), dtype=torch.float64)
    tangent = torch.autograd.functional.jacobian(lambda t: turned(x, t), zero)
    assert float((tangent - expected).abs().max() / expected.abs().max()) > 0.05


@pytest.mark.parametrize("window", [None, 0.125])
def test_blobs_move_where_they_belong(window: float | None) -> None:
    side, p, sigma = 96, (14.0, -9.0), 3.0
    x = blob(side, *p, sigma)
    for t in (0.3, 1.5, -2.0, 3.1, 7.0):
        cos, sin = math.cos(t), math.sin(t)
        expected = blob(side, cos * p[0] + sin * p[1], -sin * p[0] + cos * p[1], sigma)
        torch.testing.assert_close(RotationFlow(window=window).move(x, 0, t), expected, rtol=0, atol=1e-3)
    for t in (0.25, -0.4):
        factor = math.exp(t)
        expected = blob(side, factor * p[0], factor * p[1], factor * sigma)
        torch.testing.assert_close(ScalingFlow(window=window).move(x, 0, t), expected, rtol=0, atol=1e-3)
        expected = blob(side, p[0] + 3 * t, p[1], sigma)
        torch.testing.assert_close(TranslationFlow(window=window, pixels=3).move(x, 0, t), expected, rtol=0, atol=1e-3)
        across, along = places(side)
        expected = torch.exp(-((across - t * along - p[0]).square() + (along - p[1]).square()) / (2 * sigma**2))[
            None, None
        ]
        torch.testing.assert_close(ShearFlow(window=window).move(x, 0, t), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("side", [8, 9])
def test_whole_pixels_and_quarter_turns_are_exact(side: int) -> None:
    x = noise(2, 3, side, side)
    flow = TranslationFlow(window=None)
    torch.testing.assert_close(flow.move(x, "right", 2), x.roll(2, -1))
    torch.testing.assert_close(flow.move(x, "down", -3.0), x.roll(-3, -2))
    smooth = blob(64, 9.0, -7.0, 2.5)
    torch.testing.assert_close(RotationFlow(window=None).move(smooth, 0, math.pi / 2), C4().act(smooth, 1))


def test_sides_are_not_mixed_up_in_images_that_are_not_square() -> None:
    across = torch.arange(12, dtype=torch.float64) - 5.5
    along = torch.arange(8, dtype=torch.float64) - 3.5
    wave = (2 * math.pi * 2 * across / 12).sin() * (2 * math.pi * along / 8).cos()[:, None]
    gx = 2 * math.pi * 2 / 12 * (2 * math.pi * 2 * across / 12).cos() * (2 * math.pi * along / 8).cos()[:, None]
    gy = -2 * math.pi / 8 * (2 * math.pi * 2 * across / 12).sin() * (2 * math.pi * along / 8).sin()[:, None]
    x = wave.expand(1, 1, 8, 12)
    got = RotationFlow(window=None).tangent(x, 0)[0, 0]
    torch.testing.assert_close(got, across * gy - along[:, None] * gx)
    got = ShearFlow(window=None).tangent(x, "horizontal")[0, 0]
    torch.testing.assert_close(got, -along[:, None] * gx)


def test_the_fastest_oscillation_of_an_even_size_has_no_derivative() -> None:
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    assert float(TranslationFlow(window=None).tangent(stripes, "right").abs().max()) < 1e-6


# Windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANE)
def test_with_a_window_edges_do_not_matter(name: str) -> None:
    """A slope, whose edges do not meet: inside its derivative is a slope's, at the edge nothing moves."""
    side = 64
    across, along = places(side)
    x = (across + 2 * along)[None, None] / side
    inside = (slice(None), slice(None), slice(26, 38), slice(26, 38))
    expected = {
        "translation": torch.full_like(x, -1 / side),
        "rotation": (across * 2 - along)[None, None] / side,
        "scaling": -x,
        "shear": (-along * torch.ones_like(across))[None, None] / side,
    }[name]
    tangent = PLANE[name](window=0.3).tangent(x, 0)
    torch.testing.assert_close(tangent[inside], expected[inside], rtol=0, atol=1e-3)
    assert float(tangent[..., 0, 0].abs().max()) < 1e-3
    ringing = PLANE[name](window=None).tangent(x, 0)
    assert float((ringing[inside] - expected[inside]).abs().max()) > 3e-3


@pytest.mark.parametrize("name", PLANE)
def test_what_is_the_same_everywhere_does_not_change(name: str) -> None:
    x = torch.full((1, 1, 28, 28), 3.0, dtype=torch.float64)
    for window in (None, 0.125, 0.5):
        flow = PLANE[name](window=window)
        assert float(flow.tangent(x, 0).abs().max()) < 1e-12
        torch.testing.assert_close(flow.move(x, 0, 0.3), x)


def test_grey_values() -> None:
    x = noise(2, 3, 4, 5)
    mean = x.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(BrightnessFlow().move(x, 0, 0.5), x + 0.5)
    torch.testing.assert_close(ContrastFlow().move(x, 0, 0.5), mean + math.exp(0.5) * (x - mean))
    torch.testing.assert_close(ContrastFlow(centre=0.25).move(x, 0, -1), 0.25 + math.exp(-1) * (x - 0.25))
