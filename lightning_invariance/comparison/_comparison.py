"""What a comparison of models found, as a table and a figure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from lightning_invariance._requirements import require
from lightning_invariance.evaluation._measures import MEASURES, Measure, inputs_of
from lightning_invariance.metrics import Estimate
from lightning_invariance.report import markdown_table, plot_bars
from lightning_invariance.report._notebook import rows_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

#: What is measured of each model unless measures are named; of other outputs than scores of classes, what makes sense.
COLUMNS = (
    "accuracy",
    "worst_case_orbit_accuracy",
    "logit_invariance_error",
    "distribution_invariance_error",
    "saliency_invariance_similarity",
    "orbit_share",
    "orbit_mean_iou",
    "vector_cosine_similarity",
)

_TIMES = {"training_step_seconds": "training step", "inference_seconds": "inference"}


@dataclass(frozen=True)
class ComparedModel:
    """What was found of one model.

    Attributes:
        measures: an `Estimate` (value and standard error over samples) for each measure, by name:
            ``logit_invariance_error``, ...; without labels there are no accuracies.
        parameters: how many numbers its parameters hold, frozen ones included.
        training_step_seconds: of a training step, the median of each round; empty if none was timed.
        inference_seconds: of a test step, the median of each round.
    """

    measures: dict[str, Estimate]
    parameters: int
    training_step_seconds: tuple[float, ...]
    inference_seconds: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """Models side by side, the first of them the one whose times the others' are set against.

    Attributes:
        models: what was found of each, in order.
        saliency: the saliency map that was used, in words, where one was.

    Example:
        >>> import torch
        >>> from lightning_invariance import ComparedModel, Comparison, Estimate
        >>> def found(li, *seconds):
        ...     measures = {"logit_invariance_error": Estimate(torch.tensor(li), torch.tensor(0.1))}
        ...     return ComparedModel(measures, 7161, *seconds)
        >>> comparison = Comparison({"DA": found(8.0, (0.1, 0.2), (0.1,)), "IR": found(0.2, (0.3, 0.4), (0.1,))})
        >>> print(comparison.to_markdown())
        |  | LI | parameters | training step, ms | training step / DA's | inference, ms | inference / DA's |
        |---|---|---|---|---|---|---|
        | DA | 8.00 ± 0.10 | 7,161 | 150 | 1.00 | 100 | 1.00 |
        | IR | 0.200 ± 0.100 | 7,161 | 350 | 2.50 | 100 | 1.00 |
    """

    models: dict[str, ComparedModel]
    saliency: str = ""

    def ratios(self, times: str) -> dict[str, float]:
        """Each model's time over the first one's: the median of the ratios of each round.

        Args:
            times: ``"training_step_seconds"`` or ``"inference_seconds"``.

        Returns:
            A ratio for each model, NaN where nothing was timed.

        Raises:
            ValueError: if `times` is neither.
        """
        if times not in _TIMES:
            raise ValueError(f"Expected `times` to be one of {list(_TIMES)} but got {times!r}.")
        each = {name: getattr(model, times) for name, model in self.models.items()}
        first = next(iter(each.values()), ())
        return {
            name: median(own / base for own, base in zip(seconds, first, strict=True)) if seconds else float("nan")
            for name, seconds in each.items()
        }

    def to_dataframe(self) -> DataFrame:
        """A row for each model: measures, their standard errors, parameters, times in seconds, ratios of times.

        Raises:
            ModuleNotFoundError: if pandas is not installed.
        """
        pandas = require("pandas", "A DataFrame")
        ratios = {times: self.ratios(times) for times in _TIMES}
        rows: dict[str, dict[str, Any]] = {}
        for name, model in self.models.items():
            row = rows[name] = {}
            for measure, estimate in model.measures.items():
                row[measure] = float(estimate.value)
                row[f"{measure}_standard_error"] = float(estimate.standard_error)
            row["parameters"] = model.parameters
            for times, ratio in ratios.items():
                row[times] = _typical(getattr(model, times))
                row[times.replace("seconds", "ratio")] = ratio[name]
        frame: DataFrame = pandas.DataFrame.from_dict(rows, orient="index")
        return frame.rename_axis("model")

    def to_markdown(self) -> str:
        """A Markdown table with a row for each model; times only where some were taken."""
        return markdown_table(self._rows())

    def _repr_html_(self) -> str:
        """The same table, as notebooks show it."""
        return rows_html(self._rows())

    def _rows(self) -> dict[str, dict[str, float | Estimate]]:
        rows: dict[str, dict[str, float | Estimate]] = {}
        for name, model in self.models.items():
            row = rows[name] = {self._heading(measure): estimate for measure, estimate in model.measures.items()}
            row["parameters"] = model.parameters
        for times, heading in self._timed().items():
            for name, ratio in self.ratios(times).items():
                rows[name][f"{heading}, ms"] = 1000 * _typical(getattr(self.models[name], times))
                rows[name][f"{heading} / {self._first}'s"] = ratio
        return rows

    def plot(self) -> Figure:
        """A panel for each column of the table, with a bar for each model and standard errors.

        Raises:
            ModuleNotFoundError: if matplotlib is not installed.
        """
        panels: dict[str, dict[str, float | Estimate]] = {}
        for name, model in self.models.items():
            for measure, estimate in model.measures.items():
                panels.setdefault(self._heading(measure), {})[name] = estimate
            panels.setdefault("parameters", {})[name] = model.parameters
        for times, heading in self._timed().items():
            panels[f"{heading} / {self._first}'s"] = dict(self.ratios(times))
        measured = {measure for model in self.models.values() for measure in model.measures}
        logarithmic = {self._heading(measure) for measure in measured if _measure(measure).logarithmic}
        return plot_bars(panels, log=[panel for panel in panels if panel in logarithmic])

    def _heading(self, name: str) -> str:
        """A measure's heading, behind the output's where there are several, and with the map that it rests on."""
        output, _, _ = name.rpartition("/")
        measure = _measure(name)
        heading = measure.heading
        if self.saliency and "saliency" in inputs_of(measure.make())[0]:
            heading += f", {self.saliency}"
        return f"{output}: {heading}" if output else heading

    @property
    def _first(self) -> str:
        return next(iter(self.models))

    def _timed(self) -> dict[str, str]:
        return {
            times: heading
            for times, heading in _TIMES.items()
            if any(getattr(model, times) for model in self.models.values())
        }


def _measure(name: str) -> Measure:
    return MEASURES[name.rpartition("/")[2]]


def _typical(seconds: tuple[float, ...]) -> float:
    return median(seconds) if seconds else float("nan")
