"""What the package is held against: classifiers of known truth, formulas written out, comparers of what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from helpers import CLASSES, SIDE, fit
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHT = 0.3

# Networks --------------------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    """Not invariant to anything."""
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def noisy(p: float = 0.5, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """With running statistics and random numbers."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        activation(),
        nn.Dropout(p),
        nn.Flatten(),
        nn.Linear(4 * SIDE * SIDE, CLASSES),
    )


def convnet() -> nn.Module:
    """With running statistics, and smooth."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * SIDE * SIDE, CLASSES),
    )


def dropping() -> nn.Module:
    """With random numbers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, CLASSES))


class MaxOverPixels(nn.Module):
    """Exactly invariant to everything that only moves pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.amax(dim=(-2, -1)))


class Symmetrised(nn.Module):
    """The mean of a network over the four rotations: invariant to them by construction."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.network(torch.rot90(x, k, (-2, -1))) for k in range(4)]).mean(dim=0)


# Classifiers -----------------------------------------------------------------------------------------------------


class Classifier(LightningModule):
    """An ordinary module that knows nothing of the package; a subclass that is an oracle adds a term to its loss."""

    def __init__(self, network: Callable[[], nn.Module] = mlp, lr: float = 0.1) -> None:
        super().__init__()
        self.model = network()
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
        return 0.0

    def again(self, x: Tensor) -> Tensor:
        """The network once more, for the term: with the dropout masks of the step, and leaving no trace."""
        after = torch.get_rng_state()
        torch.set_rng_state(self.before)
        fx = untracked(self.model, x)
        torch.set_rng_state(after)
        return fx

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        self.before = torch.get_rng_state()
        fx = self(x)
        return F.cross_entropy(fx, y) + self.added(fx, x)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Noisy(Classifier):
    """Running statistics, dropout, an optimiser with much state."""

    def __init__(self) -> None:
        super().__init__(noisy)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Noting(Classifier):
    """Notes its losses and logs them."""

    def __init__(self, network: Callable[[], nn.Module] = mlp) -> None:
        super().__init__(network)
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss.detach()))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.log("val_loss", super().validation_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Logit:
    """A term of the logits under the four rotations, written into the step of a module."""

    term: Any = staticmethod(lambda fx, fgx: logit_term(fx, fgx))
    weight = WEIGHT

    def added(self: Any, fx: Tensor, x: Tensor) -> Tensor | float:
        return self.weight * self.term(fx, [self.again(each) for each in rotated(x)])


class Stacked(Logit):
    """The same with all elements in one forward: half precision rounds other shapes otherwise."""

    def added(self: Any, fx: Tensor, x: Tensor) -> Tensor | float:
        return self.weight * self.term(fx, self.again(torch.cat(rotated(x))).chunk(3))


class Saliency:
    """The invariance error of the maps, likewise."""

    def added(self: Any, fx: Tensor, x: Tensor) -> Tensor | float:
        return WEIGHT * saliency_term(self.again, fx, x)


class Lie:
    """The squared Lie derivative of rotations about the centre, of images that go on periodically."""

    def added(self: Any, fx: Tensor, x: Tensor) -> Tensor | float:
        def again(x: Tensor) -> Tensor:
            after = torch.get_rng_state()
            torch.set_rng_state(self.before)
            fx = written_out(self.model, x)
            torch.set_rng_state(after)
            return fx

        return WEIGHT * lie_term(again, x, [turning(x)])


class WithTerm(Logit, Classifier):
    pass


# Terms of the loss -----------------------------------------------------------------------------------------------


def rotated(x: Tensor) -> list[Tensor]:
    # Contiguous: a dropout mask is drawn in the order of memory.
    return [torch.rot90(x, k, (2, 3)).contiguous() for k in (1, 2, 3)]


def untracked(network: Any, x: Tensor) -> Tensor:
    """The network in train mode with the statistics of this batch, which it does not remember."""
    if not isinstance(network, nn.Sequential):
        return network(x)
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d) and layer.training:
            x = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
        else:
            x = layer(x)
    return x


