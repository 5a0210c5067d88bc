"""Several models side by side: how invariant, how accurate, and what each costs."""

from lightning_invariance.comparison._compare import compare as compare
from lightning_invariance.comparison._comparison import ComparedModel as ComparedModel
from lightning_invariance.comparison._comparison import Comparison as Comparison
