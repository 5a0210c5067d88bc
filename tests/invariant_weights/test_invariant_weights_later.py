"""What the first step of a training does not show: branches, sizes, statistics and steps that come later."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import CLASSES, Batches, fit, loader, made, trainer_for
from invariant_weights_by_hand import FIELD, SIDE, Trained, adam, apart, asymmetry, mean, sgd, variation
from invariant_weights_networks import Branches, InDomains
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import C4, CyclicTranslations, HorizontalFlip, InvariantWeights, WeightSymmetry, symmetrize

# Branches --------------------------------------------------------------------------------------------------------

LAYOUT = {"first.weight": ((12, 1, 3, 3), "r.xx"), "first.bias": ((12,), "r"), "head.weight": ((CLASSES, 12), ".r")}
for _branch in range(2):
    LAYOUT |= {f"branches.{_branch}.weight": ((12, 12, 3, 3), "rrxx"), f"branches.{_branch}.bias": ((12,), "r")}


class OfDomain(nn.Module):
    def __init__(self, model: Branches, domain: int) -> None:
        super().__init__()
        self.model, self.domain = model, domain

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, self.domain)


def in_domains_by_hand() -> nn.Module:
    """Weights start from their means when a gradient reaches them first, and gradients are projected."""
    network = made(InDomains).model
    optimizer = sgd(network.parameters())
    started: set[str] = set()
    batches = [*loader(side=SIDE), *loader(side=SIDE)]
    for place, (x, y) in enumerate(batches):
        domain = place % (len(batches) // 2) % 2
        named = {name: value for name, value in network.named_parameters() if name in LAYOUT}
        with torch.no_grad():
            for name, value in named.items():
                # All that the first batch uses starts so before it.
                if place == 0 and f"branches.{1 - domain}" not in name:
                    start_of(name, value, started)
        optimizer.zero_grad()
        F.cross_entropy(network(x, domain), y).backward()
        with torch.no_grad():
            for name, value in named.items():
                if value.grad is not None:
                    start_of(name, value, started)
                    value.grad.copy_(mean(value.grad, LAYOUT[name]))
        optimizer.step()
    return network


def start_of(name: str, value: Tensor, started: set[str]) -> None:
    if name not in started:
        started.add(name)
        before = value.norm()
        value.copy_(mean(value, LAYOUT[name]))
        value.mul_(before / value.norm())


def test_a_branch_that_a_later_step_is_the_first_to_use_is_invariant_too() -> None:
    module = fit(InDomains, [InvariantWeights(C4(), network="model")], data=loader(side=SIDE), max_epochs=2)
    assert apart(module.model, in_domains_by_hand()) < 1e-6
    for domain in range(2):
        assert variation(OfDomain(module.model, domain)) < 1e-12


@pytest.mark.parametrize("example", [None, [(torch.zeros(2, 1, SIDE, SIDE), domain) for domain in range(2)]])
def test_branches_are_merged(example: Any) -> None:
    callback = InvariantWeights(C4(), network="model", mode="merge", example=example)
    module = fit(lambda: InDomains(optimizer=adam), [callback], data=loader(side=SIDE), max_epochs=4)
    assert asymmetry(module.model, LAYOUT) < 1e-6
    for domain in range(2):
        assert variation(OfDomain(module.model, domain)) < 1e-12


def test_a_branch_that_stands_in_the_way_is_named_in_the_step_that_uses_it() -> None:
    callback = InvariantWeights(C4(), network="model")
    with pytest.warns(
        UserWarning, match=r"first to use 'branches\.1\..*Expected Branches .*'branches\.1', Conv2d"
    ) as said:
        module = fit(lambda: InDomains((1, 3)), [callback], data=loader(side=SIDE))
    assert sum("cannot be made invariant" in str(each.message) for each in said) == 1
    assert variation(OfDomain(module.model, 0)) < 1e-12


class ByAttribute(InDomains):
    """The branch is no argument: calls that are made again take the one of the present."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.model.domain = batch_idx % 2
        return F.cross_entropy(self.model(batch[0]), batch[1])


class Chosen(Branches):
    domain = 0

    def forward(self, x: Tensor, domain: int | None = None) -> Tensor:
        return super().forward(x, self.domain if domain is None else domain)


def test_a_branch_that_an_attribute_chooses_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    extended = WeightSymmetry.extended
    monkeypatch.setattr(WeightSymmetry, "extended", lambda *args: runs.append(1) or extended(*args))

    def module() -> ByAttribute:
        made_of = ByAttribute()
        made_of.model = Chosen()
        return made_of

    callback = InvariantWeights(C4(), network="model")
    trained = fit(module, [callback], data=loader(24, side=SIDE), max_epochs=2)
    assert len(runs) == 1
    for domain in range(2):
        assert variation(OfDomain(trained.model, domain)) < 1e-12