def written_out(network: Any, x: Tensor) -> Tensor:
    """The same in operations that torch differentiates three times as it should."""
    if not isinstance(network, nn.Sequential):
        return network(x)
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d) and layer.training:
            centred = x - x.mean((0, 2, 3), keepdim=True)
            scale = (centred.square().mean((0, 2, 3), keepdim=True) + layer.eps).rsqrt()
            x = centred * scale * layer.weight[:, None, None] + layer.bias[:, None, None]
        else:
            x = layer(x)
    return x


def raised(fx: Tensor, fgx: Iterable[Tensor]) -> list[Tensor]:
    """In float32 at least: differences of nearly equal numbers in half precision would say nothing."""
    return [z.float() if z.dtype in (torch.float16, torch.bfloat16) else z for z in (fx, *fgx)]


def logit_term(fx: Tensor, fgx: Sequence[Tensor]) -> Tensor:
    fx, *fgx = raised(fx, fgx)
    return sum(0.5 * ((fx - each) ** 2).sum(1).mean() for each in fgx) / len(fgx)


def normalized_logit_term(fx: Tensor, fgx: Sequence[Tensor]) -> Tensor:
    fx, *fgx = raised(fx, fgx)
    return sum((((fx - each) ** 2).sum(1) / (fx**2).sum(1)).mean() for each in fgx) / len(fgx)


def distribution_term(fx: Tensor, fgx: Sequence[Tensor]) -> Tensor:
    fx, *fgx = raised(fx, fgx)
    p = fx.softmax(1)
    return sum((p * (p.log() - each.softmax(1).log())).sum(1).mean() for each in fgx) / len(fgx)


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(1)


def jensen_shannon_term(fx: Tensor, fgx: Sequence[Tensor]) -> Tensor:
    members = [each.softmax(1) for each in raised(fx, fgx)]
    mixture = sum(members) / len(members)
    return (entropy(mixture) - sum(entropy(p) for p in members) / len(members)).mean()


def absolute_penalty(logits: Tensor, orbit_logits: Tensor) -> Tensor:
    """A penalty of the user's own."""
    return (logits - orbit_logits).abs().sum(-1).mean()


def absolute_term(fx: Tensor, fgx: Sequence[Tensor]) -> Tensor:
    fx, *fgx = raised(fx, fgx)
    return sum((fx - each).abs().sum(1).mean() for each in fgx) / len(fgx)


TERMS: dict[Any, Callable[[Tensor, Sequence[Tensor]], Tensor]] = {
    "logit": logit_term,
    "normalized_logit": normalized_logit_term,
    "distribution": distribution_term,
    "jensen_shannon": jensen_shannon_term,
    absolute_penalty: absolute_term,
}


def saliency_term(run: Callable[[Tensor], Tensor], fx: Tensor, x: Tensor) -> Tensor:
    """One minus the cosine between the maps of x and of its rotations, turned back; of the class predicted on x."""
    predicted = fx.detach().argmax(1)

    def gradients(image: Tensor) -> Tensor:
        leaf = image.detach().clone().requires_grad_()
        chosen = run(leaf)[torch.arange(len(x)), predicted].sum()
        return torch.autograd.grad(chosen, leaf, create_graph=True)[0]

    base = gradients(x)
    gaps = []
    for k in (1, 2, 3):
        turned = torch.rot90(gradients(torch.rot90(x, k, (2, 3)).contiguous()), -k, (2, 3))
        gaps.append((1 - F.cosine_similarity(base.flatten(1), turned.flatten(1))).mean())
    return sum(gaps) / 3


def lie_term(run: Callable[[Tensor], Tensor], x: Tensor, tangents: Sequence[Tensor]) -> Tensor:
    """The mean over samples of the squared derivatives in these directions, added up, by two backward passes."""
    leaf = x.detach().clone().requires_grad_()
    logits = run(leaf)
    u = torch.ones_like(logits).requires_grad_()
    (gradient,) = torch.autograd.grad(logits, leaf, u, create_graph=True)
    slopes = [torch.autograd.grad(gradient, u, tangent, create_graph=True)[0] for tangent in tangents]
    return sum(slope.float().square().reshape(len(x), -1).sum(1).mean() for slope in slopes)


