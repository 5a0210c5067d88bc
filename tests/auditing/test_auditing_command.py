"""The command, run in this process: what it reads, what it writes, what it refuses, what it ends with."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_invariance import Action, Rotations, evaluate_invariance
from lightning_invariance.__main__ import main
from lightning_invariance.auditing._checkpoint import load_weights

pytest.importorskip("jsonargparse")

X = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


class Network(L.LightningModule):
    def __init__(self, width: int = 4, pixels: int = 36) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Data(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(X, Y), 8)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(X, Y), 8)


class Interrupted(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield X[:8], Y[:8]
        os.kill(os.getpid(), signal.SIGINT)
        yield X[8:], Y[8:]
        raise AssertionError("nobody asked for more")


class InterruptedData(L.LightningDataModule):
    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Interrupted(), batch_size=None)


def sixths(order: int = 6) -> Action:
    """A function that makes a group, as a user may have one."""
    return Rotations(order)


CONFIG = """
model:
  class_path: test_auditing_command.Network
  init_args: {width: 5}
data: test_auditing_command.Data
actions: {turns: HorizontalFlip}
conditions: ["turns: orbit_share < 2", "accuracy >= 0"]
samples: 0
progress: false
"""

#: By short names, with arguments, by a function, nested.
ACTIONS = """{
    turns: C4,
    scale: {class_path: Scalings, init_args: {factors: [0.5, 2.0]}},
    sixths: test_auditing_command.sixths,
    both: {class_path: ProductAction, init_args: {first: HorizontalFlip, second: VerticalFlip}}
}"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # pictures cost most, and are looked at elsewhere
    path = tmp_path / "audit.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def run(config: Path, *options: str) -> int:
    return main(["audit", "--config", str(config), *options])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Path]:
    torch.manual_seed(1)
    network = Network(5)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(network, Data())
    path = tmp_path_factory.mktemp("trained") / "last.ckpt"
    trainer.save_checkpoint(path)
    return network, path


def test_it_audits_a_checkpoint_of_lightning(config: Path, trained: tuple[Network, Path]) -> None:
    network, checkpoint = trained
    assert run(config, "--ckpt_path", str(checkpoint), "--out", "report.html", "--actions", ACTIONS) == 0
    found = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert [group["name"] for group in found["groups"]] == ["turns", "scale", "sixths", "both"]
    assert [len(group["elements"]) for group in found["groups"]] == [4, 3, 6, 4]
    expected = evaluate_invariance(network, Data().test_dataloader(), sixths(), progress=False)
    value = found["groups"][2]["measures"]["orbit_share"]["value"]
    assert value == pytest.approx(float(expected["orbit_share"].value))
    assert "Audit of Network" in Path("report.html").read_text(encoding="utf-8")


def test_the_exit_code_says_whether_conditions_hold(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config, "--conditions", '["orbit_share < 1e-9"]') == 1
    assert "FAIL  turns: orbit_share < 1e-9 does not hold (orbit_share = 0." in capsys.readouterr().out
    assert json.loads(Path("audit.json").read_text(encoding="utf-8"))["passed"] is False


def test_a_state_dict_does_as_well(config: Path, trained: tuple[Network, Path]) -> None:
    network, checkpoint = trained
    torch.save(network.state_dict(), "weights.pt")
    for path in (Path("weights.pt"), checkpoint):
        fresh = Network(5)
        load_weights(fresh, path)
        for name, value in network.state_dict().items():
            assert torch.equal(fresh.state_dict()[name], value)


def test_the_configuration_of_the_documentation_runs(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Classifier(Network):
        def __init__(self, width: int) -> None:
            super().__init__(width, pixels=64)

    class Digits(Data):
        def test_dataloader(self) -> DataLoader[Any]:
            return DataLoader(TensorDataset(torch.randn(16, 1, 8, 8), Y), 8)  # the size of scikit-learn's digits

    project = ModuleType("my_project")
    for each in (Classifier, Digits):
        each.__module__, each.__qualname__ = "my_project", each.__name__
        setattr(project, each.__name__, each)
    monkeypatch.setitem(sys.modules, "my_project", project)
    text = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    config.write_text(shown, encoding="utf-8")
    assert run(config, "--samples", "0", "--progress", "false") == 1
    found = json.loads(Path("audit.json").read_text(encoding="utf-8"))
    assert [group["name"] for group in found["groups"]] == ["quarter turns", "shifts to the right", "scale"]


class Trap:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return open, ("sprung", "w")


def test_a_file_that_needs_code_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Network(5).state_dict(), "trap": Trap()}, "trap.ckpt")
    assert run(config, "--ckpt_path", "trap.ckpt") == 2
    assert not Path("sprung").exists()
    told = capsys.readouterr().err
    assert "load it in a script of your own" in told
    assert "torch.save(module.state_dict(), path)" in told
    assert not Path("audit.html").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"layers.1.weight": torch.zeros(5, 36), "head": torch.zeros(3)}, "it lacks layers.1.bias, layers.3.weight"),
        ({"head": torch.zeros(3)}, "it has besides head"),
        (Network(7).state_dict(), r"layers.1.weight (7, 36) for (5, 36)"),
        ([torch.zeros(3)], "holds list"),
    ],
)
def test_weights_of_another_network_are_refused(
    config: Path, capsys: pytest.CaptureFixture[str], content: Any, told: str
) -> None:
    torch.save(content, "other.pt")
    assert run(config, "--ckpt_path", "other.pt") == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--ckpt_path", "missing.ckpt"], "there is none at 'missing.ckpt'"),
        (["--conditions", '["orbit_shar < 1"]'], "to name measures among"),
        (["--out", "report.pdf"], "ending in .html, but got 'report.pdf'"),
        (["--out", "no/such/folder.html"], "a folder that there is"),
        (["--device", "abacus"], "a device of torch but got 'abacus'"),
    ],
)
def test_what_cannot_be_used_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    assert run(config, *options) == 2
    assert told in capsys.readouterr().err
    assert not Path("audit.html").exists()


