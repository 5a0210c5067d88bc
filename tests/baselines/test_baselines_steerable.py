"""Convolutional networks tied over a group of the plane are exactly invariant to the part that a pixel grid has."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import lightning_invariance
from lightning_invariance import C4, D4, Gradient, InvarianceMonitor

pytest.importorskip("escnn.nn", exc_type=ImportError)

from escnn import gspaces
from escnn import nn as enn

from lightning_invariance.baselines import SteerableClassifier

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(lightning_invariance.__file__).parents[1]), *sys.path]),
    "OMP_NUM_THREADS": "1",
}
GROUPS = ["C4", "D4", "C8", "SO2"]
LATTICE = {"C4": C4(), "D4": D4(), "C8": C4(), "SO2": C4()}
#: All remainders of 8, which three blocks halve to; and larger ones, even and odd in each block.
SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 15, 28]


@cache
def _built(group: str, size: int, dtype: torch.dtype, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = SteerableClassifier(group, in_channels=2, num_classes=5, image_size=size, width=2).to(dtype)
    with torch.no_grad():
        for _ in range(2):
            network(1 + torch.randn(16, 2, size, size, dtype=dtype))
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


def build(group: str, size: int = 12, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A network whose running statistics are no longer those it was made with."""
    return copy.deepcopy(_built(group, size, dtype, seed))


