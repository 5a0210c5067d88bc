"""What a check found, in words and numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lightning_invariance.actions import Action

FindingName = Literal[
    "finite_outputs",
    "noise_floor",
    "precision",
    "modes",
    "repeats",
    "samples",
    "unmoved_inputs",
    "output_action",
    "changed_labels",
    "sizes",
    "layers",
    "ties",
    "constant_output",
    "collapsed_logits",
    "saturated_softmax",
    "common_part",
    "single_output",
]

#: "fine": as it should be. "note": to be known when numbers are read. "problem": numbers mean something else.
Severity = Literal["fine", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: the check.
        severity: ``"fine"``, ``"note"`` (to be known when numbers are read) or ``"problem"`` (numbers mean something
            else than they say).
        said: what was found, a sentence.
        remedy: what to do about it, a sentence; empty where there is nothing to do.
        measured: the numbers that decided, by name.
    """

    name: FindingName
    severity: Severity
    said: str
    remedy: str
    measured: Mapping[str, float]

    def __str__(self) -> str:
        lines = textwrap.wrap(f"{self.said} {self.remedy}".strip(), 100)
        return "\n".join([f"{self.severity:8}{self.name}", *(f"        {line}" for line in lines)])


@dataclass(frozen=True)
class SetupReport:
    """What `check_setup` found; as a string, in words, problems first.

    Attributes:
        findings: one for each check that applies, in the order of the checks.
        action: the group, with the elements that were used.
        samples: how many samples were used.
        skipped: checks that do not apply or could not be made, and why.
    """

    findings: tuple[Finding, ...]
    action: Action
    samples: int
    skipped: Mapping[FindingName, str]

    @property
    def ok(self) -> bool:
        """Whether no check found a problem."""
        return all(finding.severity != "problem" for finding in self.findings)

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that are problems."""
        return tuple(finding for finding in self.findings if finding.severity == "problem")

    def __getitem__(self, name: str) -> Finding:
        """The finding of a check.

        Raises:
            KeyError: if there is none of that name; the message says why.
        """
        for finding in self.findings:
            if finding.name == name:
                return finding
        why = {str(each): reason for each, reason in self.skipped.items()}.get(name)
        raise KeyError(f"{name}: {why}" if why else f"{name} is no check; there are {[f.name for f in self.findings]}")

    def __contains__(self, name: object) -> bool:
        return any(finding.name == name for finding in self.findings)

    def __str__(self) -> str:
        order: tuple[Severity, ...] = ("problem", "note", "fine")
        counts = ", ".join(f"{sum(each.severity == one for each in self.findings)} {one}" for one in order)
        parts = [f"{self.action!r} on {self.samples} samples: {counts}"]
        parts += [str(each) for one in order for each in self.findings if each.severity == one]
        parts += [f"{'skipped':8}{name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(parts)