class Auxiliary(nn.Module):
    """A head that trains beside the other one, with a normalisation of its own; and a layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 12, 3), nn.Linear(12, CLASSES)
        self.beside = nn.Sequential(nn.BatchNorm2d(12), nn.Flatten(), nn.Linear(12 * 16, CLASSES))
        self.spare = nn.BatchNorm2d(7)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(x).relu()
        out = self.head(inner.mean((2, 3)))
        return out + self.beside(inner) if self.training else out


def test_what_is_used_in_training_alone_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    extended = WeightSymmetry.extended
    monkeypatch.setattr(WeightSymmetry, "extended", lambda *args: runs.append(1) or extended(*args))
    module = fit(lambda: Trained(Auxiliary), [InvariantWeights(C4())], data=loader(24, side=SIDE), max_epochs=2)
    assert len(runs) == 3  # of 12 steps
    assert variation(module.model) < 1e-12


def in_two_parts(make: Callable[[], LightningModule], batches: int, tmp_path: Any, **options: Any) -> LightningModule:
    """Trained with a stop after so many batches."""
    first = trainer_for([InvariantWeights(C4(), **options)], max_epochs=2)
    interrupted = made(make)

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == batches:
                trainer.save_checkpoint(tmp_path / "part.ckpt")
                trainer.should_stop = True

    first.callbacks.append(Stop())
    first.fit(interrupted, Batches(6, side=SIDE))
    module = made(make)
    callback = InvariantWeights(C4(), **options)
    trainer_for([callback], max_epochs=2).fit(module, Batches(6, side=SIDE), ckpt_path=tmp_path / "part.ckpt")
    return module


@pytest.mark.filterwarnings("ignore:.*when the strength of the merge was")
@pytest.mark.parametrize("mode", ["project", "merge"])
@pytest.mark.parametrize("batches", [1, 3])
def test_branches_in_a_training_that_is_resumed(mode: Any, batches: int, tmp_path: Any) -> None:
    """Bit for bit, before and after a branch has been found."""
    options = {"network": "model", "mode": mode}
    resumed = in_two_parts(lambda: InDomains(optimizer=adam), batches, tmp_path, **options)
    whole = made(lambda: InDomains(optimizer=adam))
    trainer_for([InvariantWeights(C4(), **options)], max_epochs=2).fit(whole, Batches(6, side=SIDE))
    assert apart(resumed, whole) == 0.0


class Validated(InDomains):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.model(batch[0], 0)


def norm_of(module: LightningModule) -> float:
    return float(module.model.branches[1].weight.detach().norm())


@pytest.mark.parametrize("strength", [None, 0.5])
def test_a_branch_begins_with_its_norm_also_when_a_validation_comes_before_its_step(strength: float | None) -> None:
    callback = InvariantWeights(C4(), network="model", strength=strength)
    before = norm_of(made(lambda: Validated(optimizer=still)))
    trainer = trainer_for([callback], max_epochs=1, accumulate_grad_batches=3, val_check_interval=2)
    module = made(lambda: Validated(optimizer=still))
    trainer.fit(module, loader(24, side=SIDE), loader(side=SIDE))
    assert norm_of(module) == pytest.approx(before, rel=1e-5)
    assert variation(OfDomain(module.model, 1)) < 1e-5


def still(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.0)


def test_a_list_of_examples_shows_all_branches() -> None:
    network, x = made(Branches), torch.randn(2, 1, SIDE, SIDE)
    with pytest.warns(UserWarning, match=r"does not use 'branches\.1\.weight', 'branches\.1\.bias': they are left"):
        symmetrize(copy.deepcopy(network), C4(), (x, 0)).project_()
    symmetrize(network, C4(), [(x, 0), (x, 1)]).project_()
    for domain in range(2):
        assert variation(OfDomain(network, domain)) < 1e-12


# What changes besides weights ------------------------------------------------------------------------------------


class Centred(nn.Module):
    """Holds a mean of its channels of its own, which begins with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean((0, 2, 3), keepdim=True), 0.3)
        return x - self.mean


def centring() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), Centred(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES)
    )


