"""The measures as functions of tensors; the classes of the same names accumulate them over batches."""

from lightning_invariance.functional._distribution_invariance_error import (
    distribution_invariance_error as distribution_invariance_error,
)
from lightning_invariance.functional._jensen_shannon_invariance_error import (
    jensen_shannon_invariance_error as jensen_shannon_invariance_error,
)
from lightning_invariance.functional._lie_derivative_error import lie_derivative_error as lie_derivative_error
from lightning_invariance.functional._logit_invariance_error import logit_invariance_error as logit_invariance_error
from lightning_invariance.functional._loss_share import loss_share as loss_share
from lightning_invariance.functional._orbit_accuracy import orbit_accuracy as orbit_accuracy
from lightning_invariance.functional._orbit_mean_iou import orbit_mean_iou as orbit_mean_iou
from lightning_invariance.functional._orbit_share import orbit_share as orbit_share
from lightning_invariance.functional._prediction_consistency import prediction_consistency as prediction_consistency
from lightning_invariance.functional._relative_equivariance_error import (
    relative_equivariance_error as relative_equivariance_error,
)
from lightning_invariance.functional._relative_logit_invariance_error import (
    relative_logit_invariance_error as relative_logit_invariance_error,
)
from lightning_invariance.functional._saliency_invariance_similarity import (
    saliency_invariance_similarity as saliency_invariance_similarity,
)
from lightning_invariance.functional._selectivity import selectivity as selectivity
from lightning_invariance.functional._vector_cosine_similarity import (
    vector_cosine_similarity as vector_cosine_similarity,
)
