"""How a network's output changes as its input begins to move: the Lie derivative along a continuous group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointError

from lightning_invariance._checks import check_callable, check_count, check_floating, check_tensor
from lightning_invariance._containers import describe_value
from lightning_invariance._differentiation import backwards, forwards
from lightning_invariance._isolation import (
    RandomState,
    is_batch_coupled,
    module_of,
    ordinary,
    preserved_buffers,
    undisturbed,
)
from lightning_invariance.actions import Flow
from lightning_invariance.actions._flow import check_flow
from lightning_invariance.saliency import Network

#: "same": the output moves as the input does. A flow: along its generators. None: it stays.
OutputFlow = Flow | Literal["same"] | None

#: Differentiating forwards, backwards twice, or, for one output a sample, once.
Way = Literal["forward", "double_backward", "gradient"]

#: How often gradients that are 0 are compared, of derivatives that are not.
_TRIES = 10


def evaluate_lie_derivative(
    network: Network,
    x: Tensor,
    flow: Flow,
    *,
    output_flow: OutputFlow = None,
    max_batch: int | None = None,
) -> Tensor:
    r"""Lie derivative of a network's output along each generator of a continuous group.

    .. math::
        (L_k f)(x) = \frac{d}{dt} \Big|_{t = 0} \rho^{out}_k(-t) \, f(\rho^{in}_k(t) \, x)
        = \frac{\partial f(x)}{\partial x} X^{in}_k x - X^{out}_k f(x)

    Equation 3 of "The Lie Derivative for Measuring Learned Equivariance" (Gruver et al., 2022). It is 0 for all `x` if
    and only if the network is equivariant to all that the generators generate (invariant, where the output stays):
    nothing is drawn. :math:`X x` is `Flow.tangent`; the network is differentiated forwards, as `torch.func.jvp` does,
    and by two backward passes where an operation of it cannot be (or one, of a single output). All give the same.

    Gradients flow as in any forward: wrap the call in ``torch.no_grad()`` to measure. Modes are the caller's; buffers
    and random streams are left as they were, and all generators get the same random numbers (dropout masks). Nothing
    is computed in half precision but by a network that has it as its own.

    Args:
        network: from a batch ``(B, ...)`` to its logits ``(B, ...)``.
        x: the batch, shape ``(B, ...)``, floating point.
        flow: the group's generators.
        output_flow: how the output moves when the input does: None, it stays; ``"same"``, `flow` moves it too, one
            that is smaller in proportion (`Flow.alongside`); or a `Flow` of as many generators.
        max_batch: the most samples in one forward; all of them if None. The result does not depend on it for a network
            that treats samples alone.

    Returns:
        Shape ``(K, B, ...)`` for K generators, in units of the output a unit of t.

    Raises:
        ValueError: if `flow` cannot move `x`, or `output_flow` has another number of generators or cannot move the
            output; if the network gives no floating-point tensor of one row a sample, does not depend on `x`, or can be
            differentiated in neither way, or, while gradients are recorded, these are not the same both ways.

    Example:
        The energy of a spring does not change as its ends turn about their middle, and a coordinate does:

        >>> import torch
        >>> from lightning_invariance import PointRotationFlow, evaluate_lie_derivative
        >>> ends = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
        >>> spring = lambda r: (r[:, 0] - r[:, 1]).square().sum(-1) / 2
        >>> evaluate_lie_derivative(spring, ends, PointRotationFlow()).flatten().abs()
        tensor([0., 0., 0.])
        >>> evaluate_lie_derivative(lambda r: r[:, 0, 1], ends, PointRotationFlow()).flatten().abs()  # about x, y and z
        tensor([0., 0., 1.])

        The vector between the ends turns with them:

        >>> evaluate_lie_derivative(lambda r: r[:, 0] - r[:, 1], ends, PointRotationFlow(), output_flow="same").norm()
        tensor(0.)
    """
    check_callable("network", network, "a module or a function")
    check_tensor("x", x)
    check_floating("x", x, "to be moved and differentiated")
    check_flow("flow", flow)
    flow.check(x)
    moves = as_output_flow(output_flow, flow)
    if max_batch is not None:
        check_count("max_batch", max_batch)
    differentiable = torch.is_grad_enabled()
    parts = []
    module = module_of(network)
    with undisturbed(network, x.device, evaluating=False):
        start = RandomState(x.device)

        def run(moved: Tensor) -> Tensor:
            start.restore()
            with preserved_buffers(module):  # all runs begin with the same
                return network(moved)

        derivative = DirectionalDerivative(alone=not is_batch_coupled(module))
        for chunk in ordinary(x).split(max_batch or max(len(x), 1)):
            _, lie = lie_derivatives(
                run, chunk, flow, range(len(flow)), moves, derivative, differentiable=differentiable
            )
            parts.append(lie)
    return torch.cat(parts, dim=1)


def lie_derivatives(
    network: Network,
    x: Tensor,
    flow: Flow,
    generators: Sequence[int],
    output_flow: OutputFlow,
    derivative: DirectionalDerivative,
    *,
    differentiable: bool,
) -> tuple[Tensor, Tensor]:
    """The outputs ``(B, ...)``, and the Lie derivatives along the chosen generators ``(k, B, ...)``."""
    with torch.set_grad_enabled(differentiable):
        directions = [flow.tangent(x, generator) for generator in generators]
        outputs, slopes = derivative.of(network, x, directions, differentiable=differentiable)
        if output_flow is None:
            return outputs, slopes
        try:
            moves = flow.alongside(x, outputs) if output_flow == "same" else output_flow
            assert isinstance(moves, Flow)
            moved = torch.stack([moves.tangent(outputs, generator) for generator in generators])
        except ValueError as error:
            raise ValueError(
                f"Expected `output_flow` to be able to move the network's output, {describe_value(outputs)}, but "
                f"{output_flow!r} is not: {error}"
            ) from error
        return outputs, slopes - moved


def as_output_flow(output_flow: object, flow: Flow, name: str = "output_flow") -> OutputFlow:
    """The flow of the output, checked; `Flow.alongside` says what "same" is of an output.

    Raises:
        ValueError: if it is none of what is expected, or has another number of generators.
    """
    if output_flow is None:
        return None
    if isinstance(output_flow, str) and output_flow == "same":
        return "same"
    if not isinstance(output_flow, Flow):
        raise ValueError(
            f"Expected `{name}` to be None (the output stays), 'same' (it moves as the input does) or a Flow but got "
            f"{output_flow!r}."
        )
    if len(output_flow) != len(flow):
        raise ValueError(
            f"Expected `{name}` to have as many generators as {flow!r}, {list(flow.generators)}, but got "
            f"{output_flow!r} with {list(output_flow.generators)}."
        )
    return output_flow


class _NoDerivative(ValueError):
    pass


_NO_DERIVATIVE = (
    "Expected `network` to be differentiable forwards or backwards twice but it is neither: an operation of it has "
    "first derivatives alone (a torch.autograd.Function without `jvp`, or torch.cdist, instead of which the norm of "
    "differences does)."
)


class DirectionalDerivative:
    r"""The derivative of a network's outputs in directions of its input, :math:`J v`.

    Forwards where all of the network's operations can be differentiated so, else by the gradient of
    :math:`u \mapsto v^\top J^\top u`, two backward passes. Of one output a sample, an energy say, the gradient in the
    input has the derivatives in all directions: that is taken where gradients are to flow, if it gives what the others
    do (it does not where samples depend on each other), and where the others fail.

    Args:
        way: which of them; found out if None.
        alone: whether samples are known not to depend on each other.
    """

    def __init__(self, way: Way | None = None, *, alone: bool = False) -> None:
        self.way = way
        self._alone = alone
        self._keeping = False  # whether what is to be computed again in the backward is kept instead
        self._checked = False  # whether two backward passes were seen to be right
        self._compared = way is not None  # whether gradients were seen to be the same both ways
        self._in_vain = 0  # how often they were compared where there were none
        # Whether the one gradient agrees, of one sample, which depends on no other, and of several.
        self._agrees: dict[bool, bool] = {}

    def of(
        self, network: Network, x: Tensor, directions: Sequence[Tensor], *, differentiable: bool
    ) -> tuple[Tensor, Tensor]:
        """The outputs ``(B, ...)``, and the derivatives in k directions ``(k, B, ...)``, each of a run of its own.

        Args:
            network: from inputs to outputs; it has the same random numbers whenever it is called.
            x: the batch, shape ``(B, ...)``.
            directions: k tensors like `x`.
            differentiable: whether gradients are to flow through the result.

        Raises:
            ValueError: if the outputs are no tensor of one row a sample, do not depend on `x`, or have no derivative.
        """
        # The fused attentions can be differentiated neither forwards nor twice.
        with sdpa_kernel(SDPBackend.MATH):
            if differentiable and self._agrees.get(len(x) > 1):
                return self._by("gradient", network, x, directions, differentiable)
            if self.way is None or (differentiable and not self._compared and self.way == "forward"):
                found = self._found_out(network, x, directions, differentiable)
            else:
                found = self._by(self.way, network, x, directions, differentiable)
            by_gradient = self._gradient_that_agrees(network, x, directions, found[1]) if differentiable else None
            return found if by_gradient is None else by_gradient

    def _by(
        self, way: Way, network: Network, x: Tensor, directions: Sequence[Tensor], differentiable: bool
    ) -> tuple[Tensor, Tensor]:
        if way == "forward":
            return _forwards(network, x, directions, differentiable, self._keeping)
        with torch.enable_grad():
            if way == "double_backward":
                return self._backwards_twice(network, x, directions, differentiable)
            found = _by_gradient(network, x, directions, differentiable, self._keeping)
            if found is None:
                raise ValueError(f"Expected `network` to give one output a sample again, for {len(x)} samples.")
            return found

    def _gradient_that_agrees(
        self, network: Network, x: Tensor, directions: Sequence[Tensor], slopes: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        unknown = self._alone and (len(x) > 1) not in self._agrees
        if not unknown or slopes[0].numel() != len(x) or not slopes.requires_grad:
            return None
        found = self._by("gradient", network, x, directions, differentiable=True)
        size = float(slopes.detach().double().norm())
        apart = float((found[1] - slopes).detach().double().norm())
        agrees = apart <= max(1e-3, 20 * _eps(x)) * size
        if size > 0:  # zeros say nothing
            self._agrees[len(x) > 1] = agrees
        return found if agrees else None

    def _found_out(
        self, network: Network, x: Tensor, directions: Sequence[Tensor], differentiable: bool
    ) -> tuple[Tensor, Tensor]:
        # First as it is, then with what a checkpoint would compute again, where torch's own rules hold, kept.
        for keeping in (False, True) if differentiable and not self._keeping else (self._keeping,):
            self._keeping = keeping
            try:
                if differentiable:
                    self._compare_gradients(network, x, directions[0])
                found = self._by("forward", network, x, directions, differentiable)
            except torch.OutOfMemoryError:
                raise
            except CheckpointError:
                continue
            except RuntimeError:  # `NotImplementedError` is one too; the network's own fault is raised once more
                break
            self.way = "forward"
            return found
        try:
            found = self._by("double_backward", network, x, directions, differentiable)
        except (NotImplementedError, _NoDerivative):
            with torch.enable_grad():
                by_gradient = None
                if self._alone and not differentiable:
                    by_gradient = _by_gradient(network, x, directions, differentiable, self._keeping)
            if by_gradient is None:
                raise _NoDerivative(_NO_DERIVATIVE) from None
            self.way = "gradient"
            return by_gradient
        except CheckpointError as error:
            raise ValueError(
                "Expected `network` to compute nothing again in its backward (torch.utils.checkpoint) that has a "
                "torch.autograd.Function of its own in it, for derivatives of its Lie derivative: it would be computed "
                "otherwise. Call what it checkpoints without."
            ) from error
        self.way = "double_backward"
        return found

    def _compare_gradients(self, network: Network, x: Tensor, direction: Tensor) -> None:
        """Raises a `RuntimeError` where gradients cannot be sent back through a derivative that was had forwards.

        What is checkpointed, say, would be run again without derivatives.

        Raises:
            ValueError: if both ways have gradients, and these are not the same: some rule of torch lacks a part.
        """

        def gradients(derivative: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, bool]:
            leaf = x.detach().clone().requires_grad_()
            _, slopes = derivative(leaf)
            gradient = None  # as of a network that is linear
            if slopes.requires_grad:
                (gradient,) = torch.autograd.grad((_random_like(slopes) * slopes).sum(), leaf, allow_unused=True)
            some = bool(slopes.detach().any())
            return (torch.zeros_like(leaf) if gradient is None else gradient).double(), some

        if self._compared:
            return
        towards = [direction.detach()]
        one, some = gradients(lambda leaf: _forwards(network, leaf, towards, True, self._keeping))
        try:
            with torch.enable_grad():
                other, _ = gradients(lambda leaf: self._backwards_twice(network, leaf, towards, True))
        except (RuntimeError, _NoDerivative):
            self._compared = True  # there is no other way
            return
        size = float(other.norm())
        # A head that begins at 0, or an empty image, has nothing to compare; what is piecewise linear never has.
        self._in_vain += some
        self._compared = size > 0 or self._in_vain >= _TRIES
        if float((one - other).norm()) > max(1e-3, 20 * _eps(x)) * size:
            raise ValueError(
                "Expected the gradients of the Lie derivative to be the same whether the network is differentiated "
                "forwards or backwards first, but they are not: the rules of an operation of it are wrong at that "
                "depth, as torch's own are for some normalisations. Write it out in others, or pass "
                "`flow.sampled()`, which needs no derivatives."
            )

    def _backwards_twice(
        self, network: Network, x: Tensor, directions: Sequence[Tensor], differentiable: bool
    ) -> tuple[Tensor, Tensor]:
        leaf = x.clone() if x.requires_grad and differentiable else x.detach().clone().requires_grad_()
        with backwards(keeping=self._keeping):
            outputs = _checked_outputs(network(leaf.clone()), x)  # of a copy: a leaf is not to be written in place
        gradient = None
        # Linear in u, so its graph serves all directions, whatever u it was made with. Random numbers are in no
        # layer's null space, as ones are in that of a layer normalisation, and the check below sees something.
        u = (torch.ones_like if self._checked else _random_like)(outputs).requires_grad_()
        if outputs.requires_grad:
            (gradient,) = torch.autograd.grad(outputs, leaf, u, create_graph=True, allow_unused=True)
        gradient = _checked_slope(gradient)
        slopes = []
        for direction in directions:
            slope = None
            with suppress(RuntimeError):  # as an operation does that says so
                (slope,) = torch.autograd.grad(
                    gradient, u, direction, retain_graph=True, create_graph=differentiable, allow_unused=True
                )
            # uᵀ J v both ways: an operation that cannot be differentiated twice need not say so.
            if slope is None or (not self._checked and not _agree(u, slope, gradient, direction)):
                raise _NoDerivative(_NO_DERIVATIVE)
            slopes.append(slope)
        self._checked = self._checked or bool(slopes[0].detach().any())
        return outputs if differentiable else outputs.detach(), torch.stack(slopes)


def _by_gradient(
    network: Network, x: Tensor, directions: Sequence[Tensor], differentiable: bool, keeping: bool
) -> tuple[Tensor, Tensor] | None:
    """By one backward pass for all directions, of one output a sample; None where there are several."""
    leaf = x.clone() if x.requires_grad and differentiable else x.detach().clone().requires_grad_()
    with backwards(keeping=keeping):
        outputs = _checked_outputs(network(leaf.clone()), x)
    if outputs.numel() != len(x):
        return None
    gradient = None
    if outputs.requires_grad:
        (gradient,) = torch.autograd.grad(outputs.sum(), leaf, create_graph=differentiable, allow_unused=True)
    gradient = _checked_slope(gradient)
    slopes = [(gradient * direction).reshape(len(x), -1).sum(dim=1).reshape(outputs.shape) for direction in directions]
    return outputs if differentiable else outputs.detach(), torch.stack(slopes)


def _forwards(
    network: Network, x: Tensor, directions: Sequence[Tensor], differentiable: bool, keeping: bool
) -> tuple[Tensor, Tensor]:
    outputs, slopes = None, []
    for direction in directions:
        with forwards(keeping=keeping):
            # Copies of both: a network may write into its input.
            dual = forward_ad.make_dual(x.clone() if differentiable else x.detach().clone(), direction.clone())
            result = _checked_outputs(network(dual), x)
            outputs, slope = forward_ad.unpack_dual(result)
        slopes.append(_checked_slope(slope))
    assert outputs is not None
    return outputs, torch.stack(slopes)


def _eps(x: Tensor) -> float:
    """How far what a network computes of `x` is rounded."""
    own = torch.finfo(x.dtype).eps
    if not torch.is_autocast_enabled(x.device.type):
        return float(own)
    return max(float(own), float(torch.finfo(torch.get_autocast_dtype(x.device.type)).eps))


def _agree(u: Tensor, slope: Tensor, gradient: Tensor, direction: Tensor) -> bool:
    one, other = ((a.detach().double() * b.detach().double()) for a, b in ((u, slope), (gradient, direction)))
    size = max(float(one.abs().sum()), float(other.abs().sum()))
    difference = float((one.sum() - other.sum()).abs())
    return not difference > max(1e-2, 10 * torch.finfo(slope.dtype).eps) * size


def _random_like(outputs: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(outputs.shape, generator=generator, device="cpu").to(outputs)


def _checked_outputs(outputs: object, x: Tensor) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != len(x):
        raise ValueError(
            f"Expected `network` to give a tensor of {len(x)} rows, one a sample, but got {describe_value(outputs)}."
        )
    if not outputs.is_floating_point():
        raise ValueError(f"Expected `network` to give floating-point outputs but got {outputs.dtype}.")
    return outputs


def _checked_slope(slope: Tensor | None) -> Tensor:
    if slope is None:
        raise ValueError(
            "Expected `network` to give outputs that have a derivative with respect to `x` but got none: they do not "
            "depend on it, or the network detaches them."
        )
    return slope
