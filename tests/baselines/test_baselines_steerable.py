"""Convolutional networks tied over a group of the plane are exactly invariant to the part that a pixel grid has."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_invariance
from lightning_invariance import C4, D4, Gradient, InvarianceMonitor, InvarianceRegularizer

pytest.importorskip("escnn.nn", exc_type=ImportError)

import baselines_worker
from escnn import gspaces
from escnn import nn as enn
from processes import Launch

from lightning_invariance.baselines import SteerableClassifier

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(lightning_invariance.__file__).parents[1]), *sys.path]),
    "OMP_NUM_THREADS": "1",
}
GROUPS = ["C4", "D4", "C8", "SO2"]
LATTICE = {"C4": C4(), "D4": D4(), "C8": C4(), "SO2": C4()}
SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 27, 28, 29, 30, 31, 32, 33]


def build(group: str, size: int = 12, dtype: torch.dtype = torch.float32, seed: int = 0, **options: int) -> nn.Module:
    """A network whose running statistics are no longer those it was made with."""
    torch.manual_seed(seed)
    network = SteerableClassifier(group, in_channels=2, num_classes=5, image_size=size, **{"width": 2, **options})
    network = network.to(dtype)
    with torch.no_grad():
        for _ in range(2):
            network(1 + torch.randn(16, 2, size, size, dtype=dtype))
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("group", GROUPS)
def test_turned_images_have_the_same_logits_at_every_size(group, training, dtype, tolerance):
    action = LATTICE[group]
    for size in SIZES:
        network = build(group, size, dtype).train(training)
        x = torch.randn(6, 2, size, size, dtype=dtype)
        with torch.no_grad():
            logits = network(x)
            assert logits.std() > 1e-3
            for element in range(1, len(action)):
                error = (network(action.act(x, element)) - logits).abs().max()
                assert error < tolerance * logits.std(), (size, element)


@pytest.mark.parametrize("group", ["C4", "C8", "SO2"])
def test_a_group_without_flips_sees_them(group):
    network, x = build(group).eval(), torch.randn(6, 2, 12, 12)
    with torch.no_grad():
        assert (network(x.flip(-1)) - network(x)).abs().max() > 0.01 * network(x).std()


@pytest.mark.parametrize("group", GROUPS)
def test_it_learns(group):
    """Two textures that no turn takes to one another."""
    torch.manual_seed(0)
    x = torch.randn(64, 1, 12, 12)
    y = torch.arange(64) % 2
    x[y == 1] = nn.functional.avg_pool2d(x[y == 1], 3, stride=1, padding=1)
    network = SteerableClassifier(group, 1, 2, 12, width=2, depth=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        optimizer.step()
    assert (network.eval()(x).argmax(1) == y).float().mean() > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": "C3"}, "Expected `group` to be one of"),
        ({"group": C4()}, "Expected `group` to be one of"),
        ({"in_channels": 0}, "Expected `in_channels` to be an integer"),
        ({"num_classes": 2.0}, "Expected `num_classes` to be an integer"),
        ({"image_size": (28, 28)}, "Expected `image_size` to be an integer"),
        ({"width": 0}, "Expected `width` to be an integer"),
        ({"depth": True}, "Expected `depth` to be an integer"),
    ],
)
def test_errors_when_built(arguments, message):
    with pytest.raises(ValueError, match=message):
        SteerableClassifier(**{"group": "C4", "in_channels": 1, "num_classes": 2, "image_size": 8, **arguments})


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 2, 12, 13),
        torch.randn(2, 2, 13, 13),
        torch.randn(2, 1, 12, 12),
        torch.randn(2, 12, 12),
        torch.zeros(2, 2, 12, 12, dtype=torch.uint8),
        "x",
    ],
)
def test_errors_when_called(x):
    with pytest.raises(ValueError, match=r"Expected `x` to be floating point of shape \(B, 2, 12, 12\) but got"):
        build("C4")(x)


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


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("group", ["C4", "D4", "C8"])
def test_logits_are_those_of_escnn_s_layers(group, training):
    network, x = build(group, size=12), torch.randn(5, 2, 12, 12)
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
    ours = to_coefficients(F.elu(to_values(x)))
    torch.testing.assert_close(ours, fourier(fourier.in_type(x)).tensor)


# An ordinary module ----------------------------------------------------------------------------------------------


def images(count: int, size: int = 12, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, 2, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("trained_in", [False, True])
@pytest.mark.parametrize("loaded_in", [False, True])
@pytest.mark.parametrize("group", GROUPS)
def test_a_state_loads_in_either_mode_from_either_mode(group, trained_in, loaded_in):
    trained, other, x = build(group).train(trained_in), build(group, seed=1).train(loaded_in), images(4)
    other.load_state_dict(trained.state_dict())
    expected = trained.eval()(x)
    assert expected.std() > 1e-3
    # Before anything is called that could make a cache fresh.
    assert torch.equal((other if not loaded_in else other.eval())(x), expected)


def test_a_state_of_one_size_loads_into_a_network_for_another():
    other = build("C4", size=15, seed=1)
    other.load_state_dict(build("C4", size=12).state_dict())


@pytest.mark.parametrize("group", GROUPS)
def test_weights_changed_in_eval_mode_are_used(group):
    network, x = build(group).eval(), images(6)
    before = network(x)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    F.cross_entropy(before, torch.arange(6) % 5).backward()
    optimizer.step()
    fresh = build(group, seed=1)
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(network(x), fresh.eval()(x))
    assert not torch.allclose(network(x), before)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("group", GROUPS)
def test_gradients_after_eval_was_called_without_any(group, context):
    network, x = build(group), images(3).requires_grad_()
    with context():
        network.train().eval()
        network(x)
    inputs = [x, *network.parameters()]
    gradients = torch.autograd.grad(network(x).square().sum(), inputs)
    expected = torch.autograd.grad(copy.deepcopy(network).eval()(x).square().sum(), x)[0]
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert torch.equal(gradients[0], expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("group", GROUPS)
def test_the_batch_is_left_alone(group, training):
    network, x = build(group).train(training), images(3)
    before = x.clone()
    network(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("group", GROUPS)
def test_copies_and_pickles(group, training):
    network, x = build(group), images(3)
    network.train().train(training)(x).sum().backward()
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other.eval()(x), copy.deepcopy(network).eval()(x))
        assert all(isinstance(value, torch.Tensor) for value in other.state_dict().values())


@pytest.mark.parametrize("group", GROUPS)
def test_one_network_in_double_precision_leaves_the_others_alone(group):
    first, second, x = build(group).eval(), build(group).eval(), images(3)
    space = SPACES[group]()
    image = enn.FieldType(space, 2 * [space.trivial_repr])
    users = enn.R2Conv(image, enn.FieldType(space, [space.trivial_repr]), 5).eval()
    expected, expected_users = second(x), users(image(x)).tensor
    first.double()
    torch.testing.assert_close(first(x.double()), expected.double(), rtol=1e-4, atol=1e-4)
    assert torch.equal(second(x), expected)
    users.double()
    third = build(group).eval()
    assert torch.equal(third(x), expected)
    assert torch.equal(users.float().train().eval()(image(x)).tensor, expected_users)


@pytest.mark.parametrize("group", GROUPS)
def test_half_precision_leaves_no_trace(group):
    network, x = build(group), images(16)
    expected = copy.deepcopy(network).eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = network.eval()(x)
        turned = network(C4().act(x, 1))
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


@pytest.mark.parametrize("size", [12, 13])
@pytest.mark.parametrize("group", GROUPS)
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
    for same in (exported, torch.load(file, weights_only=False), pickle.loads(pickle.dumps(exported))):
        torch.testing.assert_close(same(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter in exported.parameters():
            parameter.zero_()
    assert all(torch.equal(value, was[name]) for name, value in network.state_dict().items())


# In a Trainer ----------------------------------------------------------------------------------------------------


class Module(LightningModule):
    def __init__(self, group: str = "C4") -> None:
        super().__init__()
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


def loader(dtype: torch.dtype = torch.float32) -> DataLoader:
    return DataLoader(TensorDataset(images(24).to(dtype), torch.arange(24) % 3), batch_size=8)


def trainer(tmp_path: Path, *callbacks: object, **options: object) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "max_epochs": 2}
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[*callbacks], **{**quiet, **options})


def module(group: str = "C4") -> Module:
    torch.manual_seed(1)
    return Module(group)


def same_state(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("group", GROUPS)
def test_a_run_that_is_resumed_is_the_run_that_went_through(group, tmp_path):
    whole, first, second = module(group), module(group), Module(group)
    trainer(tmp_path).fit(whole, loader(), loader())
    start = trainer(tmp_path, max_epochs=1)
    start.fit(first, loader(), loader())
    start.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path).fit(second, loader(), loader(), ckpt_path=tmp_path / "half.ckpt")
    assert same_state(second, whole)
    assert not same_state(first, whole)


@pytest.mark.parametrize("group", GROUPS)
def test_averaged_weights_are_those_validated(group, tmp_path):
    averaging = EMAWeightAveraging(decay=0.5)
    trained = module(group)
    trainer(tmp_path, averaging, num_sanity_val_steps=0).fit(trained, loader(), loader())
    logits, state = trained.seen[-1]
    fresh = Module(group).model
    fresh.load_state_dict(state)
    x = images(24)[16:]
    torch.testing.assert_close(logits, fresh.eval()(x))
    # Averaging rounds the basis as well, but rounds what turns into one another alike.
    with torch.no_grad():
        assert (fresh(C4().act(x, 1)) - logits).abs().max() < 1e-5 * logits.std()


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("group", GROUPS)
def test_precisions(group, precision, tmp_path):
    trained = module(group)
    trainer(tmp_path, precision=precision).fit(trained, loader(), loader())
    expected = {"64-true": torch.float64, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}[precision]
    assert {value.dtype for value in trained.state_dict().values()} == {expected, torch.int64}
    assert all(torch.isfinite(value).all() for value in trained.state_dict().values())
    x = images(8).to(expected)
    with torch.no_grad():
        logits = trained.eval()(x)
        error = (trained(C4().act(x, 1)) - logits).abs().max()
    assert error < {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.2}[expected] * logits.std()


@pytest.mark.parametrize("method", ["validate", "test"])
@pytest.mark.parametrize("group", GROUPS)
def test_the_monitor_finds_it_invariant(group, method, tmp_path):
    monitor = InvarianceMonitor(LATTICE[group], saliency=Gradient())
    measured_by = trainer(tmp_path, monitor)
    getattr(measured_by, method)(module(group), loader(), verbose=False)
    measured = {name: float(estimate.value) for name, estimate in monitor.history[0].measures.items()}
    assert measured["normalized_logit_invariance_error"] < 1e-9
    assert measured["saliency_invariance_similarity"] == pytest.approx(1.0, abs=1e-5)
    assert measured["prediction_consistency"] == 1.0


def test_the_regularizer_has_nothing_to_do(tmp_path):
    regularizer = InvarianceRegularizer(C4(), 1.0)
    fitted = trainer(tmp_path, regularizer)
    fitted.fit(module(), loader())
    assert float(fitted.callback_metrics["train/invariance_penalty"]) < 1e-8


# In two processes ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed support")
def test_two_processes_take_the_mean_of_their_gradients(tmp_path):
    launch = Launch(baselines_worker.__file__, tmp_path)
    assert launch.codes == [0, 0]

    # The same by hand: two copies, each with its own half of the data, stepping together.
    copies = [baselines_worker.Module().model.train() for _ in range(2)]
    x, y = baselines_worker.data()
    for start in range(0, 8, baselines_worker.BATCH):
        mine = slice(start, start + baselines_worker.BATCH)
        gradients = [
            torch.autograd.grad(F.cross_entropy(network(x[rank::2][mine]), y[rank::2][mine]), [*network.parameters()])
            for rank, network in enumerate(copies)
        ]
        with torch.no_grad():
            for network in copies:
                for parameter, left, right in zip(network.parameters(), *gradients, strict=True):
                    parameter -= baselines_worker.RATE * (left + right) / 2
    trained = launch.results("state")
    untrained = baselines_worker.Module().model.state_dict()
    for name, parameter in copies[0].named_parameters():
        assert not torch.equal(parameter, untrained[name]), name
        for state in trained:
            torch.testing.assert_close(state[name], parameter.detach(), rtol=1e-4, atol=1e-6)
    for name, buffer in copies[0].named_buffers():  # running statistics are the first process's
        torch.testing.assert_close(trained[0][name], buffer, rtol=1e-4, atol=1e-6)


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
