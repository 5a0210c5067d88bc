"""What it costs to measure."""

from __future__ import annotations

import warnings

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.networks import (
    CLASSES,
    Batches,
    Classifier,
    convolutional,
    logits_and_gradient,
    perceptron,
    poses,
    residual,
    trainer_on,
)
from benchmarks.pairs import Pair, Setting, clocked, relative_difference
from lightning_invariance import C4, Gradient, InvarianceMonitor, evaluate_invariance, evaluate_orbit
from lightning_invariance.evaluation import InvarianceResults
from lightning_invariance.evaluation._measures import MEASURES, MeasureCollection

BATCH = 128
PEER_BATCH = 32  # tmeasures' own
OF_LOGITS = [
    name
    for name, measure in MEASURES.items()
    if "classes" in measure.unasked and name != "saliency_invariance_similarity"
]


def collection(setting: Setting) -> Pair:
    """All measures of logits, once the network has run."""
    size = setting.size(256, 8)
    network = convolutional().to(setting.device)
    x, y = setting.rand(size, 3, 32, 32), setting.labels(size, CLASSES)
    with torch.no_grad():
        moved = poses(x).flatten(0, 1)
        logits = network(moved).unflatten(0, (4, size))
    given = {"logits": logits[0], "orbit_logits": logits[1:], "target": y}
    measures = MeasureCollection(OF_LOGITS)

    def update(collection: MeasureCollection) -> None:
        for name in collection.names:
            collection.update(name, given)

    update(measures)  # moves the states to the device

    def difference() -> float:
        alone = MeasureCollection(OF_LOGITS)
        update(alone)
        found = alone.compute()
        logit_error = (logits[1:] - logits[0]).square().sum(dim=-1).mean() / 2
        right = (logits.argmax(dim=-1) == y).all(dim=0).double().mean()
        return max(
            relative_difference(found["logit_invariance_error"].value, logit_error),
            abs(float(found["worst_case_orbit_accuracy"].value - right)),
        )

    def forward() -> None:
        with torch.no_grad():
            network(moved)

    return Pair(
        f"update of all {len(OF_LOGITS)} measures of logits, C4, {size} samples",
        "forward of a small network over the same orbit",
        clocked(lambda: update(measures), setting),
        clocked(forward, setting),
        0.03,
        difference,
        1e-4,
    )


def per_class(setting: Setting) -> Pair:
    """Each measure of each class besides."""
    size = setting.size(256, 16)
    network = convolutional().to(setting.device)
    batches = [(setting.rand(size, 3, 32, 32), setting.labels(size, CLASSES)) for _ in range(setting.size(4, 1))]

    def measured(classes: bool | int) -> InvarianceResults:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few samples some classes have none
            return evaluate_invariance(network, batches, C4(), per_class=classes, saliency_samples=0, progress=False)

    def difference() -> float:
        found = measured(CLASSES)
        shares = torch.cat([y for _, y in batches]).bincount(minlength=CLASSES) / sum(len(y) for _, y in batches)
        of_classes = found.per_class["logit_invariance_error"].value.nan_to_num()
        return relative_difference((shares * of_classes).sum(), found["logit_invariance_error"].value)

    return Pair(
        f"all measures of each of {CLASSES} classes besides, C4, {size * len(batches)} samples",
        "those of all samples alone",
        clocked(lambda: measured(CLASSES), setting),
        clocked(lambda: measured(False), setting),
        1.25,
        difference,
        1e-4,
    )


def monitored_epoch(setting: Setting) -> Pair:
    """A validation epoch with everything that the monitor measures."""
    size = setting.size(BATCH, 4)
    data = Batches(setting, size, (3, 32, 32), batches=setting.size(8, 2))
    module = Classifier(convolutional())
    monitor = InvarianceMonitor(C4(), saliency=Gradient(), saliency_samples=len(data.data))

    def ours() -> None:
        monitor.history.clear()
        trainer_on(setting, [monitor]).validate(module, datamodule=data, verbose=False)

    network = convolutional().to(setting.device)

    def theirs() -> None:
        for batch in data.val_dataloader():
            x, y = (part.to(setting.device) for part in batch)
            for turns in (0, 0, 1, 2, 3):  # the step's own, and the orbit
                logits_and_gradient(network, torch.rot90(x, turns, (-2, -1)), y)

    def difference() -> float:
        ours()
        found = monitor.history[-1].measures
        errors, similarities = [], []
        for batch in data.val_dataloader():
            x, y = (part.to(setting.device) for part in batch)
            base, *moved = (logits_and_gradient(network, pose, y) for pose in poses(x))
            for turns, (logits, maps) in enumerate(moved, start=1):
                errors.append((logits - base[0]).square().sum(dim=1) / 2)
                posed = torch.rot90(maps, -turns, (-2, -1))
                similarities.append(F.cosine_similarity(posed.flatten(1), base[1].flatten(1)))
        return max(
            relative_difference(found["logit_invariance_error"].value, torch.cat(errors).mean().cpu()),
            relative_difference(found["saliency_invariance_similarity"].value, torch.cat(similarities).mean().cpu()),
        )

    count = len(data.data)
    return Pair(
        f"validation epoch with InvarianceMonitor, all measures and gradient maps, C4, {count} samples",
        f"bare loop: forward and input gradient of {5 * count}, a batch of one pose at a time",
        clocked(ours, setting),
        clocked(theirs, setting),
        1.10,
        difference,
        1e-4,
    )


