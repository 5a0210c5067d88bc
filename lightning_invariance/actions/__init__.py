"""Groups acting on tensors.

Three classes carry all named groups: `PermutationAction` (exact), `AffineAction` (interpolates) and `LinearAction`
(matrices on one dimension). `FunctionAction` takes your own functions; ``*`` makes products, and
`FieldAction` moves points and what is attached to them by the same element.
"""

from lightning_invariance.actions._affine import SO2 as SO2
from lightning_invariance.actions._affine import AffineAction as AffineAction
from lightning_invariance.actions._affine import Rotations as Rotations
from lightning_invariance.actions._affine import ScalingRange as ScalingRange
from lightning_invariance.actions._affine import Scalings as Scalings
from lightning_invariance.actions._base import Action as Action
from lightning_invariance.actions._field import FieldAction as FieldAction
from lightning_invariance.actions._function import FunctionAction as FunctionAction
from lightning_invariance.actions._lattice import C4 as C4
from lightning_invariance.actions._lattice import D4 as D4
from lightning_invariance.actions._lattice import CyclicTranslations as CyclicTranslations
from lightning_invariance.actions._lattice import HorizontalFlip as HorizontalFlip
from lightning_invariance.actions._lattice import TimeReversal as TimeReversal
from lightning_invariance.actions._lattice import VerticalFlip as VerticalFlip
from lightning_invariance.actions._linear import O3 as O3
from lightning_invariance.actions._linear import SO3 as SO3
from lightning_invariance.actions._linear import LinearAction as LinearAction
from lightning_invariance.actions._permutation import PermutationAction as PermutationAction
from lightning_invariance.actions._product import ProductAction as ProductAction
from lightning_invariance.actions._sets import SetPermutations as SetPermutations
