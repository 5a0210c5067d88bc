"""A segmentation's monitor in a Trainer of two processes."""

from __future__ import annotations

from pathlib import Path

import equivariance_worker
import pytest
import torch
from processes import Launch

JACKKNIFED = "relative_logit_invariance_error", "orbit_share"  # folds are dealt out anew


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed support")
def test_two_processes_measure_what_one_measures(tmp_path: Path) -> None:
    expected = equivariance_worker.measured(processes=1)
    assert {"mask/orbit_accuracy", "mask/orbit_mean_iou", "level/logit_invariance_error"} <= set(expected)
    for found in Launch(equivariance_worker.__file__, tmp_path).results("measured"):
        assert list(found) == list(expected)
        for name, (value, error) in expected.items():
            assert found[name][0] == pytest.approx(value, rel=1e-5, abs=1e-7), name
            if not name.endswith(JACKKNIFED):
                assert found[name][1] == pytest.approx(error, rel=1e-4, abs=1e-7, nan_ok=True), name