@pytest.mark.parametrize("options", [["--samples", "many"], ["--no_such_option", "1"], ["--actions", '{"a": "C5"}']])
def test_arguments_are_checked_by_their_types(config: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(config, *options)
    assert ended.value.code == 2


def test_the_configuration_can_be_printed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(config, "--print_config")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "class_path: lightning_invariance.HorizontalFlip" in printed
    assert "width: 5" in printed
    with pytest.raises(SystemExit) as ended:
        main(["audit", "--help"])
    assert ended.value.code == 0
    assert "--ckpt_path" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:audit. the audit was stopped")
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_a_report(config: Path) -> None:
    assert run(config, "--data", "test_auditing_command.InterruptedData") == 130
    found = json.loads(Path("audit.json").read_text(encoding="utf-8"))
    assert found["complete"] is False
    assert [each["passed"] for each in found["conditions"]] == [False, False]
    assert "The audit is incomplete" in Path("audit.html").read_text(encoding="utf-8")


def test_without_jsonargparse_it_says_what_to_install(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert run(config) == 2
    assert "pip install 'lightning-invariance[cli]'" in capsys.readouterr().err


# Which weights, and which files ----------------------------------------------------------------------------------


def test_it_says_which_weights_it_audited(
    config: Path, trained: tuple[Network, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config) == 0
    told = capsys.readouterr()
    assert "warning: no `ckpt_path` is given" in told.err
    assert "weights: as constructed" in told.out
    assert json.loads(Path("audit.json").read_text(encoding="utf-8"))["network"]["weights"] == "as constructed"
    assert "weights: as constructed" in Path("audit.html").read_text(encoding="utf-8")
    assert run(config, "--ckpt_path", str(trained[1])) == 0
    told = capsys.readouterr()
    assert "warning" not in told.err
    digest = hashlib.sha256(trained[1].read_bytes()).hexdigest()[:12]
    assert f"weights: last.ckpt, SHA-256 {digest}" in Path("audit.html").read_text(encoding="utf-8")
    assert digest in json.loads(Path("audit.json").read_text(encoding="utf-8"))["network"]["weights"]


def test_what_is_read_is_not_written_over(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Network(5).state_dict(), "weights.json")
    config.rename("settings.html")
    for read, options in (
        ("weights.json", ["--ckpt_path", "weights.json", "--out", "weights.html"]),
        ("settings.html", ["--out", "./settings.html"]),
    ):
        before = Path(read).read_bytes()
        assert run(Path("settings.html"), *options) == 2
        assert f"would write over '{read}'" in capsys.readouterr().err
        assert Path(read).read_bytes() == before


class Refusing(Network):
    def __init__(self) -> None:
        raise AssertionError("work was begun")


def test_out_that_cannot_be_written_is_found_before_any_work(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("audit.json").mkdir()
    assert run(config, "--model", "test_auditing_command.Refusing") == 2
    told = capsys.readouterr().err
    assert "'audit.json' cannot be" in told
    assert "work was begun" not in told


# What messages name, the command has -----------------------------------------------------------------------------


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = Network(5).layers

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.layers(x), "map": x * 2}


def scores_of(output: dict[str, Tensor]) -> Tensor:
    """As a user may have one."""
    return output["scores"]


def test_logits_are_taken_out_by_a_function_and_outputs_moved_by_their_names(config: Path) -> None:
    model = ["--model", "test_auditing_command.Several", "--conditions", "[]"]
    assert run(config, *model, "--logits", "test_auditing_command.scores_of") == 0
    found = json.loads(Path("audit.json").read_text(encoding="utf-8"))
    assert "orbit_share" in found["groups"][0]["measures"]
    assert run(config, *model, "--output_action", "{scores: null, map: same}") == 0
    measures = json.loads(Path("audit.json").read_text(encoding="utf-8"))["groups"][0]["measures"]
    assert measures["map/relative_equivariance_error"]["value"] == 0
    assert "scores/orbit_share" in measures


# Checkpoints that are packed otherwise ---------------------------------------------------------------------------


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in Network(5).state_dict().items()}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (prefixed("_orig_mod."), "its names hold '_orig_mod.', which torch.compile puts there"),
        (prefixed("module."), "all names in it begin with 'module.': strip it"),
        ({"state_dict": prefixed("model.")}, "all names in it begin with 'model.': strip it"),
        ({"model": Network(5).state_dict(), "epoch": 3}, "the weights are under 'model': save these alone"),
        (
            {name.removeprefix("layers."): value for name, value in Network(5).state_dict().items()},
            "it lacks 'layers.' in front of all names",
        ),
    ],
)
def test_weights_under_other_names_are_found(tmp_path: Path, content: Any, told: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=re.escape(told)):
        load_weights(Network(5), tmp_path / "other.pt")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"e\x00\x01"])
def test_a_file_that_is_no_checkpoint_is_told_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"or is no checkpoint \(.+ .+\): if you trust") as refused:
        load_weights(Network(5), tmp_path / "other.ckpt")
    assert "\x1b" not in str(refused.value)
