"""Networks that are invariant by construction, to compare against."""

from lightning_invariance.baselines._escnn_action import action_of as action_of
from lightning_invariance.baselines._orbit_pooled import OrbitPooled as OrbitPooled
from lightning_invariance.baselines._steerable_classifier import SteerableClassifier as SteerableClassifier
from lightning_invariance.baselines._tied_first_layer_mlp import TiedFirstLayerMLP as TiedFirstLayerMLP