def test_a_statistic_of_the_users_own_is_warned_of_once() -> None:
    module = made(lambda: Trained(centring))
    with pytest.warns(UserWarning, match="not invariant under C4.* any more, .*'model.1', Centred") as caught:
        trainer_for([InvariantWeights(C4())], max_epochs=3).fit(module, loader(side=SIDE), loader(side=SIDE))
    assert sum("any more" in str(each.message) for each in caught) == 1
    assert variation(module.model) > 1e-4


class Sizes:
    """Images of one size, then of another."""

    def __init__(self, *sides: int) -> None:
        self.sides = sides

    def __iter__(self) -> Iterator[Any]:
        for side in self.sides:
            yield from loader(count=4, side=side)


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )


@pytest.mark.parametrize("mode", ["project", "merge"])
def test_a_size_for_which_the_network_is_not_invariant_is_warned_of_when_it_comes(mode: Any) -> None:
    callback = InvariantWeights(C4(), mode=mode, strength=None if mode == "project" else 0.5)
    with pytest.warns(UserWarning, match=r"called with a tensor \(4, 1, 7, 7\) .*'model.1', MaxPool2d") as caught:
        fit(lambda: Trained(pooled), [callback], data=Sizes(6, 7, 8, 7), max_epochs=1)
    assert sum("is called with" in str(each.message) for each in caught) == 1


class Growing(Trained):
    """Takes other inputs from the first validation on, and no longer those before."""

    side = SIDE

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        margin = (self.side - SIDE) // 2
        return super().training_step((F.pad(batch[0], (margin,) * 4), batch[1]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def on_validation_epoch_start(self) -> None:
        self.side = SIDE + 2

    def forward(self, x: Tensor) -> Any:
        assert x.shape[-1] == self.side
        return super().forward(x)


class Diverging(Trained):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step((batch[0] * torch.nan if self.current_epoch else batch[0], batch[1]), batch_idx)


@pytest.mark.parametrize("kind", [Growing, Diverging])
def test_a_training_is_not_ended_by_looking_at_it(kind: Any) -> None:
    module = made(lambda: kind(pooled))
    trainer = trainer_for([InvariantWeights(C4())], max_epochs=3)
    trainer.fit(module, loader(side=SIDE), loader(side=SIDE))
    assert trainer.current_epoch == 3


# Several calls of a step -----------------------------------------------------------------------------------------


class TwoViews(Trained):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[2]) + F.cross_entropy(self(batch[1]), batch[2])


def test_running_statistics_are_those_of_all_calls_of_a_step() -> None:
    data = loader(side=SIDE, pack=lambda x, y: (x, x + 2, y))
    module = fit(TwoViews, [InvariantWeights(C4())], data=data, max_epochs=2)
    views = [x for first, second, _ in data for x in (first, second)]
    with torch.no_grad():
        z = [module.model[0](x).transpose(0, 1).flatten(1) for x in views]
    expected = mean(torch.stack([each.mean(dim=1) for each in z]).mean(dim=0), FIELD)
    torch.testing.assert_close(module.model[1].running_mean, expected)
    expected = mean(torch.stack([each.var(dim=1) for each in z]).mean(dim=0), FIELD)
    torch.testing.assert_close(module.model[1].running_var, expected)


class Labelling(TwoViews):
    """Looks at the other view in eval mode first."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.eval()
        with torch.no_grad():
            labels = self(3 * batch[1]).argmax(dim=1)
        self.train()
        return F.cross_entropy(self(batch[0]), labels)


def test_running_statistics_are_not_those_of_calls_in_eval_mode() -> None:
    data = loader(side=SIDE, pack=lambda x, y: (x, x + 2, y))
    module = fit(Labelling, [InvariantWeights(C4())], data=data, max_epochs=2)
    with torch.no_grad():
        z = [module.model[0](x).transpose(0, 1).flatten(1) for x, _, _ in data]
    expected = mean(torch.stack([each.var(dim=1) for each in z]).mean(dim=0), FIELD)
    torch.testing.assert_close(module.model[1].running_var, expected)


# The ramp of a merge ---------------------------------------------------------------------------------------------


class EveryOther(LightningModule):
    """Accumulates two batches by hand."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.model = made(pooled)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(F.cross_entropy(self.model(batch[0]), batch[1]) / 2)
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return adam(self.parameters())


def test_a_merge_is_complete_where_optimisers_do_not_step_in_each_batch() -> None:
    callback = InvariantWeights(C4(), network="model", mode="merge")
    module = fit(EveryOther, [callback], data=loader(24, side=SIDE), max_epochs=2)
    assert variation(module.model) < 1e-12


@pytest.mark.parametrize("kind", [Trained, EveryOther])
def test_a_merge_of_unknown_length_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="how many steps the training has"):
        fit(kind, [InvariantWeights(C4(), mode="merge", network="model")], data=Sizes(6, 6))


