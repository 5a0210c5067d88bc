"""The table's rows, in order: a new one is a function from a `Setting` to a `Pair`, and is listed here."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import actions, maps, measures, sensitivity, training
from benchmarks.pairs import Pair, Setting

ROWS: dict[str, Callable[[Setting], Pair]] = {
    "step": training.all_elements,
    "step_one_element": training.one_element,
    "augmentation": actions.augmentation,
    "orbit": actions.orbit,
    "measures": measures.collection,
    "monitor": measures.monitored_epoch,
    "integrated_gradients": maps.integrated_gradients,
    "output_invariance": measures.output_invariance,
    "variance_within_orbits": measures.variance_within_orbits,
    "equivariance": maps.equivariance,
    "escnn": training.against_steerable,
    "jacobian_convolutional": sensitivity.few_outputs_convolutional,
    "jacobian_perceptron": sensitivity.few_outputs_perceptron,
    "jacobian_separately": sensitivity.few_outputs_separately,
    "jacobian_many_outputs": sensitivity.many_outputs,
}
