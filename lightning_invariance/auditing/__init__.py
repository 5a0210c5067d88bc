"""Whether a measurement can be trusted, `check_setup`, and all that is found of a network on one page, `audit`."""

from lightning_invariance.auditing._audit import audit as audit
from lightning_invariance.auditing._check_setup import check_setup as check_setup
from lightning_invariance.auditing._conditions import Condition as Condition
from lightning_invariance.auditing._findings import Finding as Finding
from lightning_invariance.auditing._findings import SetupReport as SetupReport
from lightning_invariance.auditing._group_audit import GroupAudit as GroupAudit
from lightning_invariance.auditing._json import SCHEMA as SCHEMA
from lightning_invariance.auditing._result import Audit as Audit