def default_monitor(setting: Setting) -> Pair:
    """A validation epoch with the monitor as it comes: maps of the first samples alone."""
    size = setting.size(64, 4)
    data = Batches(setting, size, (3, 64, 64), batches=setting.size(8, 2))
    module = Classifier(residual())
    monitor = InvarianceMonitor(C4())

    def ours() -> None:
        monitor.history.clear()
        trainer_on(setting, [monitor]).validate(module, datamodule=data, verbose=False)

    network = residual().to(setting.device).eval()

    def theirs() -> None:
        with torch.no_grad():
            for batch in data.val_dataloader():
                for pose in poses(batch[0].to(setting.device)):
                    network(pose)

    def difference() -> float:
        ours()
        found = monitor.history[-1].measures
        explained = monitor.saliency_samples
        x, y = (part.to(setting.device) for part in data.data.tensors)
        with torch.no_grad():
            base, *moved = (torch.cat([network(part) for part in pose.split(size)]) for pose in poses(x))
        error = torch.stack([(logits - base).square().sum(dim=1) / 2 for logits in moved]).mean()
        x, y = x[:explained], y[:explained]
        noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0)).to(setting.device)
        noisy = x + 1e-3 * x.std(dim=(1, 2, 3), correction=0, keepdim=True) * noise
        maps = [logits_and_gradient(network, pose, y)[1] for pose in poses(noisy)]
        posed = [torch.rot90(each, -turns, (-2, -1)).flatten(1) for turns, each in enumerate(maps)]
        similarity = torch.stack([F.cosine_similarity(posed[0], each) for each in posed[1:]]).mean()
        return max(
            relative_difference(found["logit_invariance_error"].value, error.cpu()),
            relative_difference(found["saliency_invariance_similarity"].value, similarity.cpu()),
        )

    count = len(data.data)
    return Pair(
        f"validation epoch with InvarianceMonitor as it comes, C4, {count} samples of 3×64×64, residual network",
        f"bare pass over the orbit: forward of {4 * count}, a batch of one pose at a time",
        clocked(ours, setting),
        clocked(theirs, setting),
        1.5,
        difference,
        1e-4,
    )


def output_invariance(setting: Setting) -> Pair:
    """All measures of logits on a data set, against one measure of tmeasures': variance within orbits over variance."""
    return _against_tmeasures(setting, "convolutional", "NormalizedVarianceInvariance", 1 / 3)


def output_invariance_of_a_perceptron(setting: Setting) -> Pair:
    """The same of the paper's network, which takes less time than what is around it."""
    return _against_tmeasures(setting, "perceptron", "NormalizedVarianceInvariance", 1 / 3)


def variance_within_orbits(setting: Setting) -> Pair:
    """The same against that measure's numerator alone."""
    return _against_tmeasures(setting, "convolutional", "TransformationVarianceInvariance", None)


def _against_tmeasures(setting: Setting, kind: str, measure: str, at_most: float | None) -> Pair:
    import tmeasures
    from tmeasures import pytorch as peer

    count = setting.size(1000, 16)
    made = convolutional() if kind == "convolutional" else perceptron(3 * 32 * 32, CLASSES)
    network = made.to(setting.device)
    images = setting.rand(count, 3, 32, 32)

    class Logits(peer.ActivationsModule):
        def activation_names(self) -> list[str]:
            return ["logits"]

        def forward_activations(self, args: torch.Tensor) -> list[torch.Tensor]:
            return [network(args)]

    class Turn(peer.PyTorchTransformation):
        def __init__(self, turns: int) -> None:
            super().__init__()
            self.turns = turns

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return torch.rot90(x, self.turns, (-2, -1))

    turns = tmeasures.TransformationSet([Turn(number) for number in range(4)])
    device = str(setting.device)
    options = peer.PyTorchMeasureOptions(
        batch_size=PEER_BATCH, verbose=False, model_device=device, measure_device=device, data_device=device
    )

    def theirs() -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(peer, measure)().eval(images, turns, Logits(), options).layers[0]

    loader = DataLoader(TensorDataset(images), batch_size=PEER_BATCH)
    unlabelled = [name for name in OF_LOGITS if "accuracy" not in name]

    def ours() -> None:
        evaluate_invariance(network, loader, C4(), measures=unlabelled, progress=False)

    def difference() -> float:
        with torch.no_grad():
            outputs = evaluate_orbit(network, images, C4())
        logits = torch.cat([outputs.logits[None], outputs.orbit_logits]).double()
        expected = logits.std(dim=0).mean(dim=0)  # of each logit over the orbit
        if measure.startswith("Normalized"):
            expected = expected / logits.std(dim=1).mean(dim=0)  # over the samples
        return relative_difference(expected, theirs())

    return Pair(
        f"evaluate_invariance, all {len(unlabelled)} measures of logits without labels, C4, {count} images, {kind}",
        f"tmeasures' {measure} alone",
        clocked(ours, setting),
        clocked(theirs, setting),
        at_most,
        difference,
        1e-4,
    )