def turning(x: Tensor) -> Tensor:
    """How a square image begins to turn counter-clockwise, by a matrix that differentiates its interpolation."""
    side = x.shape[-1]
    frequencies = 2j * np.pi * np.fft.fftfreq(side)
    if side % 2 == 0:
        frequencies[side // 2] = 0
    matrix = np.fft.ifft(frequencies[:, None] * np.fft.fft(np.eye(side), axis=0), axis=0).real
    slope, place = torch.from_numpy(matrix).to(x), torch.arange(side).to(x) - (side - 1) / 2
    return place * (slope @ x) - place[:, None] * (x @ slope.T)


# Measures, in double precision -----------------------------------------------------------------------------------

Arrays = dict[str, np.ndarray]


class Values(NamedTuple):
    """What a measure says of each sample, shape (B,), and of each element and sample, shape (G, B)."""

    per_sample: np.ndarray
    per_element: np.ndarray

    def reduced(self, reduction: str) -> np.ndarray:
        if reduction == "none":
            return self.per_sample
        return self.per_sample.mean() if reduction == "mean" else self.per_element.mean(axis=1)


def in_double(batch: dict[str, Tensor]) -> Arrays:
    """Every output of a network in one row a sample."""
    arrays = {name: tensor.double().numpy() for name, tensor in batch.items()}
    for name in ("logits", "saliency"):
        for each, rest in ((name, 1), (f"orbit_{name}", 2), (f"perturbed_{name}", 2)):
            if each in arrays:
                arrays[each] = arrays[each].reshape(*arrays[each].shape[:rest], -1)
    return arrays


def of_pairs(pairs: np.ndarray) -> Values:
    return Values(pairs.mean(axis=0), pairs)


def outcomes(z: np.ndarray, activation: str) -> np.ndarray:
    """Probabilities, shape (..., distributions, outcomes)."""
    if activation == "softmax":
        exponentials = np.exp(z - z.max(axis=-1, keepdims=True))
        return (exponentials / exponentials.sum(axis=-1, keepdims=True))[..., None, :]
    return np.stack([1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))], axis=-1)


def lie_values(data: Arrays, activation: str = "", norm: str = "squared") -> Values:
    slopes = data["lie_derivative"]
    if activation == "softmax":  # by the Jacobian, whole
        p = outcomes(data["logits"], "softmax")[..., 0, :]
        jacobian = np.einsum("bc,cd->bcd", p, np.eye(p.shape[1])) - np.einsum("bc,bd->bcd", p, p)
        slopes = np.einsum("bcd,kbd->kbc", jacobian, slopes)
    return of_pairs((slopes**2 if norm == "squared" else np.abs(slopes)).mean(axis=-1))


def distribution_values(data: Arrays, activation: str = "softmax") -> Values:
    u, q = outcomes(data["logits"], activation), outcomes(data["orbit_logits"], activation)
    return of_pairs((u * np.log(u / q)).sum(axis=(-1, -2)))


def jensen_shannon_values(data: Arrays, activation: str = "softmax") -> Values:
    p = outcomes(np.concatenate([data["logits"][None], data["orbit_logits"]]), activation)
    mean = p.mean(axis=0)
    entropies = -(p * np.log(p)).sum(axis=(-1, -2))
    divergence = -(mean * np.log(mean)).sum(axis=(-1, -2)) - entropies.mean(axis=0)
    return Values(divergence, (p * np.log(p / mean)).sum(axis=(-1, -2))[1:])


def logit_values(data: Arrays) -> Values:
    return of_pairs(0.5 * ((data["logits"] - data["orbit_logits"]) ** 2).sum(axis=-1))


def normalized_logit_values(data: Arrays) -> Values:
    distance = ((data["logits"] - data["orbit_logits"]) ** 2).sum(axis=-1)
    return of_pairs(distance / (data["logits"] ** 2).sum(axis=-1))


def relative_logit_values(data: Arrays) -> Values:
    variance = data["logits"].var(axis=0).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return of_pairs(logit_values(data).per_element / variance)


