"""Spectral norms against full Jacobians and full singular value decompositions."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import C4, evaluate_orbit, functional, jacobian_spectral_norm, layer_spectral_norms

Make = Callable[[int], nn.Module]


def full(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Sample by sample, from the whole Jacobian in the network's precision and an SVD in float64."""
    norms = []
    for sample in x:
        jacobian = torch.autograd.functional.jacobian(lambda s: network(s[None].clone())[0], sample)
        norms.append(torch.linalg.svdvals(jacobian.double().reshape(jacobian.shape[0], -1))[0])
    return torch.stack(norms)


def mlp(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, classes))


def relu(classes: int) -> nn.Module:
    """Written in place from the start on."""
    return nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 48), nn.ReLU(True), nn.Linear(48, classes))


def conv(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.LayerNorm(32),
        nn.Linear(32, classes),
    )


class Attention(nn.Module):
    """`scaled_dot_product_attention` with tokens of 8 pixels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1).unflatten(1, (2, 4, 8))
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        return self.head(self.norm(tokens + F.scaled_dot_product_attention(q, k, v)).flatten(1))


class Encoder(nn.Module):
    """Torch's own transformer, with its fast path."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.flatten(1).unflatten(1, (8, 8))).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 12, batch_first=True)
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x[:, 0])[0][:, -1])


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()


class _SilentlyOnce(torch.autograd.Function):
    """A backward whose second derivative is quietly half of what it should be."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 0.5 * (gradient + gradient.detach()) * ctx.saved_tensors[0].cos()


class Custom(nn.Module):
    def __init__(self, function: type[torch.autograd.Function], classes: int) -> None:
        super().__init__()
        self.function = function
        self.network = mlp(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.function.apply(x))


def once(classes: int) -> nn.Module:
    return Custom(_OnceDifferentiable, classes)


def silently_once(classes: int) -> nn.Module:
    return Custom(_SilentlyOnce, classes)


def made(make: Make, classes: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    network = make(classes).to(dtype).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_()
    return network


def images(samples: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


#: Every network in one precision at least, few and many outputs.
SINGLE, DOUBLE = torch.float32, torch.float64
CASES: list[tuple[Make, int, torch.dtype, float | None]] = [
    (mlp, 1, DOUBLE, None),
    (mlp, 32, SINGLE, None),
    (mlp, 200, DOUBLE, 1e-5),
    (relu, 9, SINGLE, None),
    (relu, 200, SINGLE, 1e-3),
    (conv, 1, SINGLE, None),
    (conv, 32, DOUBLE, None),
    (conv, 200, SINGLE, 1e-5),
    (Attention, 9, DOUBLE, None),
    (Attention, 200, SINGLE, 1e-5),
    (Encoder, 9, SINGLE, None),
    (Encoder, 200, DOUBLE, 1e-3),
    (Recurrent, 9, DOUBLE, None),
    (Recurrent, 200, SINGLE, 1e-3),
    (once, 9, DOUBLE, None),
    (once, 200, SINGLE, 1e-5),
    (silently_once, 9, SINGLE, None),
    (silently_once, 200, DOUBLE, 1e-5),
]


@pytest.mark.parametrize(("make", "classes", "dtype", "tolerance"), CASES)
def test_norms_agree_with_a_full_svd(make: Make, classes: int, dtype: torch.dtype, tolerance: float | None) -> None:
    """Exact for few outputs; up to the tolerance asked for where there are many."""
    network, x = made(make, classes, dtype), images(3, dtype)
    norms = jacobian_spectral_norm(network, x, **({} if tolerance is None else {"tolerance": tolerance}))
    assert norms.dtype == dtype
    exact = tolerance or (1e-5 if dtype == SINGLE else 1e-10)
    torch.testing.assert_close(norms.double(), full(network, x), rtol=exact, atol=0.0)


@pytest.mark.parametrize("classes", [5, 100])
def test_chunks_and_neighbours_do_not_matter(classes: int) -> None:
    network, x = made(conv, classes, torch.float64), images(7, torch.float64)
    whole = jacobian_spectral_norm(network, x)
    for chunked in (jacobian_spectral_norm(network, x, max_batch=3), jacobian_spectral_norm(network, x[:4])):
        torch.testing.assert_close(chunked, whole[: len(chunked)], rtol=1e-9, atol=0.0)


def test_a_jacobian_of_rank_one_and_one_of_zeros() -> None:
    """The iteration's space is exhausted after one step."""
    column, row = torch.randn(100), torch.randn(64)
    x = images()
    norms = jacobian_spectral_norm(lambda z: (z.flatten(1) @ row)[:, None] * column, x)
    torch.testing.assert_close(norms, (column.norm() * row.norm()).expand(6), rtol=1e-5, atol=0.0)
    for classes in (3, 100):
        assert (
            jacobian_spectral_norm(lambda z, c=classes: z.flatten(1)[:, :1].repeat(1, c) * 0.0, x).tolist() == [0.0] * 6
        )


