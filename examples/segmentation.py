"""Does a segmentation turn with its image? The same question as in `digits.py`, of outputs that move.

Each image is a mosaic of photographs of brick, grass and gravel, laid out at random; the network says which of them it
sees in each pixel. When the image is turned, the mask has to turn with it: the network has to be equivariant. Four
models, of one small network:

- plain: trained on upright mosaics.
- DA: the same, on mosaics turned at random by multiples of 90°, their masks turned with them.
- IR: the same as DA, with the equivariance error added to its loss.
- DA pooled: the network of DA, its output averaged over the four poses when it predicts. Equivariant by construction.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import lightning as L
import torch
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from skimage import data as skimage_data
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassJaccardIndex

from lightning_invariance import (
    C4,
    Estimate,
    InvarianceMonitor,
    InvarianceRegularizer,
    OrbitAugmentation,
    evaluate_orbit,
)
from lightning_invariance.baselines import OrbitPooled
from lightning_invariance.report import markdown_table

CLASSES = ("brick", "grass", "gravel")
SIDE = 32
BANDS = {"train": (0, 256), "validation": (272, 368), "test": (384, 512)}  # columns of the photographs
COLUMNS = {
    "relative_equivariance_error": "relative error",
    "logit_invariance_error": "LI",
    "prediction_consistency": "consistency",
    "orbit_mean_iou": "orbit mIoU",
    "worst_case_orbit_accuracy": "worst-case orbit accuracy",
}


class Segmenter(L.LightningModule):
    """What anybody would write: it knows nothing of groups."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.mean_iou = MulticlassJaccardIndex(len(CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        image, mask = batch
        return F.cross_entropy(self(image), mask)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        image, mask = batch
        self.mean_iou(self(image), mask)
        self.log("val/mean_iou", self.mean_iou)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        image, mask = batch
        self.mean_iou(self(image), mask)
        self.log("test/mean_iou", self.mean_iou)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), weight_decay=1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class UNet(nn.Module):
    """A small one. Its pooling and upsampling turn with the image, its 3×3 filters need not.

    Args:
        width: channels of the first level.
    """

    def __init__(self, width: int = 12) -> None:
        super().__init__()

        def block(before: int, after: int) -> nn.Sequential:
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())

        self.fine = block(1, width)
        self.middle = nn.Sequential(nn.MaxPool2d(2), block(width, 2 * width), block(2 * width, 2 * width))
        self.coarse = nn.Sequential(nn.MaxPool2d(2), block(2 * width, 2 * width), nn.Upsample(scale_factor=2))
        self.to_middle = nn.Sequential(block(4 * width, 2 * width), nn.Upsample(scale_factor=2))
        self.to_fine = nn.Sequential(block(3 * width, width), nn.Conv2d(width, len(CLASSES), 1))

    def forward(self, image: Tensor) -> Tensor:
        fine = self.fine(image)
        middle = self.middle(fine)
        middle = self.to_middle(torch.cat([self.coarse(middle), middle], dim=1))
        return self.to_fine(torch.cat([middle, fine], dim=1))


@dataclass
class Mosaics:
    """Pairs of an image ``(1, SIDE, SIDE)`` and its mask ``(SIDE, SIDE)``, each part from columns of its own."""

    train: TensorDataset
    validation: TensorDataset
    test: TensorDataset


def load_photographs() -> Tensor:
    """``(classes, 512, 512)``, each standardised by its training columns, so that brightness does not give it away."""
    photos = torch.stack([torch.from_numpy(getattr(skimage_data, name)()).float() for name in CLASSES])
    seen = photos[..., slice(*BANDS["train"])]
    return (photos - seen.mean(dim=(1, 2), keepdim=True)) / seen.std(dim=(1, 2), keepdim=True)


def make_mosaics(photos: Tensor, train_size: int) -> Mosaics:
    """Patches to train on lie at random in their columns; those to measure on lie side by side and share no pixel."""
    generator = torch.Generator().manual_seed(0)
    height, (left, right) = photos.shape[1], BANDS["train"]
    tops, lefts = (
        torch.randint(low, high - SIDE + 1, (train_size, len(CLASSES)), generator=generator)
        for low, high in ((0, height), (left, right))
    )
    return Mosaics(
        mosaics(photos, torch.stack([tops, lefts], dim=-1), generator),
        *(mosaics(photos, blocks(height, *BANDS[part], generator), generator) for part in ("validation", "test")),
    )


