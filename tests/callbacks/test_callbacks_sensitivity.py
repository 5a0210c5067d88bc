"""The sensitivity monitor against Jacobians, singular values and distances written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import SIDE, fit, loader, made, trainer_for
from oracles import Classifier, assert_identical, mlp, noisy
from steps import SHADOWED, Direct, logged, validated
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import C4, SensitivityMonitor
from lightning_invariance.baselines import OrbitPooled

NORM = "jacobian_spectral_norm"


def norms_by_hand(network: nn.Module, x: Tensor) -> Tensor:
    """Sample by sample, from the whole Jacobian and its singular value decomposition."""
    network.eval()
    values = []
    with torch.inference_mode(False), torch.enable_grad():
        for image in x:
            jacobian = torch.autograd.functional.jacobian(lambda z: network(z[None])[0], image)
            values.append(torch.linalg.svdvals(jacobian.double().flatten(1))[0])
    return torch.stack(values)


# Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "stage", "network", "options"),
    [
        ("validate", "val", mlp, {}),
        ("test", "test", mlp, {"inference_mode": False}),
        ("validate", "val", noisy, {"inference_mode": False}),
        ("test", "test", noisy, {"precision": "bf16-mixed"}),  # which is not for the monitor
    ],
)
def test_the_norm_is_that_of_the_whole_jacobian(method: str, stage: str, network: Any, options: Any) -> None:
    module, data = made(lambda: Classifier(network)), loader(11)
    monitor = SensitivityMonitor()
    trainer = validated(monitor, module, data, method, **options)
    norms = norms_by_hand(module.model, data.dataset.x)
    assert logged(trainer) == {f"{stage}/{NORM}": pytest.approx(float(norms.mean()), rel=1e-5)}
    (record,) = monitor.history
    assert (record.stage, record.epoch, record.dataloader_idx) == (stage, 0, 0)
    value, error = record.measures[NORM]
    assert float(value) == pytest.approx(float(norms.mean()), rel=1e-5)
    assert float(error) == pytest.approx(float(norms.std() / 11**0.5), rel=1e-4)


@pytest.mark.parametrize("options", [{"network": "model", "max_batch": 3}, {"max_batch": 1, "input": 0}], ids=str)
def test_options_and_the_cut_of_the_batches_do_not_change_the_values(options: dict[str, Any]) -> None:
    module, results = made(Classifier), []
    for size, given in ((4, {}), (4, options), (1, {}), (3, {}), (11, {"samples": 1000})):
        results.append(logged(validated(SensitivityMonitor(C4(), **given), module, loader(11, size))))
    assert results[0].keys() == {f"val/{NORM}", "val/selectivity"}
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5)


def test_the_first_samples_of_several_loaders_for_several_monitors() -> None:
    module, data = made(Classifier), [loader(11), loader(5, seed=3)]
    monitors = [SensitivityMonitor(), *(SensitivityMonitor(samples=n, prefix=f"{n}") for n in (1, 4, 6))]
    trainer = validated(monitors, module, data)
    expected = {}
    for index, each in enumerate(data):
        norms = norms_by_hand(module.model, each.dataset.x)
        expected[f"val/{NORM}/dataloader_idx_{index}"] = float(norms.mean())
        for n in (1, 4, 6):
            expected[f"val/{n}/{NORM}/dataloader_idx_{index}"] = float(norms[:n].mean())
    assert logged(trainer) == pytest.approx(expected, rel=1e-5)


def test_each_epoch_is_measured_with_the_weights_of_its_end_and_without_the_sanity_check() -> None:
    val = loader(7, seed=2)
    expected: list[float] = []

    class Measured(Classifier):
        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                expected.append(float(norms_by_hand(self.model, val.dataset.x).mean()))

    every, second = SensitivityMonitor(), SensitivityMonitor(every_n_epochs=2, prefix="second")
    fit(Measured, [every, second], val=val, max_epochs=3)
    assert [float(record.measures[NORM].value) for record in every.history] == pytest.approx(expected, rel=1e-5)
    assert [record.epoch for record in every.history] == [0, 1, 2]
    assert [record.epoch for record in second.history] == [1]
    assert len(set(expected)) == 3


# Selectivity -----------------------------------------------------------------------------------------------------


def test_a_network_averaged_over_the_group_has_a_selectivity_of_0() -> None:
    module = made(lambda: Classifier(lambda: OrbitPooled(mlp(), C4())))
    found = logged(validated(SensitivityMonitor(C4()), module, loader(11)))
    assert found["val/selectivity"] < 1e-9
    assert found[f"val/{NORM}"] > 0.01


def test_a_random_linear_network_has_one_near_1() -> None:
    module = made(lambda: Classifier(lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 1000))))
    monitor = SensitivityMonitor(C4(), samples=200)
    validated(monitor, module, loader(200, 50))
    value, error = monitor.history[0].measures["selectivity"]
    assert 0 < error < 0.05
    assert abs(value - 1) < 4 * error


def test_a_constant_network_has_a_norm_of_0_and_no_selectivity() -> None:
    module = made(Classifier)
    module.model[3].weight.data.zero_()
    monitor = SensitivityMonitor(C4())
    with pytest.warns(UserWarning, match="selectivity is undefined"):
        validated(monitor, module, loader(4))
    measures = monitor.history[0].measures
    assert measures[NORM].value == 0
    assert measures["selectivity"].value.isnan()


# Layers and inputs -----------------------------------------------------------------------------------------------


def test_the_layers_have_their_singular_values() -> None:
    module = made(Classifier)
    monitor = SensitivityMonitor(layers=True)
    found = logged(validated(monitor, module, [loader(5), loader(5)]))
    expected = {
        f"val/spectral_norm/model.{place}/dataloader_idx_{index}": float(
            torch.linalg.svdvals(module.model[place].weight.detach())[0]
        )
        for place in (1, 3)
        for index in (0, 1)
    }
    got = {name: value for name, value in found.items() if "spectral_norm/model" in name}
    assert got == pytest.approx(expected, rel=1e-5)
    assert monitor.history[0].measures["spectral_norm/model.1"].standard_error.isnan()


def test_a_network_of_several_tensors_in_a_dict() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, *, image: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(image) * scale[:, None]}

    class Keyword(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return F.cross_entropy(self.model(**batch[0])["logits"], batch[1])

    module = made(lambda: Keyword(Net))
    data = loader(6, pack=lambda x, y: ({"image": x, "scale": 1.0 + y}, y))
    trainer = validated(SensitivityMonitor(C4(), network="model", input="image", samples=5), module, data)
    expected = norms_by_hand(module.model.inner, data.dataset.x[:5]) * (1 + data.dataset.y[:5])
    assert logged(trainer)[f"val/{NORM}"] == pytest.approx(float(expected.mean()), rel=1e-5)


def test_a_step_that_does_not_call_the_network_is_an_error() -> None:
    with pytest.raises(ValueError, match="SensitivityMonitor: expected the step of Direct to call the forward of"):
        validated(SensitivityMonitor(), made(Direct), loader(4))


class FSDPStrategy(type(trainer_for().strategy)):
    """Named like the one whose parameters are in pieces."""


def test_parameters_in_pieces_are_refused_before_any_work() -> None:
    trainer, module = trainer_for([SensitivityMonitor()]), made(Classifier)
    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(ValueError, match=r"SensitivityMonitor: expected a strategy that keeps .* but got FSDPStrategy"):
        trainer.validate(module, loader())
    assert_identical(module.state_dict(), made(Classifier).state_dict())


# No harm ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_put_back_after_an_exception(error: type[BaseException]) -> None:
    class Failing(nn.Module):
        """Fails when a gradient is asked for: in the monitor alone."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = noisy()
            self.fails = True

        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad and self.fails:
                raise error("told to")
            return self.inner(x)

    module, monitor = made(lambda: Classifier(Failing)), SensitivityMonitor(C4())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(2)
    validated([], module, loader(4))
    stream = torch.get_rng_state()  # the data loader's own draws
    torch.manual_seed(2)
    with pytest.raises((error, SystemExit)):
        validated(monitor, module, loader(4))
    assert torch.equal(torch.get_rng_state(), stream)
    assert_identical(module.state_dict(), before)
    assert not SHADOWED & set(vars(module))
    assert not torch.is_inference_mode_enabled()
    # Nothing of what failed is in what is measured next.
    module.model.fails = False
    again = logged(validated(monitor, module, loader(5, seed=3)))
    assert again == logged(validated(SensitivityMonitor(C4()), module, loader(5, seed=3)))
