"""The measures as `torchmetrics.Metric` classes."""

from lightning_invariance.metrics._accuracy import BaseAccuracy as BaseAccuracy
from lightning_invariance.metrics._base import Estimate as Estimate
from lightning_invariance.metrics._distribution_invariance_error import (
    DistributionInvarianceError as DistributionInvarianceError,
)
from lightning_invariance.metrics._jacobian_spectral_norm import JacobianSpectralNorm as JacobianSpectralNorm
from lightning_invariance.metrics._jensen_shannon_invariance_error import (
    JensenShannonInvarianceError as JensenShannonInvarianceError,
)
from lightning_invariance.metrics._lie_derivative_error import LieDerivativeError as LieDerivativeError
from lightning_invariance.metrics._logit_invariance_error import LogitInvarianceError as LogitInvarianceError
from lightning_invariance.metrics._loss_share import LossShare as LossShare
from lightning_invariance.metrics._orbit_accuracy import OrbitAccuracy as OrbitAccuracy
from lightning_invariance.metrics._orbit_mean_iou import OrbitMeanIoU as OrbitMeanIoU
from lightning_invariance.metrics._orbit_share import OrbitShare as OrbitShare
from lightning_invariance.metrics._per_class import PerClass as PerClass
from lightning_invariance.metrics._prediction_consistency import PredictionConsistency as PredictionConsistency
from lightning_invariance.metrics._relative_equivariance_error import (
    RelativeEquivarianceError as RelativeEquivarianceError,
)
from lightning_invariance.metrics._relative_logit_invariance_error import (
    RelativeLogitInvarianceError as RelativeLogitInvarianceError,
)
from lightning_invariance.metrics._saliency_invariance_similarity import (
    SaliencyInvarianceSimilarity as SaliencyInvarianceSimilarity,
)
from lightning_invariance.metrics._selectivity import Selectivity as Selectivity
from lightning_invariance.metrics._vector_cosine_similarity import VectorCosineSimilarity as VectorCosineSimilarity
