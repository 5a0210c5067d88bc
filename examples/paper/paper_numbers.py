"""What the paper reports: Table 1 and figure 4 (read off the plot) and figure 5, of Transforming-MNIST."""

from __future__ import annotations

NAN = float("nan")
LI, DI, SI = "logit_invariance_error", "distribution_invariance_error", "saliency_invariance_similarity"
COLUMNS = ("accuracy", LI, DI, SI)
#: (mean, standard deviation over 4 seeds) for each of `COLUMNS`; accuracy as a fraction. NaN where none is given.
TABLE_1 = {
    "R4": {
        "WT": ((0.946, 0.001), (0.0, NAN), (0.0, NAN), (1.0, NAN)),
        "DA": ((0.940, 0.005), (98.6, 5.4), (0.3, 0.1), (0.17, 0.04)),
        "IR": ((0.879, 0.008), (0.02, NAN), (0.0, NAN), (0.95, 0.03)),
    },
    "T3": {
        "WT": ((0.966, 0.001), (0.0, NAN), (0.0, NAN), (1.0, NAN)),
        "DA": ((0.962, 0.002), (50.8, 6.8), (0.1, NAN), (0.57, 0.08)),
        "IR": ((0.931, 0.001), (0.01, NAN), (0.0, NAN), (0.95, 0.07)),
    },
}
#: Accuracy at ten β over accuracy at β = 0.
FIGURE_4_RATIO = {
    "R4": {
        "WT": (1, 0.95, 0.77, 0.58, 0.43, 0.32, 0.24, 0.20, 0.18, 0.16),
        "DA": (1, 0.85, 0.59, 0.42, 0.31, 0.25, 0.21, 0.18, 0.17, 0.16),
        "IR": (1, 0.75, 0.52, 0.35, 0.26, 0.21, 0.18, 0.17, 0.16, 0.16),
    },
    "T3": {
        "WT": (1, 0.98, 0.83, 0.68, 0.55, 0.44, 0.36, 0.30, 0.25, 0.21),
        "DA": (1, 0.94, 0.76, 0.60, 0.49, 0.40, 0.32, 0.27, 0.22, 0.19),
        "IR": (1, 0.96, 0.80, 0.66, 0.54, 0.45, 0.37, 0.32, 0.28, 0.25),
    },
}
FIGURE_4_DI = {
    "R4": {"DA": (0.02, 0.55, 1.2, 1.8, 2.3, 2.8, 3.3, 3.8, 4.2, 4.7)},
    "T3": {"DA": (0.01, 0.12, 0.41, 0.63, 0.92, 1.2, 1.5, 1.7, 1.9, 2.0)},
}
#: Largest singular value of the Jacobian, accuracy.
FIGURE_5 = {
    "R4": {"DA": (10.3, 0.940), "IR KL": (5.1, 0.830), "IR normalised L2": (5.0, 0.730), "IR": (2.9, 0.879)},
    "T3": {"DA": (10.0, 0.962), "IR KL": (1.9, 0.916), "IR normalised L2": (4.3, 0.827), "IR": (0.63, 0.931)},
}