def test_more_outputs_than_inputs() -> None:
    weight = torch.randn(300, 4, dtype=torch.float64)
    norms = jacobian_spectral_norm(lambda z: z @ weight.T, torch.randn(2, 4, dtype=torch.float64), tolerance=1e-12)
    torch.testing.assert_close(norms, torch.linalg.svdvals(weight)[0].expand(2), rtol=1e-9, atol=0.0)


def test_outputs_of_any_shape() -> None:
    network, x = made(mlp, 12), images()
    flat = jacobian_spectral_norm(network, x)
    assert torch.equal(jacobian_spectral_norm(lambda z: network(z).unflatten(1, (3, 4)), x), flat)
    first = jacobian_spectral_norm(lambda z: network(z)[:, 0], x)
    torch.testing.assert_close(first.double(), full(lambda z: network(z)[:, :1], x), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(("second", "networks"), [(0.96, 100), (0.99, 50)])
def test_a_second_value_close_to_the_largest_is_not_taken_for_it(second: float, networks: int) -> None:
    """An iteration settles on the second where the start has little of the first; each network has another start."""
    torch.manual_seed(0)
    values = torch.cat([torch.tensor([1.0, second]), torch.linspace(0.8, 0.0, 98)]).double()
    misses = 0
    for _ in range(networks):
        left, right = torch.linalg.qr(torch.randn(2, 100, 100, dtype=torch.float64)).Q
        weight = left * values @ right
        norm = jacobian_spectral_norm(lambda z, w=weight: z @ w.T, torch.zeros(1, 100, dtype=torch.float64))
        misses += abs(float(norm) - 1) > 1e-3
    assert misses == 0


def test_it_says_when_it_has_not_converged() -> None:
    torch.manual_seed(0)
    weight = torch.randn(400, 400)
    top = torch.linalg.svdvals(weight)[0]
    with pytest.warns(UserWarning, match=r"did not converge to a relative error of 1e-06 in 3 iterations for 2 of 2"):
        norms = jacobian_spectral_norm(lambda z: z @ weight, torch.randn(2, 400), tolerance=1e-6, max_iterations=3)
    assert (norms < top).all()
    assert (norms > 0.5 * top).all()


@pytest.mark.parametrize("classes", [3, 100])
def test_a_jacobian_that_is_not_finite_is_nan_for_its_sample_alone(classes: int) -> None:
    network, x = made(mlp, classes), images()
    expected = jacobian_spectral_norm(network, x)
    x[2, 0, 0, 0] = float("nan")
    with pytest.warns(UserWarning, match="undefined for 1 of 6 samples"):
        norms = jacobian_spectral_norm(network, x)
    assert norms.isnan().tolist() == [False, False, True, False, False, False]
    torch.testing.assert_close(norms[3:], expected[3:])


# No trace ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "classes"), [(conv, 3), (conv, 100), (Attention, 100)])
def test_it_leaves_no_trace(make: Make, classes: int) -> None:
    network, x = made(make, classes).train(), images()
    network[-1].eval() if isinstance(network, nn.Sequential) else network.norm.eval()
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    stream, before = torch.get_rng_state(), x.clone()
    norms = jacobian_spectral_norm(network, x)
    assert not norms.requires_grad
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(
        torch.equal(p.grad, g) for p, g in zip(network.parameters(), gradients, strict=True) if p.grad is not None
    )
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(x, before)
    assert not x.requires_grad
    torch.testing.assert_close(norms.double(), full(network.eval(), x), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("classes", [3, 100])
def test_in_inference_mode_without_gradients_and_under_autocast(classes: int) -> None:
    network = made(conv, classes)
    expected = jacobian_spectral_norm(network, images())
    with torch.inference_mode():
        x = images() + 0.0
        assert x.is_inference()
        norms = jacobian_spectral_norm(network, x)
    assert not norms.is_inference()
    assert torch.equal(norms, expected)
    for context in (torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with context:
            assert torch.equal(jacobian_spectral_norm(network, images()), expected)


def test_a_network_of_half_precision() -> None:
    network = made(mlp, 5)
    norms = jacobian_spectral_norm(copy.deepcopy(network).bfloat16(), images().bfloat16())
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, jacobian_spectral_norm(network, images()), rtol=0.03, atol=0.0)


def test_a_compiled_network_runs_as_it_was_written() -> None:
    """Its graph can be gone through neither twice nor by a second derivative."""
    for classes in (3, 100):
        network, x = made(mlp, classes), images()
        expected = jacobian_spectral_norm(network, x)
        in_place = copy.deepcopy(network)
        in_place.compile(backend="aot_eager")
        for compiled in (torch.compile(network, backend="aot_eager"), in_place):
            compiled(x)
            assert torch.equal(jacobian_spectral_norm(compiled, x), expected)


def test_modes_come_back_after_an_exception() -> None:
    network = made(mlp, 3).train()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        jacobian_spectral_norm(network, torch.randn(2, 5))
    assert network.training
    assert not torch.is_inference_mode_enabled()


# Layers -----------------------------------------------------------------------------------------------------------


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "a large linear": (lambda: nn.Linear(80, 90, bias=False), (80,)),
    "padded with zeros": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 9, 9)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 9, 9)),
    "reflected": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 9, 9)),
    "not padded": (lambda: nn.Conv2d(3, 2, (3, 2)), (3, 9, 9)),
    "in steps": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 9, 9)),
    "dilated": (lambda: nn.Conv2d(2, 2, 3, dilation=2, padding="same"), (2, 9, 9)),
    "in groups": (lambda: nn.Conv2d(4, 4, 3, groups=2), (4, 9, 9)),
    "of one dimension": (lambda: nn.Conv1d(3, 8, 5), (3, 9)),
    "of three dimensions": (lambda: nn.Conv3d(1, 2, 2), (1, 9, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2), (3, 9, 9)),
}


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_layers_agree_with_the_svd_of_their_matrix(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = make().double()
    origin = layer(torch.zeros(1, *shape, dtype=torch.float64))
    columns = [layer(e[None]) - origin for e in torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)]
    matrix = torch.stack([column.flatten() for column in columns], dim=1)
    norms = layer_spectral_norms(nn.ModuleDict({"layer": layer}), size=9)
    assert list(norms) == ["layer"]
    torch.testing.assert_close(norms["layer"], torch.linalg.svdvals(matrix)[0].detach(), rtol=1e-3, atol=0.0)


