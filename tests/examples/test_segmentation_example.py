"""The segmentation example runs, its parts share no pixel, masks turn with images, and its pooled network is tied."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassJaccardIndex

from examples.segmentation import (
    BANDS,
    CLASSES,
    SIDE,
    Mosaics,
    UNet,
    main,
    make_mosaics,
    mean_iou,
    orbit_of,
    with_error,
)
from lightning_invariance import C4, OrbitAugmentation
from lightning_invariance.baselines import OrbitPooled


def test_segmentation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        sys, "argv", ["segmentation.py", "--epochs", "1", "--train-size", "128", "--out", str(tmp_path)]
    )
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # written by the example; taken out again with the test
    main()
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(cells) == ["plain", "DA", "IR", "DA pooled"]
    errors = {name: float(row["relative error"].split()[0]) for name, row in cells.items()}
    assert errors["DA pooled"] < 1e-5 < 1e-3 < min(errors[name] for name in ("plain", "DA", "IR"))
    assert float(cells["DA pooled"]["orbit mIoU"].split()[0]) > 0.999
    assert cells["DA"]["mIoU − DA's"] == "0"
    assert cells["plain"]["training step / plain's"] == "1.00"
    assert [row["forwards to predict"] for row in cells.values()] == ["1", "1", "1", "4"]
    for row in cells.values():
        assert float(row["mIoU, worst turn"].split()[0]) <= float(row["mIoU"].split()[0])
    assert (tmp_path / "segmentation.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def coded() -> Mosaics:
    """Mosaics of photographs whose pixels say where they come from: class, row and column."""
    return make_mosaics(torch.arange(len(CLASSES) * 512.0 * 512).view(len(CLASSES), 512, 512), train_size=128)


def test_parts_are_of_columns_that_do_not_overlap(coded: Mosaics) -> None:
    for (_, right), (left, _) in pairwise(BANDS.values()):
        assert left - right >= 16
    for part, (left, right) in BANDS.items():
        images, masks = getattr(coded, part).tensors
        assert images.shape[1:] == (1, SIDE, SIDE)
        assert torch.equal((images[:, 0] // 512**2).long(), masks)
        columns = images % 512
        assert left <= columns.min()
        assert columns.max() < right
        assert all(len(mask.unique()) >= 2 for mask in masks)


def test_patches_to_measure_on_share_no_pixel(coded: Mosaics) -> None:
    assert (len(coded.validation), len(coded.test)) == (48, 64)
    for part in (coded.validation, coded.test):
        images, _ = part.tensors
        assert len(images.unique()) == images.numel()


class Recorder(LightningModule):
    """Keeps the batches that its steps see."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        image, mask = batch
        self.seen.append((image, mask))
        return self.weight

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_masks_turn_with_their_images(coded: Mosaics) -> None:
    recorder = Recorder()
    trainer = Trainer(
        max_epochs=1,
        callbacks=[OrbitAugmentation(C4(), target_action="same")],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(recorder, DataLoader(coded.train, batch_size=64))
    images, masks = (torch.cat(each) for each in zip(*recorder.seen, strict=True))
    assert torch.equal((images[:, 0] // 512**2).long(), masks)
    upright_images, upright_masks = coded.train.tensors
    for seen, upright in ((images, upright_images), (masks, upright_masks)):
        assert 0.1 < (seen == upright).flatten(1).all(dim=1).float().mean() < 0.4  # a quarter is not turned


def test_pooled_is_equivariant_to_rounding() -> None:
    torch.manual_seed(0)
    network = UNet().double()
    images = torch.randn(2, 1, SIDE, SIDE, dtype=torch.float64)
    orbit = orbit_of(OrbitPooled(network, C4(), output_action="same"), images)
    torch.testing.assert_close(orbit, orbit[:1].expand_as(orbit), rtol=1e-12, atol=1e-12)
    alone = orbit_of(network, images)
    assert (alone - alone[0]).abs().max() > 1e-3
    torch.testing.assert_close(orbit[0], alone.mean(dim=0))


def test_mean_iou_is_that_of_the_data_set() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, masks = torch.randint(len(CLASSES), (2, 5, 8, 8), generator=generator)
    metric = MulticlassJaccardIndex(len(CLASSES))
    values = mean_iou(predicted, masks)
    assert float(values[0]) == pytest.approx(float(metric(predicted, masks)))
    for patch in range(5):
        others = [each for each in range(5) if each != patch]
        assert float(values[1 + patch]) == pytest.approx(float(metric(predicted[others], masks[others])))


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    samples = torch.tensor([1.0, 4.0, 2.0, 7.0])
    values = torch.stack([samples.mean(), *((samples.sum() - each) / 3 for each in samples)])
    value, error = with_error(values)
    assert float(value) == 3.5
    assert float(error) == pytest.approx(float(samples.std() / 2))
