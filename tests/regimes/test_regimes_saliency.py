"""The saliency penalty, a term of second order, and actions that are checked before they are trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Images, fit, loader, made, trainer_for
from lightning.pytorch import Callback
from oracles import WEIGHT, Classifier, Saliency, convnet, distance, dropping, mlp, saliency_term
from steps import SHADOWED, Manual, regularised, with_term
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import (
    C4,
    FunctionAction,
    Gradient,
    InvarianceMonitor,
    InvarianceRegularizer,
    evaluate_invariance,
)

# The penalty -----------------------------------------------------------------------------------------------------


def regularizer() -> list[Callback]:
    return [InvarianceRegularizer(C4(), WEIGHT, "saliency")]


def by_maps(plain: type[Any], oracle: Any = None, **options: Any) -> None:
    regularised(plain, oracle or with_term(plain, Saliency), penalty="saliency", **options)


def dropping_convnet() -> nn.Module:
    return nn.Sequential(*convnet()[:3], nn.Dropout(0.5), *convnet()[3:])


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (dropping_convnet, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.2, "max_epochs": 4}),
        (convnet, {"precision": "64-true"}),
        (dropping, {"overfit_batches": 1}),
    ],
)
def test_saliency(network: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    class Plain(Classifier):
        def __init__(self) -> None:
            super().__init__(network)

    by_maps(Plain, options=options)


def test_saliency_with_manual_optimisation_and_a_named_network() -> None:
    class CallsForward(Classifier):
        def __init__(self) -> None:
            super().__init__(convnet)

        def forward(self, x: Tensor) -> Tensor:
            return self.model.forward(x)

    class Plain(Manual, CallsForward):
        pass

    by_maps(Plain, network="model")


def test_saliency_in_bf16_mixed() -> None:
    """Maps in bfloat16 are compared in float32: bit for bit what the formula gives under autocast."""
    by_maps(Classifier, options={"precision": "bf16-mixed"})


def test_the_penalty_that_is_logged_is_one_minus_the_measured_similarity() -> None:
    """Of the class predicted on x: the monitor, given no labels, explains the same."""
    x = Images(12).tensors[0]
    module = made(lambda: Classifier(lr=0.0))
    trainer = trainer_for(regularizer(), max_epochs=1)
    trainer.fit(module, loader())
    measured = evaluate_invariance(module.model, [x], C4(), saliency=Gradient(), progress=False)
    similarity = float(measured["saliency_invariance_similarity"].value)
    assert float(trainer.callback_metrics["train/invariance_penalty"]) == pytest.approx(1 - similarity, abs=1e-6)


class Dead(nn.Module):
    """Maps of zeros: for all images, or for those with a negative sum."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always
        self.network = mlp()

    def forward(self, x: Tensor) -> Tensor:
        alive = (x.sum((1, 2, 3)) > 0).float() * (not self.always)
        return self.network(x * alive[:, None, None, None])


def test_maps_of_zeros_everywhere_give_no_penalty_and_no_gradient() -> None:
    def dead() -> Classifier:
        return Classifier(lambda: Dead(always=True))

    trainer = trainer_for(regularizer())
    module = made(dead)
    trainer.fit(module, loader())
    assert float(trainer.callback_metrics["train/invariance_penalty"]) == 0.0
    assert all(bool(parameter.grad.isfinite().all()) for parameter in module.parameters())
    assert distance(module, fit(dead)) == 0.0


def test_maps_of_zeros_here_and_there_are_left_out_of_the_mean() -> None:
    class Plain(Classifier):
        def __init__(self) -> None:
            super().__init__(lambda: Dead(always=False))

    class Oracle(Plain):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            alive = x.sum((1, 2, 3)) > 0
            assert bool((~alive).any())
            return WEIGHT * saliency_term(self.model, fx[alive], x[alive]) if bool(alive.any()) else 0.0

    by_maps(Plain, Oracle)


def test_a_network_whose_output_is_no_row_of_classes_is_refused() -> None:
    class Dense(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)[:, :, None]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0])[:, :, 0], batch[1])

    with pytest.raises(ValueError, match=r"logits of shape \(B, classes\) for penalty='saliency'"):
        fit(Dense, regularizer())


# Actions that are checked ----------------------------------------------------------------------------------------


