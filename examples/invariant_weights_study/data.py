"""Digits and clothes as the networks want them: 32×32, 36×36 for the perceptron, tinted for the ResNet."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from examples.invariant_weights_study.settings import Settings
from examples.paper.data import CLASSES, load
from lightning_invariance import Action

SIDES = {"CNN": 32, "ResNet": 32, "perceptron": 36}


class Images:
    """Images without the last class (a 9 is a 6 upside down), zero-padded and normalised.

    Training and test images are upright. Each validation image is moved once, by an element drawn for it.

    Args:
        name: of the data set.
        network: for which network.
        action: the group.
        settings: where the files are, and how many images train, validate and test.
        train_size: how many of the training images are used; all if None.

    Attributes:
        black: the value that black has after normalisation.
    """

    def __init__(
        self, name: str, network: str, action: Action, settings: Settings, train_size: int | None = None
    ) -> None:
        folder = settings.mnist if name == "MNIST" else settings.fashion
        source = load("mnist" if name == "MNIST" else "fashion", folder)
        keep = (source.labels < CLASSES).nonzero().flatten()
        order = keep[torch.randperm(len(keep), generator=torch.Generator().manual_seed(2024))][: sum(settings.sizes)]
        images = F.pad(source.images[order][:, None], [(SIDES[network] - 28) // 2] * 4)
        if network == "ResNet":
            colours = 0.3 + 0.7 * torch.rand(len(order), 3, 1, 1, generator=torch.Generator().manual_seed(1))
            images = images * colours
        (train, val, test), labels = images.split(settings.sizes), source.labels[order].split(settings.sizes)
        mean, std = train.mean(), train.std()
        self.black = float(-mean / std)
        train, val, self._test = ((part - mean) / std for part in (train, val, test))
        self._test_labels = labels[2]
        self.train = TensorDataset(train[:train_size], labels[0][:train_size])
        elements = action.sample(len(val), torch.Generator().manual_seed(2))
        self.val = TensorDataset(action.act(val, elements), labels[1])

    @property
    def example(self) -> Tensor:
        """A few training images."""
        return self.train.tensors[0][:8]

    def test(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The test images and their labels, from the first."""
        return self._test[:count], self._test_labels[:count]
