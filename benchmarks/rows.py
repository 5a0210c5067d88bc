"""The table's rows, in order: a new one is a function from a `Setting` to a `Pair`, and is listed here."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from math import isnan
from typing import Any

import torch

from benchmarks import actions, layers, maps, measures, sensitivity, training
from benchmarks.pairs import Pair, Setting, measure

ROWS: dict[str, Callable[[Setting], Pair]] = {
    "step": training.all_elements,
    "step_one_element": training.one_element,
    "lie_step": training.lie_derivative,
    "invariant_weights": training.invariant_weights,
    "pooled": training.pooled,
    "escnn_channels": training.steerable_channels,
    "augmentation": actions.augmentation,
    "orbit": actions.orbit,
    "measures": measures.collection,
    "per_class": measures.per_class,
    "monitor": measures.monitored_epoch,
    "monitor_default": measures.default_monitor,
    "integrated_gradients": maps.integrated_gradients,
    "output_invariance": measures.output_invariance,
    "output_invariance_perceptron": measures.output_invariance_of_a_perceptron,
    "variance_within_orbits": measures.variance_within_orbits,
    "equivariance": maps.equivariance,
    "escnn": training.against_steerable,
    "jacobian_convolutional": sensitivity.few_outputs_convolutional,
    "jacobian_perceptron": sensitivity.few_outputs_perceptron,
    "jacobian_separately": sensitivity.few_outputs_separately,
    "jacobian_many_outputs": sensitivity.many_outputs,
    "lie_derivative": sensitivity.lie_derivative,
    "layers": layers.residual_layers,
}


def prepare() -> None:
    """One thread, exact products, and no talk."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)  # a second one would be another's noise
    torch.backends.cudnn.allow_tf32 = False  # values are compared


def run(name: str, setting: Setting, rounds: int) -> dict[str, Any]:
    """Everything that was measured of a row; times in seconds."""
    try:
        result = measure(ROWS[name](setting), rounds)
    except ModuleNotFoundError as error:
        return {"missing": error.name or str(error)}
    pair = result.pair
    return {
        "name": pair.name,
        "against": pair.against,
        "ratio": result.ratio,
        "ratios": result.ratios,
        "at_most": pair.at_most,
        "reached": result.reached,
        "ours": result.ours,
        "theirs": result.theirs,
        "difference": None if isnan(result.difference) else result.difference,
        "agrees": result.agrees,
    }
