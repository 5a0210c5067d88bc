"""Callbacks for a Lightning Trainer: augmentation, regularizer, monitor."""

from lightning_invariance.callbacks._augmentation import OrbitAugmentation as OrbitAugmentation
from lightning_invariance.callbacks._monitor import InvarianceMonitor as InvarianceMonitor
from lightning_invariance.callbacks._monitor import MonitorRecord as MonitorRecord
from lightning_invariance.callbacks._regularizer import InvarianceRegularizer as InvarianceRegularizer
from lightning_invariance.callbacks._schedule import WeightRamp as WeightRamp
