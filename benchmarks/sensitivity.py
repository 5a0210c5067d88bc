"""What the Jacobian's largest singular value costs."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.networks import convolutional, perceptron
from benchmarks.pairs import Pair, Setting, clocked, relative_difference
from lightning_invariance import TranslationFlow, evaluate_lie_derivative, jacobian_spectral_norm

SIDE = 36
OUTPUTS = 9


def few_outputs_convolutional(setting: Setting) -> Pair:
    """The paper's 9 classes."""
    return _few_outputs(setting, "convolutional", graphs=1)


def few_outputs_perceptron(setting: Setting) -> Pair:
    """The same, of the paper's network, whose products are so cheap that all else shows."""
    return _few_outputs(setting, "perceptron", graphs=1)


def few_outputs_separately(setting: Setting) -> Pair:
    """The same, against products that do not share a forward."""
    return _few_outputs(setting, "perceptron", graphs=OUTPUTS)


def _few_outputs(setting: Setting, kind: str, graphs: int) -> Pair:
    made = convolutional(1, (16, 32), OUTPUTS) if kind == "convolutional" else perceptron(SIDE * SIDE, OUTPUTS)
    network = made.to(setting.device)
    size = setting.size(64, 4)
    x = setting.rand(size, 1, SIDE, SIDE)

    def theirs() -> None:
        for rows in torch.eye(OUTPUTS, device=x.device).chunk(graphs):
            inputs = x.clone().requires_grad_()
            logits = network(inputs)
            for row in rows:
                torch.autograd.grad(logits, inputs, row.expand_as(logits), retain_graph=True)

    return Pair(
        f"σ_max of the Jacobian, {kind}, {size} samples of {SIDE}×{SIDE}, {OUTPUTS} outputs",
        f"{OUTPUTS} vector-Jacobian products, {graphs} forward",
        clocked(lambda: jacobian_spectral_norm(network, x), setting),
        clocked(theirs, setting),
        1.2,
        lambda: relative_difference(jacobian_spectral_norm(network, x), _by_svd(network, x)),
    )


def many_outputs(setting: Setting) -> Pair:
    """By Lanczos' iteration, against the whole matrix."""
    network = convolutional(1, (16, 32), classes=setting.size(1000, 70)).to(setting.device)
    x = setting.rand(setting.size(8, 2), 1, SIDE, SIDE)
    outputs = network[-1].out_features
    return Pair(
        f"the same, convolutional, {len(x)} samples, {outputs:,} outputs",
        "full Jacobian and SVD",
        clocked(lambda: jacobian_spectral_norm(network, x), setting),
        clocked(lambda: _by_svd(network, x), setting),
        1 / 5,
        lambda: relative_difference(jacobian_spectral_norm(network, x), _by_svd(network, x)),
        1e-3,
    )


def lie_derivative(setting: Setting) -> Pair:
    """Both generators of translations, against the forwards that as many differences take."""
    network = convolutional(1, (16, 32), OUTPUTS).to(setting.device)
    x = setting.rand(setting.size(64, 4), 1, SIDE, SIDE)
    flow = TranslationFlow()

    @torch.no_grad()
    def ours() -> torch.Tensor:
        return evaluate_lie_derivative(network, x, flow)

    @torch.no_grad()
    def theirs() -> None:
        for _ in range(len(flow) + 1):
            network(x)

    def difference() -> float:
        got = ours()  # first: torch warns where its rules are loaded
        tangents = [flow.tangent(x, generator) for generator in flow.generators]
        by_jvp = torch.stack([torch.func.jvp(network, (x,), (tangent,))[1].detach() for tangent in tangents])
        return relative_difference(got, by_jvp)

    return Pair(
        f"Lie derivatives of translations, convolutional, {len(x)} samples of {SIDE}×{SIDE}",
        f"{len(flow) + 1} forwards",
        clocked(ours, setting),
        clocked(theirs, setting),
        3.0,
        difference,
    )


def _by_svd(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    def of_one(sample: torch.Tensor) -> torch.Tensor:
        return network(sample[None])[0]

    jacobians = torch.func.vmap(torch.func.jacrev(of_one))(x)
    return torch.linalg.matrix_norm(jacobians.detach().flatten(2), ord=2)
