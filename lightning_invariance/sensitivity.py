"""How strongly a network answers to any change of its input, whichever way: the Jacobian's largest singular value."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from lightning_invariance._checks import (
    check_callable,
    check_count,
    check_floating,
    check_has_gradient,
    check_number,
    check_tensor,
)
from lightning_invariance._containers import describe_value
from lightning_invariance._isolation import ordinary, undisturbed
from lightning_invariance._messages import warn
from lightning_invariance.saliency import Network

#: Up to this many outputs the whole Jacobian is computed, row by row; a Lanczos iteration would cost no less.
_FEW_OUTPUTS = 64

#: The probability, for a sample, that the iteration ends before it has seen the largest singular value.
_MISSED = 1e-3

#: How many values of the Jacobian are raised to float64 at a time: few enough to stay in a cache.
_TOGETHER = 1 << 17


def jacobian_spectral_norm(
    network: Network,
    x: Tensor,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    max_batch: int | None = None,
) -> Tensor:
    r"""Largest singular value of the Jacobian of a network's logits, at each sample.

    .. math::
        \sigma_{\max}(x) = \Big\| \frac{\partial f(x)}{\partial x} \Big\|_2
        = \max_{\|\epsilon\| = 1} \Big\| \frac{\partial f(x)}{\partial x} \epsilon \Big\|_2

    How far the logits move for the worst small perturbation of the input, in units of the logits a unit of the input;
    figure 5 of "On genuine invariance learning without weight-tying" (Moskalev et al., 2023). In :math:`[0, \infty)`.
    A network that regularization made less sensitive to everything has a small one, and small invariance errors for
    that reason alone; see `selectivity`. It scales with the logits.

    With up to 64 outputs the value is that of the whole Jacobian :math:`J`, by one backward pass for each output on a
    single graph: the root of the largest eigenvalue of :math:`J J^\top`, in float64. With more, the eigenvalue comes
    from a Lanczos iteration with :math:`J^\top u` and :math:`J v`, the latter by differentiating twice; where an
    operation cannot be, the whole Jacobian is computed all the same.

    A module is put in eval mode for the time; modes, buffers, torch's random streams and gradients are as before, and
    nothing is computed in half precision but by a network that has it as its own.

    Args:
        network: from a batch to its logits ``(B, C)``, or outputs ``(B, ...)``, which are flattened. Samples must not
            depend on each other.
        x: the batch, shape ``(B, ...)``, floating point.
        tolerance: with more than 64 outputs, the relative error. The iteration starts at random, the same way every
            time, and goes on until a larger value would have been missed with a probability of at most 1e-3 a sample.
        max_iterations: the most steps of the iteration.
        max_batch: the most samples in one forward.

    Returns:
        One value a sample, shape ``(B,)``, in the outputs' precision, float32 at least. NaN, with a warning, where the
        Jacobian is not finite.

    Raises:
        ValueError: if `x` is not floating point, the network gives no tensor of one row a sample or does not depend on
            `x`, or an option is out of its range.

    Warns:
        UserWarning: where the iteration did not get to `tolerance`; its value is a lower bound.

    Example:
        A linear network's Jacobian is its weight:

        >>> import torch
        >>> from lightning_invariance import jacobian_spectral_norm
        >>> network = torch.nn.Linear(2, 2, bias=False)
        >>> network.weight.data = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
        >>> jacobian_spectral_norm(network, torch.randn(3, 2))
        tensor([4., 4., 4.])
    """
    check_callable("network", network, "a module or a function")
    check_tensor("x", x)
    check_floating("x", x, "to have a gradient")
    if x.ndim < 2:
        raise ValueError(f"Expected `x` to have the shape (B, ...) with values to a sample but got {tuple(x.shape)}.")
    check_number("tolerance", tolerance, above=0)
    check_count("max_iterations", max_iterations)
    if max_batch is not None:
        check_count("max_batch", max_batch)
    if len(x) == 0:
        return x.new_zeros(0, dtype=torch.promote_types(x.dtype, torch.float32))

    norms, unconverged = [], 0
    with undisturbed(network, x.device), torch.enable_grad():
        few: bool | None = None  # known after a forward
        for chunk in ordinary(x.detach()).split(max_batch or len(x)):
            jacobian = None if few is False else _Jacobian(network, chunk)
            few = few if jacobian is None else jacobian.shape[1] <= _FEW_OUTPUTS
            if few and jacobian is not None:
                values = _norms_by_rows(jacobian)
            else:
                values, lacking = _norms_by_lanczos(network, chunk, tolerance, max_iterations)
                unconverged += lacking
            norms.append(values)
        result = torch.cat(norms)
    if unconverged:
        warn(
            f"The Jacobian's spectral norm did not converge to a relative error of {tolerance:g} in {max_iterations} "
            f"iterations for {unconverged} of {len(x)} samples: the values are lower bounds."
        )
    undefined = int(result.isnan().sum())
    if undefined:
        warn(
            f"The Jacobian's spectral norm is undefined for {undefined} of {len(x)} samples, whose Jacobian is not "
            "finite: NaN is returned."
        )
    return result


def layer_spectral_norms(module: nn.Module, *, size: int = 32) -> dict[str, Tensor]:
    r"""Largest singular value of every linear and convolutional layer of a network.

    .. math::
        \sigma_{\max} = \max_{\|\epsilon\| = 1} \| W \epsilon \|_2

    for the layer as a linear map, its bias aside. A convolution is the map that it is, with its own padding, stride,
    dilation and groups, on inputs of `size` values in each spatial dimension (or as many as its kernel spans, if those
    are more); it hardly depends on `size` where that is several times the kernel's. The norm of the kernel as a matrix
    is another number, and no bound on how strongly the layer answers. In :math:`[0, \infty)`; their product bounds the
    Jacobian's in a chain of layers with 1-Lipschitz activations between them.

    Args:
        module: the network; it is left as it was.
        size: how many values a convolution's input has in each spatial dimension.

    Returns:
        A scalar for each `torch.nn.Linear`, and convolution or transposed convolution, under the layer's name in the
        module (``""`` for the module itself); other layers are left out. To a relative error of 1e-3, exact with up to
        64 outputs. NaN, with a warning, where weights are not finite.

    Raises:
        ValueError: if `module` is no module, a layer has no values yet, or `size` is no integer of at least 1.

    Example:
        Turning a signal's differences into a layer doubles its fastest oscillation:

        >>> import torch
        >>> from lightning_invariance import layer_spectral_norms
        >>> differences = torch.nn.Conv1d(1, 1, 2, padding="same", padding_mode="circular", bias=False)
        >>> differences.weight.data = torch.tensor([[[-1.0, 1.0]]])
        >>> layer_spectral_norms(torch.nn.Sequential(differences, torch.nn.ReLU()))
        {'0': tensor(2.)}
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"Expected `module` to be a torch.nn.Module but got {describe_value(module)}.")
    check_count("size", size)
    norms = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, (nn.Linear, _ConvNd)):
            continue
        weight = next(layer.parameters(), None)
        if weight is None or is_lazy(weight) or weight.is_meta:
            raise ValueError(f"Expected `module` to hold values but got a layer {name!r} without.")
        if isinstance(layer, nn.Linear):
            shape: tuple[int, ...] = (layer.in_features,)
        else:
            spans = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            shape = (layer.in_channels, *(max(size, span) for span in spans))
        (norms[name],) = jacobian_spectral_norm(layer, torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device))
    return norms


