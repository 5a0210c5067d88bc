"""Measures by name, what they read, and `evaluate_invariance`, which runs them on a data set.

A measure of your own is a torchmetrics metric whose ``update`` names what it reads. `register_measure` gives it a name
that everything knows; `register_source` adds something to read.
"""

from lightning_invariance.evaluation._evaluate import evaluate_invariance as evaluate_invariance
from lightning_invariance.evaluation._group import InvarianceResults as InvarianceResults
from lightning_invariance.evaluation._keep import KeptSamples as KeptSamples
from lightning_invariance.evaluation._layers import LayerResults as LayerResults
from lightning_invariance.evaluation._layers import LayerRow as LayerRow
from lightning_invariance.evaluation._layers import evaluate_layers as evaluate_layers
from lightning_invariance.evaluation._measures import MEASURES as MEASURES
from lightning_invariance.evaluation._measures import Measure as Measure
from lightning_invariance.evaluation._measures import register_measure as register_measure
from lightning_invariance.evaluation._sources import Samples as Samples
from lightning_invariance.evaluation._sources import Source as Source
from lightning_invariance.evaluation._sources import register_source as register_source
