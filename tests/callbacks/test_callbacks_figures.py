"""Figures go to the loggers that take some, of what was measured, and training stays as it is."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_invariance import C4, SO2, InvarianceMonitor, LayerMonitor, OrbitShare, evaluate_orbit
from lightning_invariance.callbacks import _figures, _progress
from lightning_invariance.saliency import Gradient

pytest.importorskip("matplotlib")

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 4


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

    def forward(self, x: Tensor) -> Any:
        return self.network(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1]) + 0 * torch.rand(())

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Turning(Classifier):
    """Its output is an image, that of a filter."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Conv2d(3, 4, 3, padding=1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()


class Experiment:
    """What the clients of TensorBoard and MLflow are asked for, written down."""

    def __init__(self) -> None:
        self.figures: list[tuple[str, Any, int]] = []

    def add_figure(self, tag: str, figure: Any, global_step: int | None = None, close: bool = True) -> None:
        assert global_step is not None
        self.figures.append((tag, figure, global_step))

    def log_figure(self, run_id: str, figure: Any, artifact_file: str) -> None:
        assert run_id == "run"
        tag, _, step = artifact_file.removesuffix(".png").rpartition("/step_")
        self.figures.append((tag, figure, int(step)))


class Recorded:
    """Takes the metrics, and nothing of a library that may not be here."""

    def __init__(self, save_dir: Path) -> None:
        self.recorded = Experiment()
        self._save = str(save_dir)

    experiment = property(lambda self: self.recorded)
    save_dir = property(lambda self: self._save)
    name = version = property(lambda self: "x")
    log_dir = run_id = property(lambda self: "run")
    _prefix = ""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    log_graph = after_save_checkpoint = save = log_hyperparams

    def finalize(self, status: str) -> None:
        pass

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        assert isinstance(images, list)
        assert step is not None
        self.recorded.figures += [(key, image, step) for image in images]


KINDS = [
    type(f"Recorded{kind.__name__}", (Recorded, kind), {}) for kind in (TensorBoardLogger, MLFlowLogger, WandbLogger)
]


def loader(images: Tensor = IMAGES) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images, LABELS[: len(images)]), batch_size=10)


def trainer_with(monitor: Any, loggers: Any, folder: Path, **options: Any) -> Trainer:
    quiet = {"enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    quiet |= {"max_epochs": 4, "accelerator": "cpu", "num_sanity_val_steps": 1, "default_root_dir": folder}
    return Trainer(logger=loggers, callbacks=monitor, **{**quiet, **options})


def drawn(monitor: InvarianceMonitor, folder: Path, module: Any = None, **options: Any) -> list[tuple[str, Any, int]]:
    logger = KINDS[0](folder)
    trainer_with([monitor], [logger], folder, **options).fit(module or Classifier(), loader(), loader())
    figures: list[tuple[str, Any, int]] = logger.recorded.figures
    return figures


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("log_figures", "epochs"), [(True, [1, 2, 3, 4]), (2, [2, 4]), (3, [3]), (False, [])])
def test_each_logger_gets_both_in_every_nth_epoch(
    kind: Any, log_figures: bool | int, epochs: list[int], tmp_path: Path
) -> None:
    logger = kind(tmp_path)
    trainer = trainer_with([InvarianceMonitor(C4(), log_figures=log_figures)], [logger], tmp_path)
    trainer.fit(Classifier(), loader(), loader())
    names = ("val/saliency_orbit", "val/error_by_element")
    # Three batches an epoch: the sanity check draws nothing.
    assert [(name, step) for name, _, step in logger.recorded.figures] == [(n, 3 * e) for e in epochs for n in names]


