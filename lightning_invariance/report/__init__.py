"""Tables and figures from results."""

from lightning_invariance.report._figures import plot_bars as plot_bars
from lightning_invariance.report._figures import plot_curves as plot_curves
from lightning_invariance.report._figures import plot_saliency_orbit as plot_saliency_orbit
from lightning_invariance.report._layers import layer_table as layer_table
from lightning_invariance.report._layers import plot_layers as plot_layers
from lightning_invariance.report._numbers import value_with_error as value_with_error
from lightning_invariance.report._numbers import zeros_note as zeros_note
from lightning_invariance.report._per_class import per_class_table as per_class_table
from lightning_invariance.report._per_class import plot_per_class as plot_per_class
from lightning_invariance.report._table import markdown_table as markdown_table
from lightning_invariance.report._worst import plot_worst as plot_worst
