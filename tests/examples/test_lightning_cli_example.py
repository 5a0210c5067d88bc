"""Files for LightningCLI are run, and every name of the package stands alone in them."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback
from torch import Tensor

import lightning_invariance as li
from examples.lightning_cli.main import main
from lightning_invariance.callbacks import InvarianceMonitor

#: LightningCLI's own, about how it uses jsonargparse.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "examples" / "lightning_cli"
PAGE = (PROJECT / "docs" / "lightning_cli.md").read_text(encoding="utf-8")
FEW = {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 2, "log_every_n_steps": 1, "accelerator": "cpu"}
QUIET = {"enable_progress_bar": "false", "enable_checkpointing": "false", "enable_model_summary": "false"}


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def fit(*files: Path, also: Sequence[str] = (), **options: Any) -> Any:
        monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # written by LightningCLI; taken out again with the test
        monkeypatch.chdir(tmp_path)
        options = {**FEW, **QUIET, **options}
        given = [f"--config={file}" for file in files] + [f"--trainer.{key}={each}" for key, each in options.items()]
        monkeypatch.setattr(sys, "argv", ["main.py", "fit", *given, *also])
        return main()

    return fit


def ours(cli: Any) -> dict[str, Any]:
    return {
        type(each).__name__: each for each in cli.trainer.callbacks if type(each).__module__.startswith("lightning_inv")
    }


def test_a_file_with_all_callbacks(fit: Any, tmp_path: Path) -> None:
    cli = fit(FOLDER / "config.yaml")
    found = ours(cli)
    both = {**found, **ours(fit(FOLDER / "config.yaml", FOLDER / "invariant_weights.yaml"))}
    callbacks = {name for name, each in vars(li).items() if inspect.isclass(each) and issubclass(each, Callback)}
    assert set(both) == callbacks
    assert found["OrbitAugmentation"].action == li.C4()
    regularizer = found["InvarianceRegularizer"]
    assert regularizer.action.first == li.C4()
    mirror = torch.stack([torch.arange(8), torch.arange(7, -1, -1)])
    assert regularizer.action.second == li.PermutationAction(mirror)
    assert vars(regularizer.weight) == vars(li.WeightRamp(0.01, 1.0, steps=60, shape="exponential"))
    assert cli.trainer.global_step == 3
    logged = cli.trainer.callback_metrics
    assert {"val/orbit_share", "val/orbit_share/3", "val/so2/orbit_share", "val/selectivity"} <= set(logged)
    assert (tmp_path / "lightning_cli_results/lightning_logs/version_0/metrics.csv").exists()


def test_invariant_weights_are_invariant(fit: Any) -> None:
    cli = fit(FOLDER / "config.yaml", FOLDER / "invariant_weights.yaml", limit_train_batches=8)
    assert ours(cli)["InvariantWeights"].action == li.C4()
    assert 0 <= cli.trainer.callback_metrics["val/orbit_share"] < 1e-9


def test_what_was_saved_is_read_again(fit: Any, tmp_path: Path) -> None:
    first = fit(FOLDER / "config.yaml")
    (saved,) = (tmp_path / "lightning_cli_results").rglob("config.yaml")
    again = fit(saved)
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_the_page_s_files(block: str, fit: Any, tmp_path: Path) -> None:
    if "TensorBoardLogger" in block:
        pytest.importorskip("tensorboard")
        pytest.importorskip("matplotlib")
    file = tmp_path / "page.yaml"
    file.write_text(block, encoding="utf-8")
    options = {} if "logger" in block else {"logger": "false"}
    monitor = ours(fit(file, **options))["InvarianceMonitor"]
    assert isinstance(monitor, InvarianceMonitor)
    assert len(monitor.history) == 1


def test_the_page_s_command(fit: Any) -> None:
    (command,) = re.findall(r"^python main.py fit (--trainer.*)$", PAGE, re.MULTILINE)
    found = ours(fit(also=command.split(), logger="false"))
    assert found["OrbitAugmentation"].action == li.C4()
    assert len(found["InvarianceMonitor"].history) == 1
    assert isinstance(found["InvarianceMonitor"].action, li.SO2)
    assert len(found["InvarianceMonitor"].action) == 4


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_page_s_programs(block: str) -> None:
    exec(compile(block, "lightning_cli.md", "exec"), {"__name__": "page"})


def negative(x: Tensor) -> Tensor:
    return -x


#: What each class is given in a file.
GIVEN: dict[str, dict[str, Any]] = {
    "AffineAction": {"matrices": [[[1, 0, 0], [0, 1, 0]], [[0, -1, 0.25], [1, 0, 0]]]},
    "CyclicTranslations": {"order": 4, "dim": -2},
    "FieldAction": {
        "points": {"class_path": "SO3", "init_args": {"samples": 2}},
        "fibres": {"class_path": "SO3", "init_args": {"samples": 2}},
    },
    "FunctionAction": {"pairs": [[f"{__name__}.negative", f"{__name__}.negative"]]},
    "IntegratedGradients": {"steps": 4},
    "LinearAction": {"matrices": [[[1, 0], [0, 1]], [[0, 1], [1, 0]]], "dim": -3},
    "O3": {"samples": 3},
    "PermutationAction": {"table": [[[0, 1], [2, 3]], [[3, 2], [1, 0]]]},
    "PointTranslationFlow": {"coordinates": 2},
    "ProductAction": {"first": "C4", "second": "TimeReversal"},
    "Rotations": {"order": 8, "padding": "border"},
    "SO2": {"samples": 5, "seed": 1},
    "SO3": {"samples": 3},
    "ScalingRange": {"smallest": 0.5, "largest": 2.0, "samples": 3},
    "Scalings": {"factors": [0.5, 2]},
    "SetPermutations": {"samples": 3, "padding": 0.0},
    "TranslationFlow": {"window": None},
}
WITHOUT = {"Action", "Flow", "Saliency", "FunctionFlow"}  # bases, and what takes a mapping of functions


def made(name: str, given: dict[str, Any]) -> Any:
    parts = {key: each if key in ("first", "second", "points", "fibres") else None for key, each in given.items()}
    known = {
        key: made(each, {}) if isinstance(each, str) else made(**_named(each)) for key, each in parts.items() if each
    }
    arguments = {**given, **known}
    if "matrices" in arguments:
        arguments["matrices"] = torch.tensor(arguments["matrices"])
    if "table" in arguments:
        arguments["table"] = torch.tensor(arguments["table"])
    if "pairs" in arguments:
        arguments["pairs"] = [(negative, negative)]
    return getattr(li, name)(**arguments)


def _named(each: dict[str, Any]) -> dict[str, Any]:
    return {"name": each["class_path"], "given": each["init_args"]}


@pytest.mark.parametrize("kind", [li.Action, li.Flow, li.Saliency])
def test_each_name_stands_alone(kind: type[Any]) -> None:
    names = [name for name, each in vars(li).items() if inspect.isclass(each) and issubclass(each, kind)]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=kind)
    for name in set(names) - WITHOUT:
        given = GIVEN.get(name, {})
        parsed = parser.parse_object({"it": {"class_path": name, "init_args": given} if given else name})
        assert parsed.it.class_path == f"lightning_invariance.{name}"
        it = parser.instantiate_classes(parsed).it
        assert type(it) is getattr(li, name)
        assert repr(it) == repr(made(name, given))
        if kind is not li.Saliency:
            assert it == made(name, given)
