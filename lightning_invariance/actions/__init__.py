"""Groups acting on tensors.

Three classes carry all named groups: `PermutationAction` (exact), `AffineAction` (interpolates) and `LinearAction`
(matrices on one dimension). `FunctionAction` takes your own functions; ``*`` makes products, and
`FieldAction` moves points and what is attached to them by the same element. A `Flow` is a continuous group by its
generators, of which nothing is drawn.
"""

from lightning_invariance.actions._affine import SO2 as SO2
from lightning_invariance.actions._affine import AffineAction as AffineAction
from lightning_invariance.actions._affine import Rotations as Rotations
from lightning_invariance.actions._affine import ScalingRange as ScalingRange
from lightning_invariance.actions._affine import Scalings as Scalings
from lightning_invariance.actions._base import Action as Action
from lightning_invariance.actions._field import FieldAction as FieldAction
from lightning_invariance.actions._flow import Flow as Flow
from lightning_invariance.actions._flow import FunctionFlow as FunctionFlow
from lightning_invariance.actions._flow_images import BrightnessFlow as BrightnessFlow
from lightning_invariance.actions._flow_images import ContrastFlow as ContrastFlow
from lightning_invariance.actions._flow_images import RotationFlow as RotationFlow
from lightning_invariance.actions._flow_images import ScalingFlow as ScalingFlow
from lightning_invariance.actions._flow_images import ShearFlow as ShearFlow
from lightning_invariance.actions._flow_images import TranslationFlow as TranslationFlow
from lightning_invariance.actions._flow_points import PointRotationFlow as PointRotationFlow
from lightning_invariance.actions._flow_points import PointTranslationFlow as PointTranslationFlow
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
