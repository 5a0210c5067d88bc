"""`InvariantWeights` in each way to train, against trainings written by hand; what is refused; what is put back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import invariant_weights_worker
import pytest
import torch
from helpers import CLASSES, Batches, loader, made, trainer_for
from invariant_weights_by_hand import (
    LAYOUTS,
    SIDE,
    Both,
    ByHand,
    Layout,
    Tied,
    Trained,
    adam,
    apart,
    assert_as_by_hand,
    asymmetry,
    cnn,
    maps,
    matched,
    mlp,
    project_gradients,
    ramp,
    sgd,
    start,
    variation,
    weights_of,
)
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.compile import from_compiled
from oracles import assert_identical, compare
from processes import Launch
from steps import Adversaries, Manual, logged
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_invariance import C4, InvariantWeights

MERGE = {"mode": "merge", "begin": matched, "strength": ramp(4)}  # by 80 % of 6 steps


def keeping(mode: Any = "project", **arguments: Any) -> InvariantWeights:
    return InvariantWeights(C4(), mode=mode, **arguments)


# Optimisation and precision --------------------------------------------------------------------------------------


class ManualTrained(Manual, Trained):
    pass


class Raw(Trained):
    """Runs torch's optimiser, which Lightning does not see."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Beside(Trained):
    """Another optimiser, of what is no part of the network, takes its steps first, and fewer."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False
        self.spare = nn.Parameter(torch.ones(4))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        other, own = self.optimizers()
        own.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx) + self.spare.square().sum())
        if batch_idx == 0:
            other.step()
        own.step()

    def configure_optimizers(self) -> Any:
        return [sgd([self.spare]), self.optimizer(self.model.parameters())]


class Skipping(Trained):
    """The first batch of each epoch is no good."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) if batch_idx else None


class SkippingByHand(ByHand):
    def batches(self) -> Any:
        return super().batches()[1:]


class Scaler(torch.amp.GradScaler):
    """Scales as on an accelerator."""

    def __init__(self) -> None:
        super().__init__("cpu", init_scale=2.0**10, growth_interval=2)


