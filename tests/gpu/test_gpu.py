"""The same oracles on CUDA devices, and no wait for the device where there must be none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from gpu_worker import fit
from lightning.pytorch import LightningDataModule
from oracles import Classifier
from torch import nn
from torch.utils.data import TensorDataset

from lightning_invariance import (
    C4,
    D4,
    SO2,
    SO3,
    CyclicTranslations,
    DistributionInvarianceError,
    InvarianceRegularizer,
    JensenShannonInvarianceError,
    LogitInvarianceError,
    OrbitAccuracy,
    OrbitShare,
    PaperSaliency,
    PredictionConsistency,
    SaliencyInvarianceSimilarity,
    compare,
    evaluate_orbit,
)

METRICS = [
    DistributionInvarianceError,
    JensenShannonInvarianceError,
    LogitInvarianceError,
    OrbitShare,
    PredictionConsistency,
]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Any host synchronisation inside is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_regularised_step_is_the_one_written_by_hand(precision: str) -> None:
    by_hand, _ = fit(True, devices=1, precision=precision)
    with_callback, _ = fit(False, devices=1, precision=precision)
    # Elements are stacked into one forward by the callback: another kernel may round the last bits another way.
    tolerance = 1e-5 if precision == "32-true" else 2e-3
    for left, right in zip(by_hand.parameters(), with_callback.parameters(), strict=True):
        torch.testing.assert_close(left, right, atol=tolerance, rtol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_under_nccl(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("gpu_worker.py")
    paths = os.pathsep.join([str(worker.parents[1]), str(worker.parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([sys.executable, str(worker), str(tmp_path)], check=True, timeout=600, env=environment)
    outcomes = torch.load(tmp_path / "outcomes.pt", weights_only=True)
    (by_hand, _), (with_callback, logged) = outcomes[True], outcomes[False]
    for name, value in by_hand.items():
        torch.testing.assert_close(value, with_callback[name], atol=1e-5, rtol=0)
    _, alone = fit(False, devices=1)
    assert set(logged) == set(alone)


@pytest.mark.parametrize("reduction", ["mean", "element"])
@pytest.mark.parametrize("metric_class", METRICS)
def test_update_does_not_wait_for_the_device(metric_class: type, reduction: str) -> None:
    metric = metric_class(reduction=reduction).cuda()
    logits, orbit_logits = torch.randn(64, 10, device="cuda"), torch.randn(3, 64, 10, device="cuda")
    with no_waiting():
        metric.update(logits, orbit_logits)
        metric.update(logits, orbit_logits)
    on_cpu = metric_class(reduction=reduction)
    for _ in range(2):
        on_cpu.update(logits.cpu(), orbit_logits.cpu())
    torch.testing.assert_close(metric.compute().cpu(), on_cpu.compute(), rtol=1e-5, atol=1e-6)


def test_update_with_labels_or_maps_does_not_wait_for_the_device() -> None:
    accuracy, similarity = OrbitAccuracy().cuda(), SaliencyInvarianceSimilarity().cuda()
    logits, orbit_logits = torch.randn(64, 10, device="cuda"), torch.randn(3, 64, 10, device="cuda")
    target = torch.randint(10, (64,), device="cuda")
    with no_waiting():
        accuracy.update(logits, orbit_logits, target)
        similarity.update(logits, orbit_logits)


@pytest.mark.parametrize("action", [C4(), D4(), CyclicTranslations(4)], ids=repr)
def test_exact_actions_give_what_they_give_on_the_cpu(action: C4) -> None:
    x = torch.randn(32, 3, 16, 16)
    index = torch.arange(32) % len(action)
    assert torch.equal(action.act(x.cuda(), index).cpu(), action.act(x, index))
    assert torch.equal(action.invert(action.act(x.cuda(), index.cuda()), index.cuda()).cpu(), x)
    assert torch.equal(action.orbit(x.cuda()).cpu(), action.orbit(x))


@pytest.mark.parametrize("action", [C4(), SO2(3)], ids=repr)
def test_acting_on_each_sample_does_not_wait_for_the_device(action: C4) -> None:
    x, index = torch.randn(32, 3, 16, 16, device="cuda"), torch.arange(32, device="cuda") % len(action)
    action.act(x, index)  # the first call places the tables
    with no_waiting():
        action.act(x, index)


def test_interpolated_and_linear_actions_agree_with_the_cpu() -> None:
    x, points = torch.randn(8, 3, 16, 16), torch.randn(8, 20, 3)
    torch.testing.assert_close(SO2(4).orbit(x.cuda()).cpu(), SO2(4).orbit(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(SO3(4).orbit(points.cuda()).cpu(), SO3(4).orbit(points), atol=1e-4, rtol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("compiled", [False, True])
def test_orbit_of_a_network(memory_format: torch.memory_format, compiled: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    x = torch.randn(16, 3, 12, 12)
    expected = evaluate_orbit(network, x, C4(), saliency=PaperSaliency())
    network = network.to("cuda", memory_format=memory_format)
    if compiled:
        network.compile()
    got = evaluate_orbit(network, x.to("cuda", memory_format=memory_format), C4(), saliency=PaperSaliency())
    torch.testing.assert_close(got.orbit_logits.cpu(), expected.orbit_logits, atol=1e-3, rtol=1e-3)
    assert got.orbit_saliency is not None
    assert got.orbit_saliency.shape == (3, 16, 3, 12, 12)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_forwards_that_are_run_again_give_the_same(precision: str) -> None:
    kept, _ = fit(False, devices=1, precision=precision)
    again, _ = fit(False, devices=1, precision=precision, max_batch=100)
    for left, right in zip(kept.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=0)


def test_models_are_compared_on_the_device() -> None:
    data = TensorDataset(torch.randn(32, 1, 8, 8), torch.randint(3, (32,)))
    datamodule = LightningDataModule.from_datasets(data, test_dataset=data, batch_size=8)
    models = {name: Classifier(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))) for name in ("one", "another")}
    callbacks = {"another": [InvarianceRegularizer(C4(), 1.0)]}
    found = compare(models, datamodule, C4(), callbacks=callbacks, rounds=1, steps=2, accelerator="gpu", progress=False)
    for name, model in models.items():
        x, y = data.tensors
        accuracy = (model(x).argmax(dim=1) == y).float().mean()
        torch.testing.assert_close(found.models[name].measures["accuracy"].value, accuracy.detach())
        assert min(found.models[name].training_step_seconds) > 0
        assert next(model.parameters()).device.type == "cpu"


def test_the_benchmarks_run_and_agree(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--device", "cuda", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
