"""Whether a measurement can be trusted: `check_setup`, and what it finds."""

from lightning_invariance.auditing._check_setup import check_setup as check_setup
from lightning_invariance.auditing._findings import Finding as Finding
from lightning_invariance.auditing._findings import SetupReport as SetupReport
