"""What an audit found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_invariance._requirements import require
from lightning_invariance.auditing._conditions import Condition
from lightning_invariance.auditing._group_audit import GroupAudit

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Audit:
    """What `audit` found; `save` writes it as a page or as JSON.

    Attributes:
        network: the network's class.
        parameters: how many parameters it has.
        data: where the batches came from, in words.
        samples: how many samples were measured.
        looked_at: how many of them, the first, were to be looked at closer: saliency maps, layers, setup.
        groups: what was found of each group, by name.
        conditions: what was asked, once for each group that it was asked of.
        stopped: why it is not complete, in a sentence; nothing where it is.
        weights: which weights were audited, in words; of the command, the file with its SHA-256, or "as constructed".
    """

    network: str
    parameters: int
    data: str
    samples: int
    looked_at: int
    groups: Mapping[str, GroupAudit]
    conditions: tuple[Condition, ...] = ()
    stopped: str = ""
    weights: str = "as they were given"

    @property
    def complete(self) -> bool:
        """Whether all was done."""
        return not self.stopped

    @property
    def passed(self) -> bool:
        """Whether it is complete and all conditions hold; True where there are none."""
        return self.complete and all(condition.passed for condition in self.conditions)

    def to_html(self) -> str:
        """One page with pictures, which needs nothing from elsewhere.

        Pictures need matplotlib; without it the page says so, and has none.
        """
        from lightning_invariance.auditing._page import page_of

        return page_of(self)

    def to_json(self) -> str:
        """All numbers and findings, as `lightning_invariance.auditing.SCHEMA` describes it.

        What is undefined, or not finite, is null. ``"schema_version"`` is raised where readers have to change.
        """
        from lightning_invariance.auditing._json import json_of

        return json_of(self)

    def to_dataframe(self) -> DataFrame:
        """A row for each measure of each group: ``group``, ``measure``, ``value``, ``standard_error``.

        Raises:
            ModuleNotFoundError: if pandas is not installed (``pip install pandas``).
        """
        rows: list[dict[str, Any]] = [
            {
                "group": group.name,
                "measure": name,
                "value": float(estimate.value),
                "standard_error": float(estimate.standard_error),
            }
            for group in self.groups.values()
            for name, estimate in group.measures.items()
            if estimate.value.numel() == 1
        ]
        frame: DataFrame = require("pandas", "A DataFrame").DataFrame(
            rows, columns=["group", "measure", "value", "standard_error"]
        )
        return frame

    def save(self, path: str | PathLike[str]) -> Path:
        """Writes the page, or the JSON.

        Args:
            path: a file whose name ends in ``.html`` or ``.json``; one that is there is written over.

        Returns:
            The path.

        Raises:
            ValueError: if the name ends otherwise.
        """
        if not isinstance(path, (str, PathLike)) or Path(fspath(path)).suffix not in (".html", ".json"):
            raise ValueError(f"Expected `path` to end in .html or .json but got {path!r}.")
        place = Path(fspath(path))
        place.write_text(self.to_html() if place.suffix == ".html" else self.to_json(), encoding="utf-8")
        return place

    def _repr_html_(self) -> str:
        """The verdict and the table of groups, for notebooks."""
        from lightning_invariance.auditing._page import overview_of
        from lightning_invariance.report.html import table_html

        return table_html(replace(overview_of(self), caption=f"{self.network}: {verdict_of(self)}"))

    def __str__(self) -> str:
        lines = [f"{self.network} (weights: {self.weights}) on {self.samples} samples: {verdict_of(self)}"]
        lines += [f"{'pass' if each.passed else 'FAIL'}  {each}" for each in self.conditions]
        return "\n".join(lines)


def verdict_of(audit: Audit) -> str:
    """Whether the conditions hold, a sentence."""
    held, count = sum(each.passed for each in audit.conditions), len(audit.conditions)
    incomplete = f"The audit is incomplete. {audit.stopped} " if audit.stopped else ""
    if not count:
        return f"{incomplete}No conditions were asked for."
    if count == 1:
        return f"{incomplete}The condition {'holds' if held else 'does not hold'}."
    if held == count:
        return f"{incomplete}All {count} conditions hold."
    return f"{incomplete}{count - held} of {count} conditions {'does' if count - held == 1 else 'do'} not hold."
