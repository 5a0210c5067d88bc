"""The monitor measures what `evaluate_layers` does, and leaves training as it was."""

from __future__ import annotations

import logging

import pytest
import torch
from helpers import Images, fit, loader, trainer_for
from lightning.pytorch import LightningModule
from torch import nn

from lightning_invariance import C4, InvarianceMonitor, LayerMonitor, evaluate_layers


class Classifier(LightningModule):
    """Batch normalisation, dropout and an activation in place: whatever an extra forward could disturb."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Flatten()
        )
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.network(x))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self(batch[0])

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.mark.parametrize(
    "options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2, "val_check_interval": 1}]
)
def test_training_is_bit_identical(options):
    monitor = LayerMonitor(C4(), samples=6, every_n_epochs=1)
    watched = fit(Classifier, [monitor], val=loader(seed=1), **options)
    alone = fit(Classifier, val=loader(seed=1), **options)
    for name, value in alone.state_dict().items():
        assert torch.equal(watched.state_dict()[name], value)
    assert {record.epoch for record in monitor.history} == {0, 1}  # and none of the sanity check
    assert len(monitor.results) == len(monitor.history)
    assert all(len(each._forward_hooks) + len(each._forward_pre_hooks) == 0 for each in watched.modules())


@pytest.mark.parametrize("network", [None, "network"])
def test_it_measures_what_evaluate_layers_does(network, caplog):
    monitor = LayerMonitor(C4(), samples=6, network=network, prefix="c4")
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        module = fit(Classifier, [monitor, InvarianceMonitor(C4(), ["orbit_share"])], val=loader(seed=1))
    x = Images(12, 1).x
    measured = module if network is None else module.network
    expected = evaluate_layers(measured, x[:6].split(4), C4(), progress=False)
    results, start = monitor.results[-1], "" if network else "network."
    assert results.samples == 6
    assert results.breaks_at == expected.breaks_at == f"{start}0"
    for row, other in zip(results.rows, expected.rows, strict=True):
        assert row.label == other.label
        assert row.error.value == pytest.approx(other.error.value.item(), rel=1e-6)
        assert monitor.history[-1].measures[f"orbit_share/{row.name}"] == row.error
        assert module.trainer.callback_metrics[f"val/c4/orbit_share/{row.name}"] == pytest.approx(
            row.error.value.item(), rel=1e-6
        )
    said = [record.message for record in caplog.records if "breaks equivariance" in record.message]
    assert len(said) == 1  # it is the same layer in both epochs


def test_validation_and_test_outside_of_fit_with_several_loaders():
    monitor = LayerMonitor(C4(), layers=["network.0"], samples=5)
    trainer = trainer_for([monitor])
    trainer.validate(Classifier(), [loader(seed=1), loader(seed=2)], verbose=False)
    trainer.test(Classifier(), loader(seed=1), verbose=False)
    assert [(each.stage, each.dataloader_idx) for each in monitor.history] == [("val", 0), ("val", 1), ("test", 0)]
    assert [each.samples for each in monitor.results] == [5, 5, 5]
    assert list(monitor.history[0].measures) == ["orbit_share/network.0"]


def test_a_layer_that_is_called_again_is_logged_again():
    class Twice(Classifier):
        def forward(self, x):
            return self.head(self.network[4](self.network[2](self.network[0](self.network[2](x)))))

    module = fit(Twice, [LayerMonitor(C4())], val=loader(seed=1), max_epochs=1)
    names = [name for name in module.trainer.callback_metrics if name.startswith("val/orbit_share/network.2")]
    assert names == ["val/orbit_share/network.2", "val/orbit_share/network.2/call1"]


def test_a_wrong_layer_fails_before_training():
    with pytest.raises(ValueError, match="LayerMonitor: expected `layers` to name modules of the network"):
        fit(Classifier, [LayerMonitor(C4(), layers=["nowhere"])], val=loader(seed=1))


def test_only_every_n_th_epoch_is_measured():
    monitor = LayerMonitor(C4(), every_n_epochs=2)
    fit(Classifier, [monitor], val=loader(seed=1), max_epochs=4)
    assert [record.epoch for record in monitor.history] == [1, 3]


def test_it_is_in_full_precision_under_autocast():
    monitor, other = LayerMonitor(C4()), LayerMonitor(C4())
    module = Classifier()
    trainer_for([monitor], precision="bf16-mixed").validate(module, loader(seed=1), verbose=False)
    trainer_for([other]).validate(module, loader(seed=1), verbose=False)
    assert monitor.history[0].measures == other.history[0].measures


def test_a_compiled_network_is_measured_as_it_was_written_and_a_compiled_module_refused():
    class Compiled(Classifier):
        def __init__(self):
            super().__init__()
            self.network = torch.compile(self.network, backend="eager")

    monitor = LayerMonitor(C4(), network="network")
    module = Compiled()
    trainer_for([monitor]).validate(module, loader(seed=1), verbose=False)
    assert [row.name for row in monitor.results[0].rows] == ["0", "1", "2", "3", "4"]
    with pytest.raises(ValueError, match="a step that is not compiled as a whole"):
        trainer_for([LayerMonitor(C4())]).validate(
            torch.compile(Classifier(), backend="eager"), loader(seed=1), verbose=False
        )


def test_after_an_exception_the_module_is_as_it_was():
    class Broken(nn.Module):
        def forward(self, x):
            if hooks_of(model):
                raise RuntimeError("in the monitor's forward")
            return x

    def hooks_of(module):
        return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules())

    model = Classifier()
    model.network.append(Broken())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="in the monitor's forward"):
        trainer_for([LayerMonitor(C4(), layers=["head"])]).validate(model, loader(seed=1), verbose=False)
    assert hooks_of(model) == 0
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_several_processes_are_refused():
    class Trainer:
        world_size, callbacks = 2, ()

    with pytest.raises(ValueError, match="LayerMonitor: expected a single process"):
        LayerMonitor(C4()).setup(Trainer(), Classifier(), "fit")


def test_two_monitors_need_a_prefix():
    with pytest.raises(ValueError, match="tell them apart with `prefix=`"):
        fit(Classifier, [LayerMonitor(C4()), LayerMonitor(C4())], val=loader(seed=1))
