"""An audit as JSON, and the schema that it follows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_invariance.auditing._findings import SetupReport
from lightning_invariance.auditing._group_audit import GroupAudit
from lightning_invariance.evaluation import KeptSamples, LayerResults, LayerRow
from lightning_invariance.metrics import Estimate
from lightning_invariance.metrics._base import SampleCounts

if TYPE_CHECKING:
    from lightning_invariance.auditing._result import Audit

#: Raised where those who read it have to change; what is added does not raise it.
SCHEMA_VERSION = 1

_NUMBER = {"type": ["number", "null"]}
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(items)}


def _map(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": dict(values)}


def _record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _or_null(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"type": "null"}, dict(record)]}


_ESTIMATE = _record(value=_NUMBER, standard_error=_NUMBER)
_MEASURE = _record(
    value=_NUMBER,
    standard_error=_NUMBER,
    samples=_or_null(_COUNT),
    not_finite=_or_null(_COUNT),
    undefined=_or_null(_COUNT),
)
_ESTIMATES = _record(value=_list(_NUMBER), standard_error=_list(_NUMBER))
_LAYER = _record(
    name=_TEXT,
    kind=_TEXT,
    depth=_NUMBER,
    shape=_list(_COUNT),
    invariance=_ESTIMATE,
    equivariance=_ESTIMATE,
    permuted=_ESTIMATE,
    error=_ESTIMATE,
    floor=_NUMBER,
    note=_TEXT,
)
_FINDING = _record(
    name=_TEXT,
    severity={"enum": ["fine", "note", "problem"]},
    said=_TEXT,
    remedy=_TEXT,
    measured=_map(_NUMBER),
)
_GROUP = _record(
    name=_TEXT,
    action=_TEXT,
    elements=_list(_TEXT),
    samples=_COUNT,
    found=_map(_TEXT),
    measures=_map(_MEASURE),
    by_element=_map(_ESTIMATES),
    motion=_or_null(_record(name=_TEXT, unit=_TEXT, values=_list(_NUMBER))),
    per_class=_or_null(_record(classes=_list(_TEXT), measures=_map(_ESTIMATES))),
    setup=_or_null(_record(ok={"type": "boolean"}, samples=_COUNT, findings=_list(_FINDING), skipped=_map(_TEXT))),
    layers=_or_null(
        _record(
            samples=_COUNT,
            breaks_at={"type": ["string", "null"]},
            said=_TEXT,
            rows=_list(_LAYER),
            between=_list(_LAYER),
        )
    ),
    worst=_or_null(
        _record(
            index=_list({"type": "integer"}),
            element=_list(_TEXT),
            error=_list(_NUMBER),
            target=_or_null(_list({"type": "integer"})),
        )
    ),
    left_out=_map(_TEXT),
)

SCHEMA: Mapping[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Audit of a network by lightning-invariance",
    **_record(
        schema_version={"const": SCHEMA_VERSION},
        network=_record(name=_TEXT, parameters=_COUNT, weights=_TEXT),
        data=_record(source=_TEXT, samples=_COUNT, looked_at=_COUNT),
        complete={"type": "boolean"},
        stopped=_TEXT,
        passed={"type": "boolean"},
        conditions=_list(_record(text=_TEXT, group=_TEXT, values=_map(_NUMBER), passed={"type": "boolean"}, why=_TEXT)),
        groups=_list(_GROUP),
    ),
}
"""What `Audit.to_json` gives, as JSON Schema (draft 2020-12)."""


def json_of(audit: Audit) -> str:
    """The audit as JSON; numbers that are not finite are null."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "network": {"name": audit.network, "parameters": audit.parameters, "weights": audit.weights},
        "data": {"source": audit.data, "samples": audit.samples, "looked_at": audit.looked_at},
        "complete": audit.complete,
        "stopped": audit.stopped,
        "passed": audit.passed,
        "conditions": [
            {
                "text": each.text,
                "group": each.group,
                "values": _numbers(each.values),
                "passed": each.passed,
                "why": each.why,
            }
            for each in audit.conditions
        ],
        "groups": [_group(group) for group in audit.groups.values()],
    }
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _group(group: GroupAudit) -> dict[str, Any]:
    motion = group.motion
    return {
        "name": group.name,
        "action": repr(group.action),
        "elements": list(group.action.labels),
        "samples": group.samples,
        "found": dict(group.found),
        "measures": {name: _estimate(each) | _counts(group.counts.get(name)) for name, each in group.measures.items()},
        "by_element": {name: _estimate(each) for name, each in group.by_element.items()},
        "motion": None
        if motion is None
        else {"name": motion.name, "unit": motion.unit, "values": [_number(value) for value in motion.values]},
        "per_class": None
        if not group.per_class
        else {
            "classes": list(group.classes),
            "measures": {name: _estimate(each) for name, each in group.per_class.items() if each.value.ndim == 1},
        },
        "setup": None if group.setup is None else _setup(group.setup),
        "layers": None if group.layers is None else _layers(group.layers),
        "worst": None if group.worst is None else _worst(group.worst),
        "left_out": dict(group.left_out),
    }


def _setup(setup: SetupReport) -> dict[str, Any]:
    return {
        "ok": setup.ok,
        "samples": setup.samples,
        "findings": [
            {
                "name": each.name,
                "severity": each.severity,
                "said": each.said,
                "remedy": each.remedy,
                "measured": _numbers(each.measured),
            }
            for each in setup.findings
        ],
        "skipped": dict(setup.skipped),
    }


def _layers(layers: LayerResults) -> dict[str, Any]:
    return {
        "samples": layers.samples,
        "breaks_at": layers.breaks_at,
        "said": layers.in_words(),
        "rows": [_layer(row) for row in layers.rows],
        "between": [_layer(row) for row in layers.between],
    }


def _layer(row: LayerRow) -> dict[str, Any]:
    shares = {name: _estimate(getattr(row, name)) for name in ("invariance", "equivariance", "permuted", "error")}
    return {
        "name": row.label,
        "kind": row.kind,
        "depth": _number(row.depth),
        "shape": list(row.shape),
        **shares,
        "floor": _number(row.floor),
        "note": row.note,
    }


def _worst(worst: KeptSamples) -> dict[str, Any]:
    target = worst.target
    return {
        "index": worst.index.tolist(),
        "element": list(worst.labels),
        "error": [_number(error) for error in worst.errors.tolist()],
        "target": None if target is None or target.ndim != 1 else target.tolist(),
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {"value": _values(estimate.value), "standard_error": _values(estimate.standard_error)}


def _counts(counts: SampleCounts | None) -> dict[str, int | None]:
    """How many samples a measure rests on, and how many it left out; null where it does not know."""
    measured, not_finite, undefined = (None, None, None) if counts is None else counts
    return {"samples": measured, "not_finite": not_finite, "undefined": undefined}


def _values(values: Tensor) -> Any:
    numbers = values.detach().double().cpu()
    return _number(float(numbers)) if not numbers.ndim else [_number(value) for value in numbers.flatten().tolist()]


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | None:
    return float(value) if isfinite(value) else None