def test_a_merge_goes_over_the_steps_that_are_left(tmp_path: Any) -> None:
    """Of a training that went on without it, and of a second fit of the same trainer."""
    plain = trainer_for(max_epochs=2)
    plain.fit(made(Trained), loader(side=SIDE))
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    trainer, module = trainer_for([InvariantWeights(C4(), mode="merge")], max_epochs=4), made(Trained)
    trainer.fit(module, loader(side=SIDE), ckpt_path=tmp_path / "plain.ckpt")
    assert variation(module.model) < 1e-12
    trainer.fit_loop.max_epochs = 6
    trainer.fit(module, loader(side=SIDE))
    assert variation(module.model) < 1e-12


# Layers that are seen in another light ---------------------------------------------------------------------------


class OverChannels(nn.Module):
    """Weighs channels by a convolution over them (ECA)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x.mean((2, 3))[:, None]))[:, 0, :, None, None]


class HalfTurn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.flip(-1, -2)


def around(layer: nn.Module, **options: Any) -> nn.Module:
    first = nn.Conv2d(1, 8, 3, padding=1, **options)
    return nn.Sequential(first, layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def new_spectral() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))


def old_spectral() -> nn.Module:
    return nn.utils.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))


@pytest.mark.filterwarnings("ignore:Few fields", "ignore:.*spectral_norm.* is deprecated")
@pytest.mark.parametrize("layer", [OverChannels, HalfTurn, new_spectral, old_spectral], ids=lambda each: each.__name__)
def test_layers_under_turns(layer: Callable[[], nn.Module]) -> None:
    network = made(lambda: around(layer())).double().eval()
    assert variation(network) > 1e-3
    symmetrize(network, C4(), torch.randn(2, 1, SIDE, SIDE, dtype=torch.float64)).project_()
    assert variation(network) < 1e-12


@pytest.mark.filterwarnings("ignore:Few fields")
@pytest.mark.parametrize("action", [HorizontalFlip(), CyclicTranslations(3)], ids=repr)
def test_convolutions_over_channels_under_groups_of_one_axis(action: Any) -> None:
    network = made(lambda: around(OverChannels(), padding_mode="circular")).double().eval()
    network[0].weight.data[:, :, :, 0] *= 2
    x = torch.randn(3, 1, SIDE, SIDE, dtype=torch.float64)
    symmetrize(network, action, x).project_()
    with torch.no_grad():
        torch.testing.assert_close(network(action.act(x, 1)), network(x), rtol=0.0, atol=1e-12)


# Refused ---------------------------------------------------------------------------------------------------------


def spoilt() -> Tensor:
    x = torch.randn(2, 1, SIDE, SIDE)
    x[0, 0, 0, 0] = torch.nan
    return x


@pytest.mark.parametrize(
    ("make", "x", "said"),
    [
        (lambda: torch.jit.trace(made(pooled), torch.zeros(2, 1, 6, 6)), torch.zeros(2, 1, 6, 6), "is a ScriptModule"),
        (pooled, spoilt(), "finite outputs"),
        (pooled, torch.zeros(0, 1, 6, 6), "at least one sample"),
        (pooled, [], r"or a list of such, but got \[\]"),
    ],
    ids=["scripted", "NaN", "empty", "no example"],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_examples_that_show_nothing_are_refused(make: Any, x: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"Expected .*{said}"):
        symmetrize(make(), C4(), x)


def test_matching_never_leads_away() -> None:
    """Weight normalisation has a norm for each filter beside the filters."""
    for seed in range(5):
        torch.manual_seed(seed)
        convolutions = [nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)) for _ in range(2)]
        network = around(nn.Sequential(*convolutions))
        symmetry = symmetrize(network, C4(), torch.randn(2, 1, SIDE, SIDE))
        before = symmetry.asymmetry()
        symmetry.match_()
        assert symmetry.asymmetry() <= before


class Logs(Trained):
    def forward(self, x: Tensor) -> Any:
        self.log("mean", x.mean())
        return self.model(x)


def test_what_a_forward_logs_is_that_of_the_steps_alone() -> None:
    """At the end of a training logging is an error, and extra runs would change the values before."""
    logged = []
    for callbacks in ([], [InvariantWeights(C4())]):
        trainer, module = trainer_for(callbacks, max_epochs=2), made(Logs)
        trainer.fit(module, loader(side=SIDE))
        logged.append(trainer.callback_metrics["mean"])
        assert "log" not in vars(module)
    assert torch.equal(*logged)
