"""Weight space: how a group acts on the weights of an ordinary network, and the projection on those that it fixes.

It knows torch alone. A new operation gets a rule with `register_rule`.
"""

from lightning_invariance.symmetry._rules import register_rule as register_rule
from lightning_invariance.symmetry._weights import Break as Break
from lightning_invariance.symmetry._weights import WeightReport as WeightReport
from lightning_invariance.symmetry._weights import WeightSymmetry as WeightSymmetry
from lightning_invariance.symmetry._weights import size_in_the_way as size_in_the_way
from lightning_invariance.symmetry._weights import symmetrize as symmetrize