def blocks(height: int, left: int, right: int, generator: torch.Generator) -> Tensor:
    """Corners of blocks side by side, in an order of its own for each photograph: ``(blocks, classes, 2)``."""
    corners = torch.cartesian_prod(torch.arange(0, height, SIDE), torch.arange(left, right, SIDE))
    return torch.stack([corners[torch.randperm(len(corners), generator=generator)] for _ in CLASSES], dim=1)


def mosaics(photos: Tensor, corners: Tensor, generator: torch.Generator) -> TensorDataset:
    """One mosaic for each row of corners, ``(N, classes, 2)``: where its patch of each photograph begins."""
    masks = torch.stack([layout(generator) for _ in corners])
    patches = [
        torch.stack([photo[y : y + SIDE, x : x + SIDE] for photo, (y, x) in zip(photos, each, strict=True)])
        for each in corners.tolist()
    ]
    return TensorDataset(torch.stack(patches).gather(1, masks[:, None]), masks)


def layout(generator: torch.Generator) -> Tensor:
    """A mask of 2 to 4 cells: each pixel has the class of the nearest of some random places."""
    cells = int(torch.randint(2, 5, (), generator=generator))
    places = SIDE * torch.rand(cells, 2, generator=generator)
    every_class = torch.randperm(len(CLASSES), generator=generator)
    classes = torch.cat([every_class, torch.randint(len(CLASSES), (1,), generator=generator)])
    pixels = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).float()
    return classes[torch.cdist(pixels, places).argmin(dim=1)].view(SIDE, SIDE)


class StepTimer(L.Callback):
    """CPU seconds of each training step, which a busy machine changes less than those on the clock."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self._began = process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        self.seconds.append(process_time() - self._began)


def make_trainer(callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """A Trainer that leaves no files."""
    return L.Trainer(
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def train(callbacks: list[L.Callback], data: Mosaics, epochs: int) -> tuple[Segmenter, float]:
    """Trains a network; gives it with the CPU seconds of a step. Prints what settings may be chosen by."""
    timer, monitor = StepTimer(), InvarianceMonitor(C4(), list(COLUMNS), output_action="same")
    trainer = make_trainer([timer, *callbacks, monitor], max_epochs=epochs, check_val_every_n_epoch=epochs)
    module = Segmenter(UNet())
    trainer.fit(
        module, DataLoader(data.train, batch_size=32, shuffle=True), DataLoader(data.validation, batch_size=48)
    )
    error = monitor.history[-1].measures["relative_equivariance_error"].value
    print(f"validation: mIoU {trainer.callback_metrics['val/mean_iou']:.3f}, relative error {error:.3g}")
    return module, median(timer.seconds)


def measure(module: Segmenter, test: TensorDataset) -> tuple[dict[str, Estimate], list[Tensor]]:
    """The measures of the monitor on the test mosaics, and `mean_iou` in each pose."""
    monitor = InvarianceMonitor(C4(), list(COLUMNS), output_action="same")
    make_trainer([monitor]).test(module, DataLoader(test, batch_size=64), verbose=False)
    images, masks = test.tensors
    return monitor.history[-1].measures, [mean_iou(mask, masks) for mask in orbit_of(module, images).argmax(dim=2)]


def orbit_of(module: nn.Module, images: Tensor) -> Tensor:
    """The scores of each pose, brought back to the pose of the images: ``(4, N, classes, SIDE, SIDE)``."""
    module.eval()
    with torch.no_grad():
        outputs = evaluate_orbit(module, images, C4(), output_action="same")
    return torch.cat([outputs.logits[None], outputs.orbit_logits])


def mean_iou(predicted: Tensor, masks: Tensor) -> Tensor:
    """The mean over classes of their IoU, of all patches together, and then of all but each: ``(1 + N,)``.

    Intersections and unions are summed over patches before they are divided: the mIoU of the data set, as
    `MulticlassJaccardIndex` has it.
    """
    one, other = (F.one_hot(each, len(CLASSES)).bool() for each in (predicted, masks))

    def totals(places: Tensor) -> Tensor:
        counts = places.sum(dim=(1, 2))
        return torch.cat([counts.sum(dim=0, keepdim=True), counts.sum(dim=0) - counts])

    return (totals(one & other) / totals(one | other)).mean(dim=1)


def with_error(values: Tensor) -> Estimate:
    """The first value, and its standard error by the jackknife from the others, which lack a patch each."""
    without = values[1:]
    return Estimate(values[0], ((len(without) - 1) * without.var(correction=0)).sqrt())