BY_NORM = partial(torch.nn.utils.clip_grad_norm_, max_norm=0.05)
BY_VALUE = partial(torch.nn.utils.clip_grad_value_, clip_value=0.01)
CLIPPED = {"gradient_clip_val": 0.05}
CLIPPED_BY_VALUE = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
MIXED: dict[str, Any] = {"precision": "16-mixed"}
REGIMES: dict[str, tuple[ByHand, dict[str, Any]]] = {
    "accumulation, clipping by norm": (ByHand(count=24, accumulate=2, clip=BY_NORM), CLIPPED),
    "accumulation, validation in the middle": (
        ByHand(count=24, accumulate=2),
        {"val": loader(4, seed=2, side=SIDE), "val_check_interval": 1},
    ),
    "accumulation, clipping by value": (ByHand(count=24, accumulate=2, clip=BY_VALUE), CLIPPED_BY_VALUE),
    "merge, accumulation, clipping": (ByHand(mlp, adam, count=24, accumulate=2, clip=BY_NORM, **MERGE), CLIPPED),
    "bf16-mixed": (ByHand(precision="bf16-mixed"), {}),
    "merge, bf16-mixed": (ByHand(precision="bf16-mixed", **MERGE), {}),
    "bf16-true": (ByHand(mlp, precision="bf16-true"), {}),
    "16-mixed, clipping": (ByHand(scaler=Scaler(), clip=BY_NORM, **MIXED), CLIPPED),
    "merge, 16-mixed": (ByHand(mlp, scaler=Scaler(), **MIXED, **MERGE), {}),
    "16-mixed, manual": (ByHand(mlp, scaler=Scaler(), **MIXED), {"kind": ManualTrained}),
    "manual": (ByHand(optimizer=adam), {"kind": ManualTrained}),
    "manual, torch's optimiser": (ByHand(), {"kind": Raw}),
    "merge, manual, torch's optimiser": (ByHand(mlp, adam, **MERGE), {"kind": Raw}),
    "merge, manual, beside another optimiser": (ByHand(mlp, adam, **MERGE), {"kind": Beside}),
    "batches that are skipped": (SkippingByHand(mlp), {"kind": Skipping}),
    "parameters of two layers": (ByHand(Tied), {}),
    "merge, parameters of two layers": (ByHand(Tied, adam, **MERGE), {}),
}


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`")
@pytest.mark.parametrize(("hand", "options"), REGIMES.values(), ids=REGIMES)
def test_trained_as_by_hand(hand: ByHand, options: dict[str, Any]) -> None:
    if hand.scaler is None:
        module = hand.by_trainer([keeping(hand.mode, network="model")], **options)
    else:
        scaler, hand = Scaler(), replace(hand, scaler=Scaler())
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        module = hand.by_trainer(
            [keeping(hand.mode, network="model")], plugins=[plugin], **{**options, "precision": None}
        )
    # A weight that differs in the last bit may be rounded to another number of half precision.
    assert_as_by_hand(module.model, hand, 1e-5 if hand.precision == "16-mixed" else 1e-6)
    if hand.scaler is not None:
        assert scaler.get_scale() == hand.scaler.get_scale() == 2.0**13  # it grew


DISCRIMINATOR: Layout = {"1.weight": ((8, 4, 4), "rxx"), "1.bias": ((8,), "r"), "3.weight": ((1, 8), ".r")}


class AdversariesByHand(Adversaries):
    """The discriminator's weights are kept invariant; the generator's are not."""

    def __init__(self) -> None:
        super().__init__()
        start(self.d, DISCRIMINATOR)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if optimizer.param_groups[0]["params"][0] is self.d[1].weight:
            project_gradients(self.d, DISCRIMINATOR)


def test_two_networks_in_turn() -> None:
    compare(Adversaries, AdversariesByHand, [keeping(network="d")])


def test_the_learning_rate_is_looked_for_with_ordinary_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the finder writes there

    class Finding(LearningRateFinder):
        def __init__(self) -> None:
            super().__init__(min_lr=1e-3, max_lr=1.0, num_training_steps=16, early_stop_threshold=None)

        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            super().on_fit_start(trainer, pl_module)
            self.losses = list(self.optimal_lr.results["loss"])

    class Rated(Trained):
        def configure_optimizers(self) -> Any:
            return sgd(self.parameters(), lr=self.lr)

    findings, hand = [Finding(), Finding()], ByHand(mlp, count=96, epochs=1)
    found = [
        hand.by_trainer([finding, *callbacks], Rated, default_root_dir=str(tmp_path))
        for finding, callbacks in zip(findings, ([], [keeping()]), strict=True)
    ]
    assert findings[0].losses == findings[1].losses
    assert found[0].lr == found[1].lr != 0.1
    assert_as_by_hand(found[1].model, replace(hand, optimizer=partial(sgd, lr=found[1].lr)))


# Networks --------------------------------------------------------------------------------------------------------


class Frozen(Trained):
    """A layer is not trained, and is invariant."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        freeze(self.model)


def freeze(network: nn.Module) -> None:
    start(network, LAYOUTS[mlp])
    network[3].requires_grad_(False)


def test_frozen_parameters_that_are_invariant_stay() -> None:
    before = made(partial(Frozen, mlp)).model[3].state_dict()
    module = ByHand(mlp).by_trainer([keeping()], Frozen)
    assert_identical(module.model[3].state_dict(), before)
    assert_as_by_hand(module.model, ByHand(mlp, begin=freeze))


def test_two_networks_with_a_callback_each() -> None:
    callbacks = [keeping(network=f"model.{name}", prefix=name) for name in ("one", "other")]
    trainer = ByHand(Both).by_trainer(callbacks).trainer
    assert_as_by_hand(trainer.lightning_module.model, ByHand(Both))
    assert logged(trainer) == {
        **{f"train/{name}/weight_asymmetry": pytest.approx(0, abs=1e-6) for name in ("one", "other")},
        **{f"train/{name}/symmetry_strength": 1.0 for name in ("one", "other")},
    }


class Maps(Trained):
    """Each place has a target of its own: what the input is there."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[0][:, 0].sign().long() + 1)


class MapsByHand(ByHand):
    def loss(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(network(x), x[:, 0].sign().long() + 1)


MOVES = {
    "project": MapsByHand(maps),
    "merge": MapsByHand(maps, adam, **{**MERGE, "begin": partial(matched, output="same")}),
}


@pytest.mark.parametrize("hand", MOVES.values(), ids=MOVES)
def test_networks_whose_output_moves_become_equivariant(hand: ByHand) -> None:
    module = hand.by_trainer([keeping(hand.mode, output_action="same")], Maps)
    expected = hand.run()
    assert apart(module.model, expected) < 1e-6
    assert apart(expected, hand.plain()) > 1e-3
    assert variation(module.model, lambda fx, turns: torch.rot90(fx, -turns, (-2, -1))) < 1e-12
    assert variation(module.model) > 0.1


# Running statistics ----------------------------------------------------------------------------------------------


class ByKeyword(Trained):
    """The batch is a dict, and the network is called by keyword."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(x=batch["image"]), batch["label"])


class Several(Trained):
    """Two loaders; the first one's images are the network's."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
        return super().training_step(first, batch_idx)


class Preparing(Trained):
    """Undoes before the transfer what the loader has done."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] / 2, batch[1]


class Inside(Trained):
    """The same, in the step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step((batch[0] / 2, batch[1]), batch_idx)


class Once:
    """A stream that can be read once."""

    def __init__(self) -> None:
        self.batches = iter([*loader(side=SIDE), *loader(side=SIDE)])

    def __iter__(self) -> Iterator[Any]:
        return self.batches


def packed(pack: Any) -> DataLoader[Any]:
    return loader(side=SIDE, pack=pack)


def plainly() -> DataLoader[Any]:
    return loader(side=SIDE)


ESTIMATED: dict[str, Any] = {
    "by keyword": (ByKeyword, packed(lambda x, y: {"image": x, "label": y}), {}, True),
    "a list of loaders": (Several, [plainly(), plainly()], {}, True),
    "a dict of loaders": (Several, {"a": plainly(), "b": plainly()}, {}, True),
    "prepared before the transfer": (Preparing, packed(lambda x, y: (2 * x, y)), {}, True),
    "an example": (Trained, plainly(), {"example": torch.zeros(2, 1, SIDE, SIDE)}, True),
    "prepared in the step": (Inside, packed(lambda x, y: (2 * x, y)), {}, False),
    "a stream": (Trained, Once(), {}, False),
}


@pytest.mark.parametrize(("kind", "data", "arguments", "estimates"), ESTIMATED.values(), ids=ESTIMATED)
def test_running_statistics(kind: Any, data: Any, arguments: dict[str, Any], estimates: bool) -> None:
    """Estimated by a pass over the data where this can be done, else those of the last steps, projected."""
    hand = ByHand(estimates=estimates)
    options = {"max_epochs": 1} if isinstance(data, Once) else {}
    assert_as_by_hand(hand.by_trainer([keeping(**arguments)], kind, data=data, **options).model, hand)


# Compiled --------------------------------------------------------------------------------------------------------


def whole(module: Trained) -> Any:
    return from_compiled(torch.compile(module, backend="eager"))


def network(module: Trained) -> Any:
    module.model = torch.compile(module.model, backend="eager")
    return module


def network_in_place(module: Trained) -> Any:
    module.model.compile(backend="eager")
    return module


@pytest.mark.parametrize(
    ("compile", "hand"),
    [(whole, ByHand(mlp)), (network, ByHand()), (network_in_place, ByHand(mlp, adam, **MERGE))],
    ids=["whole", "network", "network in place"],
)
def test_compiled(compile: Any, hand: ByHand) -> None:
    torch._dynamo.reset()
    module = made(lambda: Trained(hand.network, hand.optimizer))
    inner = module.model
    trainer_for([keeping(hand.mode)]).fit(compile(module), loader(side=SIDE))
    torch._dynamo.reset()
    plain = made(hand.network)
    plain.load_state_dict(inner.state_dict())
    assert_as_by_hand(plain, hand)


# Averages of weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["project", "merge"])
@pytest.mark.parametrize("last", [False, True], ids=["average, then ours", "ours, then average"])
def test_moving_averages(mode: Any, last: bool) -> None:
    averages: dict[str, Tensor] = {}

    def average(network: nn.Module) -> None:
        for name, value in weights_of(network).items():
            averages[name] = averages.get(name, value).lerp(value, 0.5).detach().clone()

    hand = ByHand(after=average, **(MERGE if mode == "merge" else {}))
    last_weights = hand.run()
    averaged = made(cnn)
    averaged.load_state_dict(averages, strict=False)
    replace(hand, estimates=not last).end(averaged)  # where they are put in last, their statistics are averages too
    assert apart(averaged, last_weights) > 1e-2

    callbacks = [EMAWeightAveraging(decay=0.5), keeping(mode)]
    module = hand.by_trainer(callbacks[::-1] if last else callbacks)
    assert apart(module.model, averaged) < 1e-6
    assert variation(module.model) < 1e-12


@pytest.mark.parametrize("mode", ["project", "merge"])
@pytest.mark.parametrize("last", [False, True], ids=["average, then ours", "ours, then average"])
def test_stochastic_weight_averaging(mode: Any, last: bool) -> None:
    def averaging() -> Callback:
        return StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=1)

    callbacks, hand = [averaging(), keeping(mode)], ByHand(epochs=5)
    module = hand.by_trainer(callbacks[::-1] if last else callbacks)
    assert asymmetry(module.model, LAYOUTS[cnn]) == 0.0
    assert variation(module.model) < 1e-12
    assert variation(hand.by_trainer([averaging()]).model) > 0.1


# Stopped, resumed, failed ----------------------------------------------------------------------------------------


def without_state(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.3)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(
    ("mode", "strength", "optimizer", "invariant_after"),
    [("project", None, adam, 1), ("project", 0.3, sgd, 9), ("merge", None, sgd, 4), ("merge", None, without_state, 4)],
    ids=["project", "project, pulled", "merge", "merge, no state of the optimiser"],
)
def test_resumed_bit_for_bit(mode: Any, strength: Any, optimizer: Any, invariant_after: int, tmp_path: Path) -> None:
    """In the middle of an epoch, and of a merge."""

    def run(callbacks: list[Callback], ckpt: Path | None = None) -> dict[str, Any]:
        module = made(lambda: Trained(cnn, optimizer))
        if ckpt is not None:
            nn.init.zeros_(module.model[0].weight)
        trainer = trainer_for([keeping(mode, strength=strength), *callbacks], enable_checkpointing=bool(callbacks))
        trainer.fit(module, Batches(3, side=SIDE), ckpt_path=ckpt)
        assert (variation(module.model) < 1e-12) == (strength is None)
        return {"weights": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict(), **logged(trainer)}

    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    uninterrupted = run([saving])
    for step in (2, 4):
        checkpoint = tmp_path / f"step={step}.ckpt"
        assert_identical(run([], checkpoint), uninterrupted)
        saved = Trained()
        saved.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
        assert (variation(saved.model) < 1e-12) == (step >= invariant_after)


class Failing(Trained):
    """Fails where it is told to."""

    fails_in: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.trainer.global_step == self.fails_in:
            raise RuntimeError("told to")
        return self.model(x)

    def configure_optimizers(self) -> Any:
        self.made = super().configure_optimizers()
        return self.made


@pytest.mark.parametrize("fails_in", [None, 0, 2])
def test_nothing_stays_behind(fails_in: int | None) -> None:
    kind = type("FailingThen", (Failing,), {"fails_in": fails_in})
    left, ours = [], keeping(network="model")
    for callbacks in ([ours], []):
        module = made(lambda: kind(mlp))
        with nullcontext() if fails_in is None else pytest.raises(RuntimeError, match="told to"):
            trainer_for(callbacks).fit(module, loader(side=SIDE))
        hooks = [module.made._optimizer_step_pre_hooks, module.made._optimizer_step_post_hooks]
        names = [sorted(each.__dict__) for each in module.modules()]
        left.append((names, [len(each) for each in hooks], module.training_step.__func__))
    assert left[0] == left[1]
    assert left[0][1] == [0, 0]
    assert_as_by_hand(
        ByHand(mlp).by_trainer([ours]).model, ByHand(mlp)
    )  # the callback trains another as a new one does


class Stopping(Trained):
    """Stops long before the end."""

    def on_train_batch_end(self, *args: Any) -> None:
        self.trainer.should_stop = self.trainer.global_step == 4


def test_a_training_that_ends_in_the_middle_of_a_merge_says_so_once() -> None:
    hand = ByHand(mode="merge", begin=matched, strength=ramp(9), count=16, epochs=1)
    with pytest.warns(UserWarning, match="when the strength of the merge was 0.44") as warned:
        module = hand.by_trainer([keeping("merge")], Stopping, max_epochs=3)
    assert sum("InvariantWeights" in str(each.message) for each in warned) == 1
    assert_as_by_hand(module.model, hand, invariant=False)


# Two processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def launch() -> Iterator[Launch]:
    with tempfile.TemporaryDirectory() as folder:
        yield Launch(invariant_weights_worker.__file__, Path(folder))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed support")
@pytest.mark.parametrize("name", invariant_weights_worker.HELD)
def test_two_processes(launch: Launch, name: str) -> None:
    hand = invariant_weights_worker.HELD[name][0]
    first, second = launch.results(name)
    assert_identical(first, second)
    network = made(hand.network)
    network.load_state_dict(first)
    assert_as_by_hand(network, hand)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed support")
@pytest.mark.parametrize("name", invariant_weights_worker.REFUSED)
def test_shards_are_refused(launch: Launch, name: str) -> None:
    for result in launch.results(name):
        assert "InvariantWeights: expected parameters that each process has as a whole" in result["error"]
        assert "Use DDP" in result["error"]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed support")
def test_processes_that_go_through_other_branches_are_refused(launch: Launch) -> None:
    for result in launch.results(invariant_weights_worker.IN_OTHER_DOMAINS):
        assert "all processes to go through the same parts of the network" in result["error"]
        assert "`example=`" in result["error"]


# Refused ---------------------------------------------------------------------------------------------------------


class FrozenInDisorder(Trained):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.model[3].requires_grad_(False)


class InvariantAlready(Trained):
    """Sees one place at a time, and takes the mean over them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        layers = [nn.Conv2d(1, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)]
        self.model = nn.Sequential(*layers)


class CallsItsNetwork(Trained):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.model(batch[0]), batch[1])


REFUSED: dict[str, tuple[type[Trained], list[InvariantWeights], dict[str, Any], str]] = {
    "frozen": (FrozenInDisorder, [keeping()], {}, r"frozen parameters .* but 'model\.3\.weight', 'model\.3\.bias' are"),
    "nothing to do": (InvariantAlready, [keeping()], {}, "whatever they are: leave InvariantWeights out"),
    "no call": (CallsItsNetwork, [keeping()], {}, r"saw no such call: name .* `network=` \(such as 'model'\)"),
    "no end": (Trained, [keeping("merge")], {"max_epochs": -1}, "how many steps .* but it has no end"),
    "two of one network": (
        Trained,
        [keeping(), keeping(network="model", prefix="b")],
        {},
        "for a network but there are",
    ),
}


@pytest.mark.filterwarnings("ignore:`max_epochs` was not set")
@pytest.mark.parametrize(("kind", "callbacks", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_before_the_first_step(kind: Any, callbacks: Any, options: dict[str, Any], message: str) -> None:
    module = made(lambda: kind(mlp))
    with pytest.raises(ValueError, match=f"InvariantWeights: expected .*{message}"):
        trainer_for(callbacks, **options).fit(module, loader(side=SIDE))
    assert apart(module, made(lambda: kind(mlp))) == 0.0