def turned(k: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.rot90(x, k, (-2, -1))


def right() -> FunctionAction:
    return FunctionAction([(turned(1), turned(-1)), (turned(2), turned(2))], labels=["quarter", "half"], exact=True)


def wrong() -> FunctionAction:
    """The second element's inverse goes on the same way."""
    return FunctionAction([(turned(2), turned(2)), (turned(1), turned(1))], labels=["half", "quarter"])


def blurred(x: Tensor) -> Tensor:
    """Loses a little of the detail."""
    return 0.9 * x + 0.1 * x.mean((-2, -1), keepdim=True)


def lossy() -> FunctionAction:
    return FunctionAction([(lambda x: turned(1)(blurred(x)), turned(-1))], labels=["blurred quarter"])


REFUSAL = r"xpected the inverse of 'quarter' in FunctionAction.* to undo it"


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (lambda: InvarianceRegularizer(wrong(), WEIGHT), "fit"),
        (lambda: InvarianceRegularizer(wrong(), WEIGHT, "saliency"), "fit"),
        (lambda: InvarianceMonitor(wrong(), saliency_samples=0), "fit"),
        (lambda: InvarianceMonitor(wrong(), saliency_samples=0), "test"),
    ],
)
def test_a_wrong_inverse_is_refused_in_the_first_step_or_batch(make: Callable[[], Callback], method: str) -> None:
    module = made(Classifier)
    trainer = trainer_for([make()])
    data = (loader(), loader(8, seed=2)) if method == "fit" else (loader(8, seed=2),)
    with pytest.raises(ValueError, match=REFUSAL):
        getattr(trainer, method)(module, *data)
    assert trainer.global_step == 0
    assert distance(module, made(Classifier)) == 0.0
    assert not SHADOWED & set(module.__dict__)


def test_evaluation_refuses_a_wrong_inverse_and_training_an_element_that_changes_the_precision() -> None:
    with pytest.raises(ValueError, match=REFUSAL):
        evaluate_invariance(made(mlp), [Images(4).tensors[0]], wrong(), progress=False)
    reshaping = FunctionAction([(lambda x: x.double(), lambda x: x.float())], labels=["other precision"])
    with pytest.raises(ValueError, match=r"xpected element 'other precision' in FunctionAction.* to keep"):
        fit(Classifier, [InvarianceRegularizer(reshaping)])


@pytest.mark.parametrize(("make", "penalty"), [(right, "logit"), (lossy, "saliency")])
def test_good_actions_train_and_measure(make: Callable[[], FunctionAction], penalty: Any) -> None:
    monitor = InvarianceMonitor(make(), saliency=Gradient())
    callbacks = [InvarianceRegularizer(make(), WEIGHT, penalty), monitor]
    module = fit(Classifier, callbacks, val=loader(8, seed=2))
    assert distance(module, fit(Classifier)) > 1e-3
    measured = evaluate_invariance(module.model, loader(8, seed=2), make(), saliency=Gradient(), progress=False)
    for name, estimate in measured.items():
        torch.testing.assert_close(estimate.value, monitor.history[-1].measures[name].value)


def test_an_action_of_functions_is_the_group_that_it_writes_out() -> None:
    """Rotations by hand, with the maps brought back by the inverses given."""
    by_maps(Classifier, action=FunctionAction([(turned(k), turned(-k)) for k in (1, 2, 3)], exact=True))


def symmetric() -> dict[str, Tensor]:
    """Images that say nothing about an action: its elements hardly change them."""
    side = torch.linspace(-1, 1, 16).square()
    from_centre = side[:, None] + side
    images = {
        "blank": torch.zeros(16, 16),
        "grey": torch.full((16, 16), 0.5),
        "disc": (from_centre < 0.5).float(),
        "ring": torch.exp(-10 * (from_centre - 0.4).square()),
    }
    return {name: image.expand(2, 1, 16, 16) for name, image in images.items()}


@pytest.mark.parametrize("images", symmetric().values(), ids=symmetric())
def test_symmetric_images_show_neither_a_good_inverse_as_wrong_nor_a_wrong_one_as_good(images: Tensor) -> None:
    lossy().verify(images)
    right().verify(images)
    with pytest.raises(ValueError, match=REFUSAL):
        wrong().verify(images)


def test_an_action_that_suits_smooth_images_alone_passes_on_them() -> None:
    def in_blocks(x: Tensor) -> Tensor:
        """Loses nearly all of the detail that noise has, and little of what a smooth image has."""
        return F.avg_pool2d(x, 8).repeat_interleave(8, -2).repeat_interleave(8, -1)

    slope = torch.linspace(0, 1, 32).expand(4, 1, 32, 32)
    FunctionAction([(lambda x: in_blocks(x).flip(-1), lambda x: x.flip(-1))]).verify(slope)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 1, 4, 4), torch.float32),
        ((1, 1, 4, 4), torch.bfloat16),
        ((4, 1, 4, 4), torch.float64),
        ((2, 3, 8, 8), torch.float16),
    ],
    ids=str,
)
def test_a_wrong_inverse_is_found_whatever_the_batch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of a few numbers, half of the batches are brought nearer by any permutation."""
    before = torch.get_rng_state()
    for seed in range(10):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        with pytest.raises(ValueError, match=REFUSAL):
            wrong().verify(x)
        right().verify(x)
        lossy().verify(x)
    assert torch.equal(torch.get_rng_state(), before)