def images(count: int, size: int = 12, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, 2, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("group", GROUPS)
def test_turned_images_have_the_same_logits_at_every_size(group, training):
    action = LATTICE[group]
    double = training == (group in ("C4", "D4"))
    dtype, tolerance = (torch.float64, 1e-6) if double else (torch.float32, 1e-5)
    for size in SIZES:
        network, x = build(group, size, dtype).train(training), images(4, size).to(dtype)
        with torch.no_grad():
            logits = network(x)
            assert logits.std() > 1e-3
            for element in range(1, len(action)):
                error = (network(action.act(x, element)) - logits).abs().max()
                assert error < tolerance * logits.std(), (size, element)
            if group != "D4" and size == 28:
                assert (network(x.flip(-1)) - logits).abs().max() > 0.01 * logits.std()


# It is escnn's network -------------------------------------------------------------------------------------------

SPACES = {
    "C4": lambda: gspaces.rot2dOnR2(4),
    "D4": lambda: gspaces.flipRot2dOnR2(4),
    "C8": lambda: gspaces.rot2dOnR2(8),
    "SO2": lambda: gspaces.rot2dOnR2(-1, maximum_frequency=3),
}


class InEscnnsLayers(nn.Module):
    """The network of a finite group, written with escnn's own layers."""

    def __init__(self, network: SteerableClassifier, group: str, widths: tuple[int, ...]) -> None:
        super().__init__()
        space = SPACES[group]()
        self.head = network.head
        self.image = enn.FieldType(space, network.in_channels * [space.trivial_repr])
        convolutions = [layer for layer in network.features if hasattr(layer, "filter")]
        norms = [layer for layer in network.features if isinstance(layer, nn.BatchNorm3d)]
        layers, before = [], self.image
        for block, width in enumerate(widths):
            fields = enn.FieldType(space, width * [space.regular_repr])
            conv = enn.R2Conv(before, fields, 5, padding=2, bias=False)
            conv.weights.data = convolutions[block].weight.detach().flatten()
            norm = enn.InnerBatchNorm(fields)
            (inner,) = norm.children()
            inner.load_state_dict(norms[block].state_dict())
            if block:
                layers.append(enn.PointwiseAvgPool2D(before, 2, 2))
            layers += [conv, norm, enn.ReLU(fields)]
            before = fields
        self.features = enn.SequentialModule(*layers, enn.GroupPooling(before))

    def forward(self, x):
        return self.head(self.features(self.image(x)).tensor.mean((-2, -1)))


@pytest.mark.parametrize(("group", "training"), [("C4", True), ("D4", False), ("D4", True), ("C8", False)])
def test_logits_are_those_of_escnn_s_layers(group, training):
    network, x = build(group), images(5)
    reference = InEscnnsLayers(network, group, (2, 4, 8)).train(training)
    torch.testing.assert_close(network.train(training)(x), reference(x), rtol=1e-4, atol=1e-5)


def test_filters_and_the_fourier_transform_are_escnn_s():
    network = build("SO2")
    space = SPACES["SO2"]()
    fourier = enn.FourierELU(space, 4, space.fibergroup.bl_irreps(3), type="regular", N=16, inplace=False)
    narrow = enn.FieldType(space, 2 * [fourier.rho])
    conv = enn.R2Conv(narrow, fourier.in_type, 5, bias=False)
    ours = [layer for layer in network.features if hasattr(layer, "filter")][1]
    conv.weights.data = ours.weight.detach().flatten()
    torch.testing.assert_close(ours.filter(), conv.expand_parameters()[0])

    to_coefficients, to_values = [layer for layer in network.features if hasattr(layer, "matrix")][-2:]
    to_coefficients.fields = to_values.fields = 4
    x = torch.randn(3, 28, 6, 6)
    (rectify,) = {type(layer) for layer in network.features if isinstance(layer, (nn.ELU, nn.ReLU))}
    ours = to_coefficients(rectify()(to_values(x)))
    torch.testing.assert_close(ours, fourier(fourier.in_type(x)).tensor)


# An ordinary module ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_a_state_loads_in_either_mode_and_copies_and_pickles_are_the_same(group):
    x = images(4)
    for trained_in, loaded_in in ((False, True), (True, False), (True, True)):
        trained, other = build(group).train(trained_in), build(group, seed=1).train(loaded_in)
        other.load_state_dict(trained.state_dict())
        expected = trained.eval()(x)
        assert expected.std() > 1e-3
        # Before anything is called that could make a cache fresh.
        assert torch.equal((other if not loaded_in else other.eval())(x), expected)
    network = build(group).train()
    network(x).sum().backward()
    for same in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(same.eval()(x), copy.deepcopy(network).eval()(x))
    build(group, size=15, seed=1).load_state_dict(network.state_dict())  # for another size


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("group", ["D4", "SO2"])
def test_gradients_and_steps_after_eval_was_called_without_any(group, context):
    network, x = build(group), images(6).requires_grad_()
    was = x.detach().clone()
    with context():
        before = network.train().eval()(x).clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    F.cross_entropy(network(x), torch.arange(6) % 5).backward()
    fresh = build(group).eval()
    expected = torch.autograd.grad(F.cross_entropy(fresh(x), torch.arange(6) % 5), [x, *fresh.parameters()])
    for got, gradient in zip((x.grad, *(parameter.grad for parameter in network.parameters())), expected, strict=True):
        assert gradient.abs().sum() > 0
        assert torch.equal(got, gradient)
    optimizer.step()
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(network(x), fresh(x))
    assert not torch.allclose(network(x), before)
    assert torch.equal(x, was)


@pytest.mark.parametrize("group", ["D4", "C8"])
def test_one_network_in_another_precision_leaves_the_others_alone(group):
    second, x = build(group).eval(), images(3)
    space = SPACES[group]()
    image = enn.FieldType(space, [space.trivial_repr])
    users = enn.R2Conv(image, enn.FieldType(space, [space.regular_repr]), 5).eval()
    expected, expected_users = second(x), users(image(x[:, :1])).tensor
    first = SteerableClassifier(group, 2, 5, 12, width=2).double()
    first.load_state_dict(second.state_dict())
    torch.testing.assert_close(first.eval()(x.double()), expected.double(), rtol=1e-4, atol=1e-4)
    assert torch.equal(users.train().eval()(image(x[:, :1])).tensor, expected_users)
    users.half()
    third = SteerableClassifier(group, 2, 5, 12, width=2)
    for (name, one), (_, other) in zip(second.named_buffers(), third.named_buffers(), strict=True):
        assert "basis" not in name or torch.equal(one, other)
    assert torch.equal(second(x), expected)


@pytest.mark.parametrize("group", ["C8", "SO2"])
def test_half_precision_leaves_no_trace(group):
    network, x = build(group), images(16)
    expected = copy.deepcopy(network).eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = network.eval()(x)
        turned = network(C4().act(x, 1))
        assert {layer.filter().dtype for layer in network.features if hasattr(layer, "filter")} == {torch.float32}
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().max() < 0.1 * expected.std()
    assert (half.float() - turned.float()).abs().max() < 0.1 * expected.std()
    assert torch.equal(network(x), expected)
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32, torch.int64}