def saliency_values(data: Arrays) -> Values:
    x, gx = data["saliency"], data["orbit_saliency"]
    return of_pairs((x * gx).sum(axis=-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(gx, axis=-1))


def consistency_values(data: Arrays) -> Values:
    return of_pairs((data["logits"].argmax(-1) == data["orbit_logits"].argmax(-1)).astype(float))


def accuracy_values(data: Arrays) -> Values:
    return of_pairs((data["orbit_logits"].argmax(-1) == data["target"]).astype(float))


def worst_accuracy_values(data: Arrays) -> Values:
    right = accuracy_values(data).per_element
    return Values(right.min(axis=0) * (data["logits"].argmax(-1) == data["target"]), right)


def loss_share_values(data: Arrays) -> Values:
    """Of cross-entropy, in per cent of the mean loss over all poses."""
    z = np.concatenate([data["logits"][None], data["orbit_logits"]])

    def loss(logits: np.ndarray) -> np.ndarray:
        chosen = np.take_along_axis(logits, data["target"].astype(int)[:, None], axis=-1)[..., 0]
        return np.log(np.exp(logits).sum(axis=-1)) - chosen

    poses = np.array([loss(pose) for pose in z])
    excess = 100 * (poses - loss(z.mean(axis=0))) / poses.mean()
    return Values(excess.mean(axis=0), excess[1:])


def share_values(data: Arrays) -> Values:
    z = np.concatenate([data["logits"][None], data["orbit_logits"]])
    if z.shape[-1] > 1:  # one output a sample keeps its mean
        z = z - z.mean(axis=-1, keepdims=True)
    deviations = ((z - z.mean(axis=0)) ** 2).sum(axis=-1)
    # With orbits of one size, the variance within and between them adds up to the variance of all points.
    total = z.reshape(-1, z.shape[-1]).var(axis=0).sum()
    return Values(deviations.mean(axis=0) / total, deviations[1:] / total)


def movements(data: Arrays) -> tuple[np.ndarray, np.ndarray]:
    by_group = ((data["orbit_logits"] - data["logits"]) ** 2).sum(axis=-1)
    return by_group, ((data["perturbed_logits"] - data["logits"]) ** 2).sum(axis=-1)


def selectivity_values(data: Arrays) -> Values:
    a, b = movements(data)
    return Values(a.mean(axis=0) / b.mean(), a / b.mean(axis=1, keepdims=True))


def selectivity_influences(data: Arrays) -> Values:
    """How much each sample moves the ratio, whose standard deviation gives its error."""

    def influences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ratio = a.mean(axis=-1, keepdims=True) / b.mean(axis=-1, keepdims=True)
        return (a - ratio * b) / b.mean(axis=-1, keepdims=True)

    a, b = movements(data)
    return Values(influences(a.mean(axis=0), b.mean(axis=0)), influences(a, b))


#: The names under which a monitor logs them.
OF_LOGITS: dict[str, Callable[[Arrays], Values]] = {
    "logit_invariance_error": logit_values,
    "normalized_logit_invariance_error": normalized_logit_values,
    "relative_logit_invariance_error": relative_logit_values,
    "distribution_invariance_error": distribution_values,
    "jensen_shannon_invariance_error": jensen_shannon_values,
    "prediction_consistency": consistency_values,
    "orbit_share": share_values,
}
OF_LABELS = {"orbit_accuracy": accuracy_values, "worst_case_orbit_accuracy": worst_accuracy_values}


# Measures of a network -------------------------------------------------------------------------------------------


def gradient_map(network: nn.Module, image: Tensor, label: int) -> np.ndarray:
    """The gradient of one logit with respect to one image, or to each of a batch of them."""
    leaf = (image if image.ndim == 4 else image[None]).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf)[:, label].sum(), leaf)
    return (gradient if image.ndim == 4 else gradient[0]).double().numpy()


