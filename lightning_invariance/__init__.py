"""Measure, and bring about, genuine invariance to a group of transformations with PyTorch Lightning; equivariance too.

Rooms, in the order that data goes through them: `actions` (groups acting on tensors, and continuous ones by their
generators), `evaluate_orbit`, saliency maps, Lie derivatives, layers, `functional` (measures as functions), metrics
(measures over many batches), `evaluation` (measures by name, and layers, on a data set), `report` (tables and figures),
callbacks (for a Trainer), `auditing` (whether a number can be trusted; `audit`, several groups on one page), `compare`
(several models side by side); `symmetry` is weight space, and `baselines` has networks that are invariant by
construction.
"""

from lightning_invariance import functional as functional
from lightning_invariance.actions import C4 as C4
from lightning_invariance.actions import D4 as D4
from lightning_invariance.actions import O3 as O3
from lightning_invariance.actions import SO2 as SO2
from lightning_invariance.actions import SO3 as SO3
from lightning_invariance.actions import Action as Action
from lightning_invariance.actions import AffineAction as AffineAction
from lightning_invariance.actions import BrightnessFlow as BrightnessFlow
from lightning_invariance.actions import ContrastFlow as ContrastFlow
from lightning_invariance.actions import CyclicTranslations as CyclicTranslations
from lightning_invariance.actions import FieldAction as FieldAction
from lightning_invariance.actions import Flow as Flow
from lightning_invariance.actions import FunctionAction as FunctionAction
from lightning_invariance.actions import FunctionFlow as FunctionFlow
from lightning_invariance.actions import HorizontalFlip as HorizontalFlip
from lightning_invariance.actions import LinearAction as LinearAction
from lightning_invariance.actions import PermutationAction as PermutationAction
from lightning_invariance.actions import PointRotationFlow as PointRotationFlow
from lightning_invariance.actions import PointTranslationFlow as PointTranslationFlow
from lightning_invariance.actions import ProductAction as ProductAction
from lightning_invariance.actions import RotationFlow as RotationFlow
from lightning_invariance.actions import Rotations as Rotations
from lightning_invariance.actions import ScalingFlow as ScalingFlow
from lightning_invariance.actions import ScalingRange as ScalingRange
from lightning_invariance.actions import Scalings as Scalings
from lightning_invariance.actions import SetPermutations as SetPermutations
from lightning_invariance.actions import ShearFlow as ShearFlow
from lightning_invariance.actions import TimeReversal as TimeReversal
from lightning_invariance.actions import TranslationFlow as TranslationFlow
from lightning_invariance.actions import VerticalFlip as VerticalFlip
from lightning_invariance.auditing import Audit as Audit
from lightning_invariance.auditing import Finding as Finding
from lightning_invariance.auditing import SetupReport as SetupReport
from lightning_invariance.auditing import audit as audit
from lightning_invariance.auditing import check_setup as check_setup
from lightning_invariance.callbacks import InvarianceMonitor as InvarianceMonitor
from lightning_invariance.callbacks import InvarianceRegularizer as InvarianceRegularizer
from lightning_invariance.callbacks import InvariantWeights as InvariantWeights
from lightning_invariance.callbacks import LayerMonitor as LayerMonitor
from lightning_invariance.callbacks import MonitorRecord as MonitorRecord
from lightning_invariance.callbacks import OrbitAugmentation as OrbitAugmentation
from lightning_invariance.callbacks import Penalty as Penalty
from lightning_invariance.callbacks import SensitivityMonitor as SensitivityMonitor
from lightning_invariance.callbacks import WeightRamp as WeightRamp
from lightning_invariance.callbacks import search_weight as search_weight
from lightning_invariance.comparison import ComparedModel as ComparedModel
from lightning_invariance.comparison import Comparison as Comparison
from lightning_invariance.comparison import compare as compare
from lightning_invariance.evaluation import evaluate_invariance as evaluate_invariance
from lightning_invariance.evaluation import evaluate_layers as evaluate_layers
from lightning_invariance.lie import evaluate_lie_derivative as evaluate_lie_derivative
from lightning_invariance.metrics import DistributionInvarianceError as DistributionInvarianceError
from lightning_invariance.metrics import Estimate as Estimate
from lightning_invariance.metrics import JacobianSpectralNorm as JacobianSpectralNorm
from lightning_invariance.metrics import JensenShannonInvarianceError as JensenShannonInvarianceError
from lightning_invariance.metrics import LieDerivativeError as LieDerivativeError
from lightning_invariance.metrics import LogitInvarianceError as LogitInvarianceError
from lightning_invariance.metrics import LossShare as LossShare
from lightning_invariance.metrics import OrbitAccuracy as OrbitAccuracy
from lightning_invariance.metrics import OrbitMeanIoU as OrbitMeanIoU
from lightning_invariance.metrics import OrbitShare as OrbitShare
from lightning_invariance.metrics import PerClass as PerClass
from lightning_invariance.metrics import PredictionConsistency as PredictionConsistency
from lightning_invariance.metrics import RelativeEquivarianceError as RelativeEquivarianceError
from lightning_invariance.metrics import RelativeLogitInvarianceError as RelativeLogitInvarianceError
from lightning_invariance.metrics import SaliencyInvarianceSimilarity as SaliencyInvarianceSimilarity
from lightning_invariance.metrics import Selectivity as Selectivity
from lightning_invariance.metrics import VectorCosineSimilarity as VectorCosineSimilarity
from lightning_invariance.orbit import evaluate_orbit as evaluate_orbit
from lightning_invariance.orbit import evaluate_perturbations as evaluate_perturbations
from lightning_invariance.outputs import OrbitOutputs as OrbitOutputs
from lightning_invariance.saliency import Gradient as Gradient
from lightning_invariance.saliency import InputXGradient as InputXGradient
from lightning_invariance.saliency import IntegratedGradients as IntegratedGradients
from lightning_invariance.saliency import PaperSaliency as PaperSaliency
from lightning_invariance.saliency import Saliency as Saliency
from lightning_invariance.sensitivity import jacobian_spectral_norm as jacobian_spectral_norm
from lightning_invariance.sensitivity import layer_spectral_norms as layer_spectral_norms
from lightning_invariance.symmetry import WeightSymmetry as WeightSymmetry
from lightning_invariance.symmetry import symmetrize as symmetrize

__version__ = "0.1.0"
