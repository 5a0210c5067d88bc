"""What monitors take of an epoch's time, in the trainer's own progress bar."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

#: From how many seconds in an epoch it is worth a word.
LONG = 2.0


def show_seconds(trainer: Trainer, seconds: Mapping[str, float]) -> None:
    """Says behind the bar of the validation, or of the test, which monitors take long; see `LONG`.

    The bar counts batches, and a batch is over when its monitors are: what is missing is why it is slow. Nothing has to
    be put back, as the trainer makes these bars anew for each epoch. Other bars than Lightning's own are left alone.
    """
    said = ", ".join(f"{name} {spent:.0f} s" for name, spent in seconds.items() if spent >= LONG)
    bar = trainer.progress_bar_callback
    if not said or bar is None or not getattr(bar, "is_enabled", False):
        return
    if isinstance(bar, TQDMProgressBar):
        of_stage = bar.test_progress_bar if trainer.testing else bar.val_progress_bar
        of_stage.set_postfix_str(said, refresh=False)  # Lightning draws it after the batch
    elif isinstance(bar, RichProgressBar) and bar.progress is not None and not trainer.sanity_checking:
        task = bar.test_progress_bar_id if trainer.testing else bar.val_progress_bar_id
        name = bar.test_description if trainer.testing else bar.validation_description
        if task is not None:
            style = f"[{bar.theme.description}]" if bar.theme.description else ""
            bar.progress.update(task, description=f"{style}{name}, {said}")