class _Jacobian:
    """The Jacobian of one batch's outputs ``(B, C)``, as a graph that vectors are sent back through.

    Samples do not depend on each other, so that one backward pass of the whole batch is one for each sample.
    """

    def __init__(self, network: Network, x: Tensor) -> None:
        self._leaf = x.detach().clone().requires_grad_()
        outputs = network(self._leaf.clone())  # of a copy: a leaf is not to be written in place, as ReLUs may
        if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != len(x):
            got = describe_value(outputs)
            raise ValueError(f"Expected `network` to give logits of shape ({len(x)}, classes) but got {got}.")
        self._logits = outputs.reshape(len(x), -1)
        if self._logits.shape[1] == 0 or not self._logits.is_floating_point():
            raise ValueError(
                f"Expected `network` to give floating-point values for each sample but got shape "
                f"{tuple(outputs.shape)} of {outputs.dtype}."
            )
        self._of_vector: tuple[Tensor, Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """``(B, C)``."""
        return self._logits.shape[0], self._logits.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the outputs are."""
        return self._logits.device

    @property
    def precision(self) -> torch.dtype:
        """The network's own precision."""
        return self._logits.dtype

    @property
    def dtype(self) -> torch.dtype:
        """The outputs' precision, float32 at least."""
        return torch.promote_types(self._logits.dtype, torch.float32)

    def transposed(self, u: Tensor) -> Tensor:
        r""":math:`J^\top u`, shape ``(B, D)``, of vectors ``(B, C)``."""
        gradient = self._backward(u.to(self._logits.dtype), create_graph=False)
        return gradient.flatten(1)

    def times(self, v: Tensor) -> Tensor:
        r""":math:`J v`, shape ``(B, C)``, of vectors ``(B, D)``: the gradient of :math:`u \mapsto v^\top J^\top u`."""
        if self._of_vector is None:
            # Linear in u, so its graph serves all vectors, whatever u it was made with.
            u = torch.ones_like(self._logits).requires_grad_()
            self._of_vector = u, self._backward(u, create_graph=True)
        u, product = self._of_vector
        (result,) = torch.autograd.grad(product, u, v.reshape(product.shape).to(product.dtype), retain_graph=True)
        return result

    def _backward(self, u: Tensor, create_graph: bool) -> Tensor:
        gradient = None
        if self._logits.requires_grad:
            (gradient,) = torch.autograd.grad(
                self._logits, self._leaf, u, retain_graph=True, create_graph=create_graph, allow_unused=True
            )
        return check_has_gradient(gradient)


def _norms_by_rows(jacobian: _Jacobian) -> Tensor:
    r""":math:`\sigma_{\max}`, shape ``(B,)``, by the largest eigenvalue of :math:`J J^\top` from all rows."""
    samples, outputs = jacobian.shape
    rows = [jacobian.transposed(row.expand(samples, outputs)) for row in torch.eye(outputs, device=jacobian.device)]
    together = max(1, _TOGETHER // (outputs * rows[0].shape[1]))
    products = []
    for some in zip(*(row.split(together) for row in rows), strict=True):
        part = torch.stack(some, dim=1).double()
        products.append(part @ part.mT)
    finite, gram = _finite_matrices(torch.cat(products))
    values = torch.where(finite, torch.linalg.eigvalsh(gram), torch.nan)
    return _root(values[:, -1], jacobian)


def _norms_by_lanczos(network: Network, x: Tensor, tolerance: float, max_iterations: int) -> tuple[Tensor, int]:
    r""":math:`\sigma_{\max}`, shape ``(B,)``, and for how many samples it has not converged.

    Lanczos' iteration on :math:`J J^\top`, with full reorthogonalisation, for all samples side by side; float64 but for
    the network.

    A Ritz value that has settled need not be the largest: the iteration may not have seen the largest yet. Its k-th
    vector is :math:`p_k(J J^\top) u` for a polynomial :math:`p_k`, and its norm is 1, so that an eigenvector of any
    eigenvalue :math:`\lambda` can make up no more than :math:`1 / |p_k(\lambda)|` of the start :math:`u`. It ends when
    that is, above the tolerance, so little as a random start has with a probability under `_MISSED`.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the fused attentions cannot be differentiated twice
        jacobian = _Jacobian(network, x)
    samples, outputs = jacobian.shape
    steps = min(max_iterations, outputs)
    # The same for every sample, so that the value does not depend on what else is in the batch.
    start = torch.randn(outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = (start / start.norm()).to(jacobian.device).expand(samples, outputs)
    basis = u[:, None]
    tridiagonal = torch.zeros(samples, steps, steps, dtype=torch.float64, device=jacobian.device)
    found, running = tridiagonal.new_zeros(samples), torch.ones(samples, dtype=torch.bool, device=jacobian.device)
    # A component of a random direction in n dimensions is within ±s with a probability of at most s √(2n / π).
    least = _MISSED / math.sqrt(2 * outputs / math.pi)
    slack = max(1e-2, 10 * torch.finfo(jacobian.precision).eps)
    for step in range(steps):
        v = jacobian.transposed(u)
        alpha = v.double().square().sum(dim=1)
        try:
            w = jacobian.times(v).double()
        except RuntimeError:
            return _norms_by_rows(jacobian), 0
        tridiagonal[:, step, step] = alpha
        ritz, vectors = _eigenpairs(tridiagonal[:, : step + 1, : step + 1])
        values = ritz[:, -1]
        # uᵀ J Jᵀ u both ways: an operation that cannot be differentiated twice need not say so.
        if bool(((u * w).sum(dim=1) - alpha).abs().gt(slack * values).any()):
            return _norms_by_rows(jacobian), 0
        for _ in range(2):  # once leaves what rounding put in
            w = w - (basis.mT @ (basis @ w[..., None]))[..., 0]
        beta = w.norm(dim=1)
        # 1 / p_k(λ) = β_k [(λ − T)⁻¹]_1k at the least λ whose root is further from the value's than the tolerance.
        distances = (1 + tolerance) ** 2 * values[:, None] - ritz
        hidden = beta * (vectors[:, 0] * vectors[:, -1] / distances).sum(dim=1).abs()
        lacking = (hidden > least) & (values > 0)
        # Each sample's as it was when it had converged, whatever the others still need.
        found = torch.where(running, values, found)
        running = running & lacking if step + 1 < outputs else torch.zeros_like(running)
        if not bool(running.any()):
            break
        if step + 1 < steps:
            tridiagonal[:, step, step + 1] = tridiagonal[:, step + 1, step] = beta
            u = torch.where(beta[:, None] > 0, w / beta[:, None], 0.0)  # 0 where the space is exhausted
            basis = torch.cat([basis, u[:, None]], dim=1)
    return _root(found, jacobian), int(running.sum())


def _root(squares: Tensor, jacobian: _Jacobian) -> Tensor:
    return squares.clamp_min(0.0).sqrt().to(jacobian.dtype)


def _eigenpairs(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues, and vectors, of symmetric matrices ``(B, k, k)``; NaN where those are not finite."""
    finite, matrices = _finite_matrices(matrices)
    values, vectors = torch.linalg.eigh(matrices)
    return torch.where(finite, values, torch.nan), vectors


def _finite_matrices(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Which matrices are finite, ``(B, 1)``, and all of them, zero where they are not: LAPACK takes no others."""
    finite = matrices.isfinite().flatten(1).all(dim=1)[:, None]
    return finite, torch.where(finite[..., None], matrices, 0.0)