def test_a_circular_convolution_has_the_largest_value_of_its_transfer_function() -> None:
    """Sedghi, Gupta and Long, "The singular values of convolutional layers" (2019)."""
    torch.manual_seed(1)
    layer = nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular").double()
    transfer = torch.fft.fft2(layer.weight.detach(), s=(16, 16)).permute(2, 3, 0, 1)
    norms = layer_spectral_norms(layer, size=16)
    torch.testing.assert_close(norms[""], torch.linalg.svdvals(transfer).max(), rtol=1e-3, atol=0.0)
    kernel = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
    assert norms[""] > 1.2 * kernel  # the kernel's matrix says something else


def test_layers_are_named_by_their_path_and_others_left_out() -> None:
    network = made(conv, 9)
    norms = layer_spectral_norms(nn.ModuleDict({"body": network}), size=8)
    assert list(norms) == ["body.0", "body.4", "body.10"]
    assert all(norm.shape == () and not norm.requires_grad for norm in norms.values())


def test_a_kernel_larger_than_the_size_gets_room() -> None:
    layer = nn.Conv2d(1, 1, 5, dilation=2)
    assert layer_spectral_norms(layer, size=3)[""] == pytest.approx(float(layer.weight.detach().norm()))


def test_parametrized_layers_are_left_as_they_were() -> None:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6), n_power_iterations=50)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    assert float(layer_spectral_norms(layer)[""]) == pytest.approx(1.0, rel=1e-2)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    assert layer.training


# Proposition 3.1 --------------------------------------------------------------------------------------------------


def test_gradient_flow_on_the_logit_error_of_a_linear_network_never_raises_its_norm() -> None:
    """W(t) = W(0) exp(−Σt), Σ = εεᵀ, ε = x − gx (Moskalev et al., 2023)."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    epsilon = (x - C4().act(x, 1)).flatten()
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 4, bias=False)).double()
    weight: Tensor = network[1].weight
    # The first singular vector is given a part along ε, so that there is something to lose.
    weight.data += torch.outer(torch.randn(4, dtype=torch.float64), epsilon / epsilon.norm())
    start, sigma = weight.detach().clone(), torch.outer(epsilon, epsilon)
    step, steps = 5e-4, 400
    norms = [jacobian_spectral_norm(network, x).item()]
    for _ in range(steps):
        # LI of the one element g: ½ ‖f(x) − f(gx)‖²
        outputs = evaluate_orbit(network, x, C4(), elements=[1])
        loss = functional.logit_invariance_error(outputs.logits, outputs.orbit_logits)
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight -= step * gradient
        norms.append(jacobian_spectral_norm(network, x).item())
    flowed = start @ torch.linalg.matrix_exp(-sigma * step * steps)
    torch.testing.assert_close(weight.detach(), flowed, rtol=0.0, atol=1e-2 * float(start.norm()))
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(norms))
    assert norms[-1] < 0.9 * norms[0]
    assert norms[-1] == pytest.approx(torch.linalg.svdvals(flowed)[0].item(), rel=1e-2)
