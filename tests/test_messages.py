"""Where warnings point, and whose name is put before errors."""

from __future__ import annotations

import pytest
import torch
from helpers import loader, trainer_for
from oracles import Classifier
from torch import Tensor, nn

from lightning_invariance import C4, InvarianceMonitor, OrbitShare, evaluate_invariance, functional


def test_a_warning_points_at_the_line_of_the_user() -> None:
    logits = torch.ones(3, 2)
    metric = OrbitShare()
    metric.update(logits, logits[None])
    network = nn.Sequential(nn.Conv2d(1, 2, 1))
    calls = (
        lambda: functional.orbit_share(logits, logits[None]),
        lambda: metric.compute(),
        lambda: metric.compute_with_error(),
        lambda: evaluate_invariance(network, [torch.rand(2, 1, 4, 4)], C4(), progress=False),
    )
    for call in calls:
        with pytest.warns(UserWarning, match=".") as caught:
            call()
        assert {each.filename for each in caught} == {__file__}


class Complaining(Classifier):
    """Has something to say of turned images."""

    def forward(self, x: Tensor) -> Tensor:
        if self.says is not None and len(x) > 4:
            raise ValueError(self.says)
        return super().forward(x)

    says: str | None = None


@pytest.mark.parametrize(
    ("says", "told"),
    [("my own complaint", "^my own complaint$"), ("Expected more", "^InvarianceMonitor: expected more$")],
)
def test_the_callback_is_named_once_in_what_was_expected(says: str, told: str) -> None:
    module = Complaining()
    module.says = says
    with pytest.raises(ValueError, match=told):
        trainer_for([InvarianceMonitor(C4(), max_batch=12)]).validate(module, loader(8), verbose=False)
