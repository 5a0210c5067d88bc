"""What a monitor measured, as figures for the trainer's loggers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

from lightning_invariance.actions import Action
from lightning_invariance.metrics._base import Estimate
from lightning_invariance.report._figures import draw_saliency_orbit, plot_bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: How many poses fit beside each other, and how many bars below each other.
POSES = 8
BARS = 32


class FirstMaps:
    """The saliency maps over the orbit of the first image of a data loader, out of those that are measured anyway."""

    def __init__(self) -> None:
        self._image: Tensor | None = None
        self._maps: Tensor | None = None

    def __call__(self, x: Tensor, maps: Mapping[str, Tensor]) -> None:
        """Keeps those of the first sample; of others than images ``(B, C, H, W)`` there is no picture."""
        if self._image is None and x.ndim == 4 and len(x) and maps["saliency"].shape[1:] == x.shape[1:]:
            orbit = torch.cat([maps["saliency"][None, 0], maps["orbit_saliency"][: POSES - 1, 0]])
            self._image, self._maps = x[0].detach().cpu().clone(), orbit.detach().cpu().clone()

    def figure(self, action: Action) -> Figure | None:
        """The maps over the image, `POSES` of them at most; None where there are none."""
        if self._image is None or self._maps is None:
            return None
        return draw_saliency_orbit({"sample 0": self._maps}, self._image, action.labels[: len(self._maps)])


def bars_by_element(panels: Mapping[str, Estimate], action: Action) -> Figure | None:
    """A panel for each measure, with a bar for each element: those that are worst by the first, where they are many.

    Args:
        panels: each measure's values by element, shape ``(|G| - 1,)``, under its heading.
        action: the group.
    """
    drawn = {heading: each for heading, each in panels.items() if bool(each.value.isfinite().any())}
    if not drawn:
        return None
    order = next(iter(drawn.values())).value.nan_to_num(-torch.inf).argsort(descending=True)[:BARS].sort().values
    among = f", the worst {BARS} of {len(action) - 1}" if len(order) < len(action) - 1 else ""
    return plot_bars(
        {
            f"{heading}{among}": {
                action.labels[1 + place]: Estimate(each.value[place], each.standard_error[place])
                for place in order.tolist()
            }
            for heading, each in drawn.items()
        }
    )


def takes_figures(logger: object) -> bool:
    """Whether figures can be sent to a logger."""
    return isinstance(logger, tuple(_SENDERS))


def send_figure(loggers: Iterable[object], name: str, figure: Figure, step: int) -> None:
    """Sends a figure to the loggers that take some."""
    for logger in loggers:
        for kind, send in _SENDERS.items():
            if isinstance(logger, kind):
                send(logger, name, figure, step)


def _to_tensorboard(logger: TensorBoardLogger, name: str, figure: Figure, step: int) -> None:
    logger.experiment.add_figure(name, figure, global_step=step)


def _to_wandb(logger: WandbLogger, name: str, figure: Figure, step: int) -> None:
    logger.log_image(name, [figure], step=step)


def _to_mlflow(logger: MLFlowLogger, name: str, figure: Figure, step: int) -> None:
    # An artifact has no steps but for its name.
    logger.experiment.log_figure(logger.run_id, figure, f"{name}/step_{step:08d}.png")


_SENDERS: dict[type, Callable[[Any, str, Figure, int], None]] = {
    TensorBoardLogger: _to_tensorboard,
    WandbLogger: _to_wandb,
    MLFlowLogger: _to_mlflow,
}