def test_the_pictures_show_what_was_measured(tmp_path: Path) -> None:
    module, saliency = Classifier(), Gradient()
    monitor = InvarianceMonitor(C4(), saliency=saliency, log_figures=True)
    logger = KINDS[0](tmp_path)
    trainer_with([monitor], [logger], tmp_path).validate(module, loader(), verbose=False)
    (_, picture, _), (_, bars, _) = logger.recorded.figures

    expected = evaluate_orbit(module, IMAGES[:1], C4(), saliency=saliency, target=LABELS[:1])
    maps = torch.cat([expected.saliency[None], expected.orbit_saliency])[:, 0].abs().sum(dim=1)  # type: ignore[index,list-item]
    assert [axes.get_title() for axes in picture.axes] == list(C4().labels)
    for axes, each in zip(picture.axes, maps, strict=True):
        image, over_it = (torch.as_tensor(shown.get_array().data) for shown in axes.images)
        torch.testing.assert_close(image, IMAGES[0].mean(dim=0))
        torch.testing.assert_close(over_it, each.detach())

    outputs = evaluate_orbit(module, IMAGES, C4())
    share = OrbitShare(reduction="element")
    share.update(outputs.logits, outputs.orbit_logits)
    (axes,) = bars.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == list(C4().labels[1:])
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(share.compute().tolist(), rel=1e-5)


def test_measures_by_element_have_panels(tmp_path: Path) -> None:
    measures = {"mine": OrbitShare(reduction="element"), "whole": OrbitShare()}
    figures = drawn(InvarianceMonitor(C4(), measures, log_figures=True), tmp_path, max_epochs=1)
    ((name, bars, _),) = figures  # no measure reads maps, so none are computed
    assert name == "val/error_by_element"
    shares, mine = bars.axes
    assert [axes.get_title() for axes in bars.axes] == ["orbit share", "mine"]
    assert [bar.get_width() for bar in shares.patches] == [bar.get_width() for bar in mine.patches]


def test_outputs_that_move_have_their_relative_error(tmp_path: Path) -> None:
    monitor = InvarianceMonitor(C4(), output_action="same", log_figures=True)
    ((name, bars, _),) = drawn(monitor, tmp_path, Turning(), max_epochs=1)
    assert name == "val/error_by_element"
    assert [axes.get_title() for axes in bars.axes] == ["relative error"]
    assert not any("each element" in name for name in monitor.history[0].measures)


def test_many_elements_fit(tmp_path: Path) -> None:
    monitor = InvarianceMonitor(SO2(40), log_figures=True)
    (_, picture, _), (_, bars, _) = drawn(monitor, tmp_path, max_epochs=1)
    assert [axes.get_title() for axes in picture.axes] == list(monitor.action.labels[: _figures.POSES])
    (axes,) = bars.axes
    assert len(axes.patches) == _figures.BARS == 32
    assert axes.get_title() == "orbit share, the worst 32 of 40"


def test_names_of_stage_prefix_and_loader(tmp_path: Path) -> None:
    logger = KINDS[0](tmp_path)
    monitor = InvarianceMonitor(C4(), prefix="turns", log_figures=7)  # a test is not in a training epoch
    trainer_with([monitor], [logger], tmp_path).test(Classifier(), [loader(), loader(IMAGES[:5])], verbose=False)
    assert [name for name, _, _ in logger.recorded.figures] == [
        f"test/turns/{figure}/dataloader_idx_{index}"
        for index in range(2)
        for figure in ("saliency_orbit", "error_by_element")
    ]


def test_one_warning_where_no_logger_takes_figures(tmp_path: Path) -> None:
    monitor = InvarianceMonitor(C4(), log_figures=True)
    for loggers, named in ((CSVLogger(tmp_path), "CSVLogger"), (False, "no logger")):
        trainer = trainer_with([monitor], loggers, tmp_path, max_epochs=2)
        with pytest.warns(UserWarning, match=f"`log_figures` sends nothing, as the trainer has {named}") as caught:
            trainer.fit(Classifier(), loader(), loader())
        assert sum("log_figures" in str(each.message) for each in caught) == 1
    both = [CSVLogger(tmp_path / "two"), KINDS[0](tmp_path)]
    trainer_with([monitor], both, tmp_path, max_epochs=1).fit(Classifier(), loader(), loader())
    trainer_with([monitor], CSVLogger(tmp_path), tmp_path, fast_dev_run=True).fit(Classifier(), loader(), loader())


