"""What a training step and inference of each method cost over DA's, timed in turns."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
from torch.utils.data import Subset

from examples.paper.data import BATCH
from examples.paper.methods import METHODS, build, callbacks_of
from examples.paper.models import Classifier
from examples.paper.plan import CNN_TABLE
from examples.paper.runs import CNN_BATCH, GROUPS, Settings, quiet, write_whole
from lightning_invariance import compare

#: The first of each is the one whose times the others' are set against.
PERCEPTRONS = ("DA", "WT", "IR", "IW", "DA annealed")
Costs = dict[str, dict[str, dict[str, float]]]


def costs(settings: Settings, folder: Path) -> Costs:
    """By group and method: ``"step"`` and ``"inference"`` over DA's; measured once, where nothing else runs."""
    path = folder / "costs.json"
    if not path.exists():
        quiet()
        write_whole(path, json.dumps({group: _of(group, settings) for group in GROUPS}, indent=1))
    found: Costs = json.loads(path.read_text(encoding="utf-8"))
    return found


def _of(group: str, settings: Settings) -> dict[str, dict[str, float]]:
    action = GROUPS[group]
    found = {}
    for names, batch in ((PERCEPTRONS, BATCH), (CNN_TABLE[group], CNN_BATCH)):
        images = settings.data(action)
        few = Subset(images.train_set, range(min(len(images.train_set), 20 * batch)))
        comparison = compare(
            {name: Classifier(build(name, action), annealed=METHODS[name].is_convolutional) for name in names},
            L.LightningDataModule.from_datasets(few, test_dataset=few, batch_size=batch),
            action,
            callbacks={name: callbacks_of(name, action, weight=1.0, steps=1000) for name in names},
            measures=["accuracy"],
            rounds=1 if settings.quick else 7,
            steps=2 if settings.quick else 10,
            progress=False,
            accelerator="cpu",
        )
        steps, inference = (comparison.ratios(f"{kind}_seconds") for kind in ("training_step", "inference"))
        found |= {name: {"step": steps[name], "inference": inference[name]} for name in names}
    return found