def test_the_default_type_and_device_are_kept_to():
    torch.set_default_dtype(torch.float64)
    try:
        network = SteerableClassifier("SO2", 1, 2, 8, width=2)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in network.state_dict().values()} == {torch.float64, torch.int64}
    with torch.device("meta"):
        empty = SteerableClassifier("SO2", 1, 2, 8, width=2)
    assert all(value.is_meta for value in empty.state_dict().values())
    empty.to_empty(device="cpu").load_state_dict(network.state_dict())
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(empty.eval()(x).double(), network.eval()(x.double()), rtol=1e-4, atol=1e-4)


def test_a_seed_gives_the_same_network_and_nothing_else_is_drawn():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        network = SteerableClassifier("D4", 1, 2, 8, width=2)
        states.append([*network.state_dict().values(), torch.rand(1)])
    assert all(torch.equal(left, right) for left, right in zip(*states, strict=True))
    state = torch.get_rng_state()
    network.export()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("group", "size"), [("C4", 13), ("D4", 12), ("C8", 12), ("SO2", 13)])
def test_exported_it_is_the_same_network_in_torch_s_own_layers(group, size):
    network, x = build(group, size), images(6, size)
    was = copy.deepcopy(network.state_dict())
    exported = network.export()
    assert network.training
    assert not any(module.training for module in exported.modules())
    assert all(type(module).__module__.startswith("torch.nn.") for module in exported.modules())
    file = io.BytesIO()
    torch.save(exported, file)
    file.seek(0)
    expected = network.eval()(x)
    for same in (exported, torch.load(file, weights_only=False)):
        torch.testing.assert_close(same(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter in exported.parameters():
            parameter.zero_()
    assert all(torch.equal(value, was[name]) for name, value in network.state_dict().items())


# In a Trainer ----------------------------------------------------------------------------------------------------


class Module(LightningModule):
    def __init__(self, group: str = "C4") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model = SteerableClassifier(group, 2, 3, 12, width=2, depth=2)
        self.seen = []

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.seen.append((self(batch[0]), copy.deepcopy(self.model.state_dict())))

    def test_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def loader() -> DataLoader:
    return DataLoader(TensorDataset(images(24), torch.arange(24) % 3), batch_size=8)


def trainer(tmp_path: Path, *callbacks: object, **options: object) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "max_epochs": 2}
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[*callbacks], **{**quiet, **options})


def test_a_run_that_is_resumed_is_the_run_that_went_through(tmp_path):
    whole, first, second = Module("D4"), Module("D4"), Module("D4")
    trainer(tmp_path).fit(whole, loader(), loader())
    start = trainer(tmp_path, max_epochs=1)
    start.fit(first, loader(), loader())
    start.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path).fit(second, loader(), loader(), ckpt_path=tmp_path / "half.ckpt")

    pairs = [
        [torch.equal(value, other.state_dict()[name]) for name, value in whole.state_dict().items()]
        for other in (second, first)
    ]
    assert all(pairs[0])
    assert not all(pairs[1])


def test_averaged_weights_are_those_validated(tmp_path):
    trained = Module("SO2")
    averaging = EMAWeightAveraging(decay=0.5)
    trainer(tmp_path, averaging, num_sanity_val_steps=0).fit(trained, loader(), loader())
    logits, state = trained.seen[-1]
    fresh = Module("SO2").model
    fresh.load_state_dict(state)
    x = images(24)[16:]
    torch.testing.assert_close(logits, fresh.eval()(x))
    # Averaging rounds the basis as well, but rounds what turns into one another alike.
    with torch.no_grad():
        assert (fresh(C4().act(x, 1)) - logits).abs().max() < 1e-5 * logits.std()


