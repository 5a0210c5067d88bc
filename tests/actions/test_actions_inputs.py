"""Precisions, memory layouts and shapes of the batch."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from actions_catalogue import (
    AFFINE,
    EVERY,
    LINEAR,
    PADDED,
    PERMUTATIONS,
    PRODUCTS,
    Case,
    batch_for,
    each,
    indices_for,
    mixed_colours,
    signed_permutations,
)
from torch import Tensor

from lightning_invariance.actions import (
    C4,
    D4,
    O3,
    SO2,
    SO3,
    Action,
    AffineAction,
    CyclicTranslations,
    FunctionAction,
    HorizontalFlip,
    LinearAction,
    PermutationAction,
    Rotations,
    Scalings,
    TimeReversal,
    VerticalFlip,
)

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
WHOLE = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.fixture(params=FLOATS, ids=name_of)
def float_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return cast(torch.dtype, request.param)


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=name_of)
def half_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return cast(torch.dtype, request.param)


@pytest.fixture(params=[*FLOATS, *WHOLE], ids=name_of)
def any_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return cast(torch.dtype, request.param)


def outcomes(action: Action, x: Tensor) -> list[Tensor]:
    index = indices_for(action, x)
    last = len(action) - 1
    return [
        action.act(x, last),
        action.invert(x, last),
        action.act(x, index),
        action.invert(x, index),
        action.orbit(x),
    ]


@each(EVERY)
def test_floating_point_types_are_kept(case: Case, float_dtype: torch.dtype) -> None:
    for out in outcomes(case.make(), batch_for(case, float_dtype)):
        assert out.dtype == float_dtype


@each(PERMUTATIONS, PADDED)
def test_permutations_take_every_type(case: Case, any_dtype: torch.dtype) -> None:
    """The values are only moved: moving the places of a batch tells where they go."""
    action = case.make()
    x = batch_for(case, any_dtype)
    places = torch.arange(x.numel()).reshape(x.shape)
    for out, where in zip(outcomes(action, x), outcomes(action, places), strict=True):
        assert out.dtype == any_dtype
        assert torch.equal(out, x.flatten()[where])


@each(AFFINE, LINEAR)
def test_half_precision_is_computed_in_float32(case: Case, half_dtype: torch.dtype) -> None:
    """The double-precision result, rounded once: at most one unit in the last place away."""
    action = case.make()
    x = batch_for(case, half_dtype)
    unit = torch.finfo(half_dtype).eps
    for out, precise in zip(outcomes(action, x), outcomes(action, x.double()), strict=True):
        torch.testing.assert_close(out.double(), precise.to(half_dtype).double(), rtol=unit, atol=1e-5)


@each(AFFINE, LINEAR)
def test_double_precision_is_computed_in_double(case: Case) -> None:
    action = case.make()
    x = batch_for(case, torch.float64)
    double = torch.stack(outcomes(action, x)[:4])
    single = torch.stack(outcomes(action, x.float())[:4])
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)
    assert not torch.equal(single.double(), double)


@each(EVERY)
def test_autocast_changes_nothing(case: Case) -> None:
    x = batch_for(case)
    expected = outcomes(case.make(), x)
    with torch.autocast("cpu", torch.bfloat16):
        got = outcomes(case.make(), x)
    for out, reference in zip(got, expected, strict=True):
        assert out.dtype == torch.float32
        assert torch.equal(out, reference)


def strided(x: Tensor) -> Tensor:
    """The same values with gaps between them in memory."""
    wide = x.new_zeros(*(2 * size for size in x.shape))
    wide[tuple(slice(None, None, 2) for _ in x.shape)] = x
    return wide[tuple(slice(None, None, 2) for _ in x.shape)]


def transposed(x: Tensor) -> Tensor:
    """The same values with the dimensions stored the other way round."""
    return x.permute(*range(x.ndim - 1, -1, -1)).contiguous().permute(*range(x.ndim - 1, -1, -1))


@each(EVERY)
@pytest.mark.parametrize("layout", [strided, transposed])
def test_non_contiguous_batches(case: Case, layout: object) -> None:
    action, x = case.make(), batch_for(case)
    stored = layout(x)  # type: ignore[operator]
    assert not stored.is_contiguous()
    for out, expected in zip(outcomes(action, stored), outcomes(action, x), strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@each(PERMUTATIONS, AFFINE, LINEAR, PADDED, PRODUCTS)
def test_one_sample_repeated_without_copies(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    repeated = x[:1].expand(x.shape)
    for out, expected in zip(outcomes(action, repeated), outcomes(action, repeated.contiguous()), strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("action", "shape"),
    [
        (C4(), (3, 2, 4, 4)),
        (D4(), (3, 2, 4, 4)),
        (HorizontalFlip(), (3, 2, 4, 5)),
        (VerticalFlip(), (3, 2, 4, 5)),
        (CyclicTranslations(2), (3, 2, 5, 4)),
        (Rotations(8), (3, 2, 4, 5)),
        (mixed_colours(), (3, 3, 4, 5)),
        (C4() * CyclicTranslations(2), (3, 2, 4, 4)),
        (Rotations(3), (2, 2, 3, 4, 5)),
    ],
    ids=str,
)
def test_channels_last(action: Action, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    stored = x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    assert not stored.is_contiguous()
    for out, expected in zip(outcomes(action, stored), outcomes(action, x), strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


PLANAR: list[Action] = [C4(), D4(), VerticalFlip(), Rotations(3), SO2(2), Scalings([1.5]), C4() * Rotations(3)]
LINES: list[Action] = [
    TimeReversal(),
    HorizontalFlip(),
    CyclicTranslations(2),
    FunctionAction([(torch.neg, torch.neg)]),
]


@pytest.mark.parametrize(
    ("action", "size"), [*((line, 6) for line in LINES), (SO3(2), 3), (SO3(2) * O3(2), 3)], ids=str
)
@pytest.mark.parametrize("leading", [(3,), (3, 2), (3, 1, 2), (3, 2, 1, 2)], ids=str)
def test_vectors_and_series_with_any_dimensions_before(action: Action, size: int, leading: tuple[int, ...]) -> None:
    x = torch.randn(*leading, size, generator=torch.Generator().manual_seed(0))
    last = len(action) - 1
    apart = action.act(x.reshape(-1, size), last).reshape(x.shape)
    torch.testing.assert_close(action.act(x, last), apart, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("action", [*PLANAR, *LINES], ids=repr)
@pytest.mark.parametrize("leading", [(3,), (3, 2), (3, 2, 3)], ids=str)
def test_images_with_any_dimensions_before(action: Action, leading: tuple[int, ...]) -> None:
    x = torch.randn(*leading, 4, 4, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([len(action) - 1, 0, 1])
    of_each_image = index.repeat_interleave(torch.Size(leading[1:]).numel())
    apart = action.act(x.reshape(-1, 4, 4), of_each_image).reshape(x.shape)
    torch.testing.assert_close(action.act(x, index), apart, rtol=1e-6, atol=1e-6)


@each(EVERY)
def test_a_batch_of_one(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    last = len(action) - 1
    alone = action.act(x[:1], torch.tensor([last]))
    assert alone.shape == (1, *x.shape[1:])
    torch.testing.assert_close(alone[0], action.act(x, last)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(action.orbit(x[:1]), action.orbit(x)[:, :1], rtol=1e-5, atol=1e-5)


@each(EVERY)
@pytest.mark.parametrize("method", ["act", "invert"])
def test_an_empty_batch(case: Case, method: str) -> None:
    action = case.make()
    x = torch.zeros(0, *case.shape[1:])
    none = torch.zeros(0, dtype=torch.int64)
    assert getattr(action, method)(x, 1).shape == x.shape
    assert getattr(action, method)(x, none).shape == x.shape
    assert action.orbit(x).shape == (len(action), *x.shape)


# Elsewhere the default device also makes the tensors that the test passes in.
OWN_TENSORS = [name for name in EVERY if any(own in name for own in ("Permutation", "Linear", "Affine"))]


@each(EVERY, without=[name for name in OWN_TENSORS if "SetPermutations" not in name])
def test_a_default_device_does_not_matter(case: Case) -> None:
    """Models are built, and may run, under ``torch.device(...)``: the constants go to the batch's device."""
    x = batch_for(case)
    expected = outcomes(case.make(), x)
    last, index = len(case.make()) - 1, indices_for(case.make(), x)
    with torch.device("meta"):
        made = case.make()
    got = outcomes(made, x)
    with torch.device("meta"):
        action = case.make()
        got += [action.act(x, last), action.invert(x, last), action.act(x, index), action.invert(x, index)]
        got += [action.orbit(x)]
    for out, reference in zip(got, [*expected, *expected], strict=True):
        assert torch.equal(out, reference)


def test_a_default_device_does_not_matter_for_ones_own_tensors() -> None:
    table, matrices = torch.tensor([[0, 1, 2], [1, 2, 0]]), signed_permutations(2)
    maps = torch.cat([matrices, matrices.new_zeros(8, 2, 1)], dim=2)
    with torch.device("meta"):
        own = [PermutationAction(table), LinearAction(matrices), AffineAction(maps)]
    for action, x in zip(own, (torch.ones(2, 3), torch.ones(2, 2), torch.ones(2, 4, 4)), strict=True):
        assert action.act(x, 1).shape == x.shape
        assert action.cayley_table is None or action.cayley_table.device.type == "cpu"