def paper_map(network: nn.Module, image: Tensor, label: int) -> np.ndarray:
    """|integrated gradients| over a zero baseline, the peaks kept, smoothed by a 3×3 Gaussian filter."""
    nodes, weights = np.polynomial.legendre.leggauss(32)
    path = torch.stack([image * float((node + 1) / 2) for node in nodes])
    integral = np.tensordot(weights / 2, gradient_map(network, path, label), axes=1)
    maps = np.abs(image.double().numpy() * integral)
    maps = np.where(maps >= 0.9 * maps.max(), maps, 0.0)
    kernel = np.array([[np.exp(-(i * i + j * j) / 2) for j in (-1, 0, 1)] for i in (-1, 0, 1)])
    kernel /= kernel.sum()
    _, height, width = maps.shape
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
    return sum(kernel[i, j] * padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3))


def measures_by_hand(
    network: nn.Module,
    x: Tensor,
    y: Tensor | None,
    saliency: Callable[[nn.Module, Tensor, int], np.ndarray] | None = None,
    saliency_samples: int | None = None,
) -> dict[str, float]:
    """Every measure of a classifier under C4, one image and one pose at a time."""
    network.eval()
    poses = [[torch.rot90(image, k, (1, 2)) for image in x] for k in range(4)]
    with torch.no_grad():
        z = torch.stack([torch.cat([network(image[None]) for image in images]) for images in poses])
    data = in_double({"logits": z[0], "orbit_logits": z[1:], **({} if y is None else {"target": y})})
    formulas = OF_LOGITS | ({} if y is None else OF_LABELS)
    values = {name: float(formula(data).reduced("mean")) for name, formula in formulas.items()}
    mapped = range(len(x))[:saliency_samples]
    if saliency is not None and mapped:
        labels = z[0].argmax(1) if y is None else y
        maps = np.stack(
            [
                [np.rot90(saliency(network, poses[k][i], int(labels[i])), -k, (1, 2)).ravel() for i in mapped]
                for k in range(4)
            ]
        )
        of_maps = saliency_values({"saliency": maps[0], "orbit_saliency": maps[1:]})
        values["saliency_invariance_similarity"] = float(of_maps.reduced("mean"))
    return values


# Comparisons -----------------------------------------------------------------------------------------------------


def distance(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between two modules' parameters."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a.detach().double() - b.detach().double()).abs().max()) for a, b in pairs)


def assert_trained_alike(got: nn.Module, oracle: nn.Module, unlike: nn.Module, tolerance: float = 1e-6) -> None:
    """The two took the same steps, which are not those of the third, and kept the same statistics."""
    assert distance(got, oracle) < tolerance
    assert distance(oracle, unlike) > 1000 * tolerance
    for (name, buffer), (_, expected) in zip(got.named_buffers(), oracle.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, atol=tolerance, rtol=0.0, msg=name)


def compare(
    plain: Callable[[], LightningModule],
    oracle: Callable[[], LightningModule],
    callbacks: Callable[[], list[Callback]] | list[Callback],
    others: Callable[[], list[Callback]] = list,
    tolerance: float = 1e-6,
    **options: Any,
) -> LightningModule:
    """The plain module with the callbacks must train as the oracle does without; `others` are there every time."""
    got = fit(plain, [*others(), *(callbacks() if callable(callbacks) else callbacks)], **options)
    assert_trained_alike(got, fit(oracle, others(), **options), fit(plain, others(), **options), tolerance)
    return got


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested containers with every leaf under its path."""
    if isinstance(value, dict):
        pairs: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    else:
        return {path: value}
    return {place: leaf for key, item in pairs for place, leaf in flat(item, f"{path}/{key}").items()}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    return bool(one == other)


def assert_identical(one: Any, other: Any) -> None:
    """Bit for bit."""
    left, right = flat(one), flat(other)
    assert left.keys() == right.keys()
    assert [place for place, leaf in left.items() if not same(leaf, right[place])] == []


def assert_values(actual: Tensor, expected: Any, dtype: torch.dtype = torch.float32, **tolerance: float) -> None:
    """A tensor of this precision, of the shape of a reference and close to it."""
    assert actual.dtype == dtype
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(actual.numpy(), expected, **tolerance)