def test_without_matplotlib_it_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    InvarianceMonitor(C4())
    with pytest.raises(ModuleNotFoundError, match="`log_figures` needs matplotlib: pip install"):
        InvarianceMonitor(C4(), log_figures=True)


def test_training_stays_bit_identical(tmp_path: Path) -> None:
    states = []
    for log_figures in (None, False, True):
        module = Classifier()
        monitors = [] if log_figures is None else [InvarianceMonitor(C4(), log_figures=log_figures)]
        torch.manual_seed(1)
        trainer_with(monitors, [KINDS[0](tmp_path)], tmp_path).fit(module, loader(), loader())
        states.append((module.network[1].weight.detach().clone(), torch.random.get_rng_state()))
    for weight, random_state in states[1:]:
        assert torch.equal(weight, states[0][0])
        assert torch.equal(random_state, states[0][1])


# Their own libraries, where they are -----------------------------------------------------------------------------


def test_real_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    monitor = InvarianceMonitor(C4(), log_figures=2)
    trainer_with([monitor], [logger], tmp_path).fit(Classifier(), loader(), loader())
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    for name in ("val/saliency_orbit", "val/error_by_element"):
        assert [image.step for image in events.Images(name)] == [6, 12]
        assert events.Images(name)[0].encoded_image_string.startswith(b"\x89PNG")


def test_real_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monitor = InvarianceMonitor(C4(), log_figures=True)
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}")
    trainer_with([monitor], [logger], tmp_path, max_epochs=1).fit(Classifier(), loader(), loader())
    found = {file.parent.name for file in tmp_path.rglob("step_00000003.png")}
    assert found == {"saliency_orbit", "error_by_element"}


def test_real_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monitor = InvarianceMonitor(C4(), log_figures=True)
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    trainer_with([monitor], [logger], tmp_path, max_epochs=1).fit(Classifier(), loader(), loader())
    logger.experiment.finish()
    found = {file.name.rpartition("_")[0].rpartition("_")[0] for file in tmp_path.rglob("val/*.png")}
    assert found == {"saliency_orbit", "error_by_element"}


# How long it takes -----------------------------------------------------------------------------------------------


class Bar(TQDMProgressBar):
    """Keeps what stood behind the bar of the validation when it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str | None] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(self.val_progress_bar.postfix)
        super().on_validation_end(trainer, pl_module)


def seconds(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    """A clock that goes on by so much whenever it is read."""
    clock = SimpleNamespace(now=0.0)

    def read() -> float:
        clock.now += step
        return clock.now

    monkeypatch.setattr("lightning_invariance.callbacks._epochs.perf_counter", read)


@pytest.mark.parametrize(("step", "said"), [(0.5, [None]), (3.0, ["InvarianceMonitor 9 s, LayerMonitor 9 s"])])
def test_a_long_pass_shows_in_the_bar(
    step: float, said: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds(monkeypatch, step)  # of each of three batches
    bar = Bar()
    monitors = [InvarianceMonitor(C4()), LayerMonitor(C4()), bar]
    trainer_with(monitors, False, tmp_path, enable_progress_bar=True).validate(Classifier(), loader(), verbose=False)
    assert bar.seen == said
    assert _progress.LONG == 2.0


def test_it_shows_in_rich_bars_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    from lightning.pytorch.callbacks import RichProgressBar

    seconds(monkeypatch, 3.0)
    bar, seen = RichProgressBar(), []

    class Last(LayerMonitor):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(bar.val_progress_bar.description)

    monitors = [Last(C4()), bar]
    trainer_with(monitors, False, tmp_path, enable_progress_bar=True).validate(Classifier(), loader(), verbose=False)
    assert seen[0].endswith("Validation, LayerMonitor 9 s")
