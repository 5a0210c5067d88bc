"""Callbacks for a Lightning Trainer: augmentation, regularizer, invariant weights, monitors."""

from lightning_invariance.callbacks._augmentation import OrbitAugmentation as OrbitAugmentation
from lightning_invariance.callbacks._epochs import MonitorRecord as MonitorRecord
from lightning_invariance.callbacks._invariant_weights import InvariantWeights as InvariantWeights
from lightning_invariance.callbacks._layers import LayerMonitor as LayerMonitor
from lightning_invariance.callbacks._monitor import InvarianceMonitor as InvarianceMonitor
from lightning_invariance.callbacks._penalties import Penalty as Penalty
from lightning_invariance.callbacks._regularizer import InvarianceRegularizer as InvarianceRegularizer
from lightning_invariance.callbacks._schedule import WeightRamp as WeightRamp
from lightning_invariance.callbacks._sensitivity import SensitivityMonitor as SensitivityMonitor
from lightning_invariance.callbacks._weight_search import WeightSearch as WeightSearch
from lightning_invariance.callbacks._weight_search import WeightTrial as WeightTrial
from lightning_invariance.callbacks._weight_search import search_weight as search_weight