@pytest.mark.parametrize(
    ("group", "precision", "dtype", "tolerance"),
    [
        ("SO2", "64-true", torch.float64, 1e-6),
        ("C8", "bf16-mixed", torch.float32, 1e-5),
        ("D4", "bf16-true", torch.bfloat16, 0.2),
        ("SO2", "bf16-true", torch.bfloat16, 0.2),
    ],
)
def test_precisions(group, precision, dtype, tolerance, tmp_path):
    trained = Module(group)
    trainer(tmp_path, precision=precision).fit(trained, loader(), loader())
    assert {value.dtype for value in trained.state_dict().values()} == {dtype, torch.int64}
    assert all(torch.isfinite(value).all() for value in trained.state_dict().values())
    x = images(8).to(dtype)
    with torch.no_grad():
        logits = trained.eval()(x)
        assert (trained(C4().act(x, 1)) - logits).abs().max() < tolerance * logits.std()


@pytest.mark.parametrize(("group", "method"), [("D4", "validate"), ("SO2", "test")])
def test_the_monitor_finds_it_invariant(group, method, tmp_path):
    monitor = InvarianceMonitor(LATTICE[group], saliency=Gradient())
    getattr(trainer(tmp_path, monitor), method)(Module(group), loader(), verbose=False)
    measured = {name: float(estimate.value) for name, estimate in monitor.history[0].measures.items()}
    assert measured["normalized_logit_invariance_error"] < 1e-9
    assert measured["saliency_invariance_similarity"] == pytest.approx(1.0, abs=1e-5)
    assert measured["prediction_consistency"] == 1.0


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed support")
@pytest.mark.parametrize("group", ["D4", "SO2"])
def test_distributed_training_reaches_every_parameter(group):
    """One process will do: whose gradients are averaged is torch's affair, which parameters have some is ours."""
    wrapped, by_hand, x = build(group), build(group), images(6)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        distributed = DistributedDataParallel(wrapped)
        for network in (distributed, by_hand):
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
            for _ in range(2):
                optimizer.zero_grad()
                F.cross_entropy(network(x), torch.arange(6) % 5).backward()
                optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    for (name, got), expected in zip(wrapped.state_dict().items(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(got, expected, msg=name)
        assert name.endswith("basis") or "matrix" in name or not torch.equal(got, build(group).state_dict()[name]), name


# Where escnn finds nothing on the disk ---------------------------------------------------------------------------

COLD = """
import sys
import joblib

memory = joblib.Memory
joblib.Memory = lambda path, **options: memory(sys.argv[1], verbose=0)  # escnn keeps its own inside of its package
import torch
from lightning_invariance import D4
from lightning_invariance.baselines import SteerableClassifier

import escnn.group._numerical as numerical

def refuse(*arguments, **options):
    raise TypeError("np.matrix is not supported.")

numerical.randomized_svd = refuse  # as scikit-learn's, from 1.7 on
network, x = SteerableClassifier("D4", 1, 3, 8, width=2).eval(), torch.randn(4, 1, 8, 8)
assert numerical.randomized_svd is refuse
with torch.no_grad():
    logits = network(x)
    assert max(float((network(D4().act(x, k)) - logits).abs().max()) for k in range(8)) < 1e-5 * float(logits.std())
try:
    from escnn import gspaces, nn
    space = gspaces.flipRot2dOnR2(6)
    regular = nn.FieldType(space, [space.regular_repr])
    nn.R2Conv(regular, regular, 5)
except TypeError as error:
    print(error)
"""


def test_flips_are_built_on_a_cold_cache(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COLD, str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "np.matrix is not supported." in done.stdout  # what would have happened
