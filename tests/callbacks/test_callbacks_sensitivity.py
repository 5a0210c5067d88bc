"""The sensitivity monitor against Jacobians, singular values and distances written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from callbacks_helpers import everything_after
from helpers import SIDE, Classifier, assert_identical, loader, mlp, noisy, trainer_for
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import C4, InvarianceMonitor, SensitivityMonitor
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


def logged(trainer: Any) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def classifier(network: Callable[[], nn.Module] = mlp) -> Classifier:
    torch.manual_seed(1)
    return Classifier(network)


# Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "stage"), [("validate", "val"), ("test", "test")])
@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("network", [mlp, noisy])
def test_the_norm_is_that_of_the_whole_jacobian(
    method: str, stage: str, inference_mode: bool, network: Callable[[], nn.Module]
) -> None:
    module, data = classifier(network), loader(11)
    monitor = SensitivityMonitor()
    trainer = trainer_for([monitor], inference_mode=inference_mode)
    getattr(trainer, method)(module, data, verbose=False)
    norms = norms_by_hand(module.model, data.dataset.x)
    assert logged(trainer) == {f"{stage}/{NORM}": pytest.approx(float(norms.mean()), rel=1e-5)}
    (record,) = monitor.history
    assert (record.stage, record.epoch, record.dataloader_idx) == (stage, 0, 0)
    value, error = record.measures[NORM]
    assert float(value) == pytest.approx(float(norms.mean()), rel=1e-5)
    assert float(error) == pytest.approx(float(norms.std() / 11**0.5), rel=1e-4)


@pytest.mark.parametrize(
    "options", [{"network": "model"}, {"max_batch": 3}, {"max_batch": 1}, {"input": 0}, {"samples": 1000}], ids=str
)
def test_options_that_do_not_change_the_values(options: dict[str, Any]) -> None:
    module, data = classifier(), loader(11)
    expected = trainer_for([SensitivityMonitor(C4())])
    expected.validate(module, data, verbose=False)
    trainer = trainer_for([SensitivityMonitor(C4(), **options)])
    trainer.validate(module, data, verbose=False)
    assert len(logged(trainer)) == 2
    assert logged(trainer) == pytest.approx(logged(expected), rel=1e-5)


@pytest.mark.parametrize("samples", [1, 4, 6, 11])
def test_the_first_samples_are_measured(samples: int) -> None:
    module, data = classifier(), loader(11)
    trainer = trainer_for([SensitivityMonitor(samples=samples)])
    trainer.validate(module, data, verbose=False)
    expected = norms_by_hand(module.model, data.dataset.x[:samples]).mean()
    assert logged(trainer)[f"val/{NORM}"] == pytest.approx(float(expected), rel=1e-5)


def test_several_loaders_and_two_monitors() -> None:
    module, data = classifier(), [loader(11), loader(5, seed=3)]
    trainer = trainer_for([SensitivityMonitor(), SensitivityMonitor(samples=2, prefix="two")])
    trainer.validate(module, data, verbose=False)
    expected = {}
    for index, each in enumerate(data):
        norms = norms_by_hand(module.model, each.dataset.x)
        expected[f"val/{NORM}/dataloader_idx_{index}"] = float(norms.mean())
        expected[f"val/two/{NORM}/dataloader_idx_{index}"] = float(norms[:2].mean())
    assert logged(trainer) == pytest.approx(expected, rel=1e-5)


def test_each_epoch_is_measured_with_the_weights_of_its_end() -> None:
    val = loader(7, seed=2)
    expected: list[float] = []

    class Measured(Classifier):
        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                expected.append(float(norms_by_hand(self.model, val.dataset.x).mean()))

    torch.manual_seed(1)
    monitor = SensitivityMonitor()
    trainer_for([monitor], max_epochs=3).fit(Measured(), loader(), val)
    assert [float(record.measures[NORM].value) for record in monitor.history] == pytest.approx(expected, rel=1e-5)
    assert [record.epoch for record in monitor.history] == [0, 1, 2]
    assert len(set(expected)) == 3


def test_every_second_epoch() -> None:
    monitor = SensitivityMonitor(every_n_epochs=2)
    trainer_for([monitor], max_epochs=4).fit(classifier(), loader(), loader(5))
    assert [record.epoch for record in monitor.history] == [1, 3]


def test_under_mixed_precision_the_norm_is_one_of_full_precision() -> None:
    module, data = classifier(noisy), loader(8)
    trainer = trainer_for([SensitivityMonitor(C4())], precision="bf16-mixed")
    trainer.validate(module, data, verbose=False)
    full = trainer_for([SensitivityMonitor(C4())])
    full.validate(module, data, verbose=False)
    assert logged(trainer) == logged(full)


# Selectivity -----------------------------------------------------------------------------------------------------


def test_a_network_averaged_over_the_group_has_a_selectivity_of_0() -> None:
    module = classifier(lambda: OrbitPooled(mlp(), C4()))
    trainer = trainer_for([SensitivityMonitor(C4())])
    trainer.validate(module, loader(11), verbose=False)
    assert logged(trainer)["val/selectivity"] < 1e-9
    assert logged(trainer)[f"val/{NORM}"] > 0.01


def test_a_random_linear_network_has_one_near_1() -> None:
    module = classifier(lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 1000)))
    monitor = SensitivityMonitor(C4(), samples=200)
    trainer_for([monitor]).validate(module, loader(200, 50), verbose=False)
    value, error = monitor.history[0].measures["selectivity"]
    assert 0 < error < 0.05
    assert abs(value - 1) < 4 * error


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_the_perturbations_do_not_depend_on_how_the_batches_are_cut(batch_size: int) -> None:
    results = []
    for size in (4, batch_size):
        trainer = trainer_for([SensitivityMonitor(C4(), samples=10)])
        trainer.validate(classifier(), loader(12, size), verbose=False)
        results.append(logged(trainer))
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_integers_are_refused() -> None:
    class OfIntegers(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self.model((batch[0] > 0).long())

    torch.manual_seed(1)
    module = OfIntegers(lambda: nn.Sequential(nn.Flatten(), nn.Embedding(2, 3), nn.Flatten(), nn.Linear(48, 3)))
    with pytest.raises(
        ValueError, match=r"SensitivityMonitor: expected the input to be floating point, .* torch.int64"
    ):
        trainer_for([SensitivityMonitor(network="model")]).validate(module, loader(4), verbose=False)


# Layers ----------------------------------------------------------------------------------------------------------


def test_the_layers_have_their_singular_values() -> None:
    module = classifier()
    monitor = SensitivityMonitor(layers=True)
    trainer = trainer_for([monitor])
    trainer.validate(module, [loader(5), loader(5)], verbose=False)
    got = {name: value for name, value in logged(trainer).items() if "spectral_norm/model" in name}
    expected = {
        f"val/spectral_norm/model.{place}/dataloader_idx_{index}": float(
            torch.linalg.svdvals(module.model[place].weight.detach())[0]  # type: ignore[index]
        )
        for place in (1, 3)
        for index in (0, 1)
    }
    assert got == pytest.approx(expected, rel=1e-5)
    assert monitor.history[0].measures["spectral_norm/model.1"].standard_error.isnan()


# Where things are ------------------------------------------------------------------------------------------------


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

    torch.manual_seed(1)
    module = Keyword(Net)
    data = loader(6, pack=lambda x, y: ({"image": x, "scale": 1.0 + y}, y))
    trainer = trainer_for([SensitivityMonitor(C4(), network="model", input="image", samples=5)])
    trainer.validate(module, data, verbose=False)
    x, y = data.dataset.x[:5], data.dataset.y[:5]
    expected = norms_by_hand(module.model.inner, x) * (1 + y)  # type: ignore[union-attr, arg-type]
    assert logged(trainer)[f"val/{NORM}"] == pytest.approx(float(expected.mean()), rel=1e-5)


def test_no_call_of_the_network_is_an_error() -> None:
    class Around(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self.model(batch[0]).sum()

    torch.manual_seed(1)
    with pytest.raises(ValueError, match="SensitivityMonitor: expected the step of Around to call the forward of"):
        trainer_for([SensitivityMonitor()]).validate(Around(), loader(4), verbose=False)
    with pytest.raises(ValueError, match="SensitivityMonitor: expected `network` to name a submodule of Classifier"):
        trainer_for([SensitivityMonitor(network="head")]).validate(classifier(), loader(4), verbose=False)


class FSDPStrategy(type(trainer_for().strategy)):  # type: ignore[misc]
    """Named like the one whose parameters are in pieces."""


@pytest.mark.parametrize("method", ["fit", "validate"])
def test_parameters_in_pieces_are_refused_before_any_work(method: str) -> None:
    trainer = trainer_for([SensitivityMonitor()])
    trainer.strategy.__class__ = FSDPStrategy
    module = classifier()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"SensitivityMonitor: expected a strategy that keeps .* but got FSDPStrategy"):
        getattr(trainer, method)(module, loader())
    assert_identical(module.state_dict(), before)


# No harm ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"inference_mode": False}], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda: [SensitivityMonitor(C4(), layers=True)],
        lambda: [SensitivityMonitor(network="model", max_batch=3), InvarianceMonitor(C4(), saliency_samples=0)],
    ],
    ids=["all", "two monitors"],
)
def test_training_is_bit_identical(make: Callable[[], list[Any]], options: dict[str, Any]) -> None:
    assert_identical(everything_after(make(), **options), everything_after([], **options))


def test_an_accumulated_gradient_survives_a_validation_in_the_middle() -> None:
    options = {"accumulate_grad_batches": 2, "val_check_interval": 1}
    assert_identical(everything_after([SensitivityMonitor(C4())], **options), everything_after([], **options))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_put_back_after_an_exception(error: type[BaseException]) -> None:
    class Failing(nn.Module):
        """Fails when a gradient is asked for: in the monitor alone."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = noisy()

        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                raise error("told to")
            return self.inner(x)

    torch.manual_seed(1)
    module = Classifier(Failing)
    module.model.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    monitor = SensitivityMonitor(C4())
    torch.manual_seed(2)
    trainer_for().validate(module, loader(4), verbose=False)
    stream = torch.get_rng_state()  # the data loader's own draws
    torch.manual_seed(2)
    with pytest.raises((error, SystemExit)):
        trainer_for([monitor]).validate(module, loader(4), verbose=False)
    assert torch.equal(torch.get_rng_state(), stream)
    assert_identical(module.state_dict(), before)
    assert not {"validation_step", "test_step", "training_step"} & set(vars(module))
    assert not torch.is_inference_mode_enabled()
    assert monitor._recorder.take() is None
    assert monitor._loaders == []


def test_the_sanity_check_leaves_nothing_in_the_first_epoch() -> None:
    monitor = SensitivityMonitor(C4())
    val = loader(7, seed=2)
    trainer_for([monitor], max_epochs=1, num_sanity_val_steps=2).fit(classifier(), loader(), val)
    assert len(monitor.history) == 1
    again = SensitivityMonitor(C4())
    trainer_for([again], max_epochs=1, num_sanity_val_steps=0).fit(classifier(), loader(), val)
    assert monitor.history[0].measures == again.history[0].measures


def test_a_constant_network_has_a_norm_of_0_and_no_selectivity() -> None:
    module = classifier()
    module.model[3].weight.data.zero_()  # type: ignore[index, union-attr]
    monitor = SensitivityMonitor(C4())
    with pytest.warns(UserWarning, match="selectivity is undefined"):
        trainer_for([monitor]).validate(module, loader(4), verbose=False)
    measures = monitor.history[0].measures
    assert measures[NORM].value == 0
    assert measures["selectivity"].value.isnan()
