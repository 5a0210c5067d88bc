"""Measures invariance in every validation and test epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._checks import check_count
from lightning_invariance._isolation import full_precision, ordinary, preserved_buffers, preserved_random_state
from lightning_invariance._locate import (
    InputSpec,
    Labels,
    LogitsOf,
    OutputReader,
    Place,
    check_place,
    locate_target,
    stray_labels,
    what_stays,
)
from lightning_invariance._output_action import OutputActions
from lightning_invariance._requirements import require
from lightning_invariance.actions import Action, Flow
from lightning_invariance.actions._flow import as_action
from lightning_invariance.callbacks._base import is_sharded
from lightning_invariance.callbacks._calls import CallSpec, NetworkCall, are_close
from lightning_invariance.callbacks._epochs import EpochMonitor, LoaderPlace, positions_of
from lightning_invariance.callbacks._figures import FirstMaps, bars_by_element, send_figure, takes_figures
from lightning_invariance.evaluation._classes import PerClassOption
from lightning_invariance.evaluation._draws import output_for_measuring
from lightning_invariance.evaluation._evaluator import Dealt, Evaluator, Setting, limits_of
from lightning_invariance.evaluation._measures import ERROR_BY_ELEMENT, Measures
from lightning_invariance.evaluation._network import NetworkOfInput
from lightning_invariance.metrics._base import Estimate
from lightning_invariance.saliency import SaliencyLike


class InvarianceMonitor(EpochMonitor):
    r"""Measures and logs how invariant a network is, in each validation and test epoch.

    Works in ``Trainer.fit``, ``validate`` and ``test``, with any logger or none, for a module that knows nothing of
    it. Input and logits are taken from the network's own call in the step, so an epoch costs one more forward for each
    element but the identity, and the saliency maps. Logged as ``val/<measure>`` and ``test/<measure>``; with several
    data loaders ``/dataloader_idx_<n>`` follows, and a measure by element has ``/<element>`` behind it; with a `prefix`
    the names begin ``val/<prefix>/``. Everything that was measured, with standard errors, is in `history`. In the first
    batch it says once which network, call, input, logits and labels it found, and what is left out for want of some.

    The elements of continuous groups and of permutations (`SO3`, `SetPermutations`, ...) are drawn once, with a seed
    that no training callback uses, and are the same in every epoch: what was trained is not what is measured. `action`
    and each record hold the group with these elements.

    Logits ``(B, C)`` are taken for those of C exclusive classes. For labels that do not exclude each other, pass
    ``{"name": DistributionInvarianceError(activation="sigmoid")}``. Where the target is floating point and of the
    logits' shape they are the outputs of a regression, unless its rows are probabilities.

    A monitor leaves training as it was bit for bit. Under distributed sampling, the samples that a
    `DistributedSampler` repeats to even the processes are left out, so the numbers are those of a single process.

    Args:
        action: the group; a `Flow` stands for ``flow.sampled()``.
        measures: names of measures, or torchmetrics metrics under names of your own, whose ``update`` takes some of
            ``logits``, ``orbit_logits``, ``valid``, ``saliency``, ``orbit_saliency``, ``target``, ``perturbed_logits``,
            ``spectral_norms``, ``lie_derivative``; None for all that make sense for outputs and labels. Of scores of
            classes these are ``logit_invariance_error``, ``normalized_logit_invariance_error``,
            ``relative_logit_invariance_error``, ``distribution_invariance_error``, ``jensen_shannon_invariance_error``,
            ``saliency_invariance_similarity``, ``orbit_share``, ``prediction_consistency``, ``orbit_accuracy``,
            ``worst_case_orbit_accuracy``; of such scores at each place ``orbit_mean_iou`` besides; of other outputs the
            logit errors, ``relative_equivariance_error`` and, for vectors, ``vector_cosine_similarity``. By name alone:
            ``selectivity``, ``jacobian_spectral_norm``, ``accuracy``, ``loss_share``, and of a group that has a `Flow`
            (`SO2`, `SO3`, `ScalingRange`, or a flow itself) ``lie_derivative_error``. Of several outputs,
            ``"forces/..."`` is measured of one alone.
        saliency: how to compute saliency maps; ``Gradient(dither=1e-3)`` if None, whatever the action.
        saliency_samples: how many samples of each data loader, from the first, get saliency maps, the costly part; 0
            for none.
        sensitivity_samples: how many, from the first, ``selectivity``, ``jacobian_spectral_norm`` and
            ``lie_derivative_error`` are measured on.
        every_n_epochs: measures in every n-th training epoch only (validation outside of ``fit`` and tests always).
        output_action: how the output moves when the input does, so that equivariance is measured: None, it stays;
            ``"same"``, as the input does, in the same dimensions, also where it is smaller than the input; an `Action`
            of as many elements; or a dict of these for a network that returns several tensors, by their names:
            ``{"energy": None, "forces": "same"}`` logs ``val/forces/relative_equivariance_error`` and so on.
        network: the name of the submodule whose output are the logits; the module's own forward by default.
        input: where the network's arguments hold the tensor that the group acts on: a position, a keyword or a key
            (dots lead further in: ``"0.image"``), or a list of those that one element moves together; by default the
            only tensor that the group can act on.
        target: where the batch holds the labels, one integer a sample, or one a place ``(B, H, W)``: a position or a
            key. By default the second part of a pair, or an entry
            called label, labels, target, targets or y. The labels'
            class is explained by the saliency maps; without labels the class predicted on the untransformed input is,
            and the accuracies are left out. For ``loss_share`` it may hold the numbers that the outputs are to be, as
            for `evaluate_invariance`.
        logits: a function from the network's output to its logits; by default the output itself, or its ``logits``.
        call: which of several calls of the network in a step is measured: an index, ``"last"``, or ``"all"`` for all
            samples of all of them; the only one if None.
        max_batch: the most samples in one extra forward; as many as the batch has if None.
        per_class: whether each measure is given of each class of the labels too, logged with ``/<class>`` behind it:
            True, for as many classes as there are logits, the number of classes, or their names in order.
        prefix: put before the names that are logged, to tell two monitors apart: ``val/<prefix>/orbit_share``.
        log_figures: whether figures go to the trainer's loggers too, those of TensorBoard, W&B and MLflow: True for
            every epoch that is measured, or n for every n-th training epoch among these. ``val/saliency_orbit`` is
            the first image of the data loader with its saliency maps over the orbit, where maps are computed;
            ``val/error_by_element`` are bars of the orbit share of each element (of outputs that are no scores, of the
            relative equivariance error) and of the measures by element. Needs matplotlib.

    Attributes:
        action: the group, with the elements that are measured.
        history: a `MonitorRecord` for each epoch and data loader, in order.

    Raises:
        ValueError: if an argument has a wrong type or value; before training, if another monitor would log by the
            same names, parameters are sharded in a way that a hook cannot undo, or a process may skip validation
            because its loader is empty; in the first validation step, if the group cannot act on the input, network,
            input, labels or logits cannot be found, several calls or tensors could be meant, or a measure that was
            asked for by name cannot be computed.

    Warns:
        UserWarning: in the first validation step, if the logits have the input's spatial size and move with it while
            no `output_action` says so, the outputs agree better if they move otherwise than it says, or another tensor
            of the input's set elements stays in place.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_invariance import C4, InvarianceMonitor
        >>> monitor = InvarianceMonitor(C4(), measures=["logit_invariance_error", "orbit_share"])
        >>> trainer = Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False)
    """

    _name = "InvarianceMonitor"
    _demanding = True
    """Whether a measure by name that cannot be computed is an error."""
    action: Action

    def __init__(
        self,
        action: Action | Flow,
        measures: Measures | None = None,
        saliency: SaliencyLike | None = None,
        saliency_samples: int = 64,
        every_n_epochs: int = 1,
        *,
        sensitivity_samples: int = 64,
        output_action: OutputActions = None,
        network: str | None = None,
        input: InputSpec = None,
        target: Place | None = None,
        logits: LogitsOf | None = None,
        call: CallSpec = None,
        max_batch: int | None = None,
        per_class: PerClassOption = False,
        prefix: str | None = None,
        log_figures: bool | int = False,
    ) -> None:
        action = self._as_action(action)
        check_place("target", target)
        if not isinstance(log_figures, bool):
            check_count("log_figures", log_figures)
        if log_figures:
            require("matplotlib.figure", "`log_figures`")
        super().__init__(action, every_n_epochs, network=network, input=input, logits=logits, call=call, prefix=prefix)
        self.measures = measures
        self.saliency = saliency
        self.saliency_samples = saliency_samples
        self.sensitivity_samples = sensitivity_samples
        self.output_action = output_action
        self.target = target
        self.max_batch = max_batch
        self.per_class = per_class
        self.log_figures = log_figures
        self._output = output_for_measuring(output_action, action)
        self._evaluators: list[Evaluator] = []
        self._maps: list[FirstMaps] = []  # one for each data loader, in epochs with figures
        self._verified = False
        self._said = False
        self._doubted = False
        self._again: set[int] = set()  # the calls whose f(x) is to be computed again
        self._warned = False
        evaluator = self._evaluator(None)  # wrong measures, saliency or sizes fail here
        self._measure_names = evaluator.names
        self._by_generator = evaluator.reading("lie_derivative")
        self._whole_parameters_for = evaluator.needs_whole_parameters

    def _as_action(self, action: Action | Flow) -> Action:
        return as_action(action)

    def logged_names(self) -> tuple[str, ...]:
        """The names that it logs by, without stage and prefix."""
        return self._measure_names

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.log_figures and stage in self._stages and not trainer.barebones:
            self._check_loggers(trainer)
        self._verified = False
        self._said = False
        self._doubted = False
        self._warned = False
        self._again.clear()

    def _check_loggers(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # which takes the loggers away
        if not any(takes_figures(logger) for logger in trainer.loggers):
            names = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "no logger"
            self._warn_of(
                f"`log_figures` sends nothing, as the trainer has {names}: figures go to a TensorBoardLogger, a "
                "WandbLogger or an MLFlowLogger."
            )

    def _draws(self, trainer: Trainer) -> bool:
        """Whether figures are drawn of an epoch that is measured."""
        if not self.log_figures or trainer.sanity_checking:
            return False
        if not any(takes_figures(logger) for logger in trainer.loggers):
            return False
        return trainer.state.fn != "fit" or (trainer.current_epoch + 1) % int(self.log_figures) == 0

    def _evaluator(self, maps: FirstMaps | None) -> Evaluator:
        """With what figures are drawn from, where `maps` takes the maps for them."""
        return Evaluator(
            self.action,
            self.measures,
            output=self._output,
            saliency=self.saliency,
            limits=limits_of(self.saliency_samples, self.sensitivity_samples),
            max_batch=self.max_batch,
            demanding=self._demanding,
            per_class=self.per_class,
            on_maps=maps,
            besides=None if maps is None else ERROR_BY_ELEMENT,
        )

    def _check_strategy(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Parameters that FSDP gathers in the forward of the whole module alone are not there in a hook."""
        if self._whole_parameters_for and is_sharded(trainer):
            raise ValueError(
                f"Expected a strategy that keeps the network's parameters whole in every process for "
                f"{self._whole_parameters_for}, to send several gradients through one graph, but got "
                f"{type(trainer.strategy).__name__}: measure a checkpoint with `evaluate_invariance` instead."
            )
        root = trainer.strategy.model
        if root is None or not _is_fsdp(root):
            return
        inner = (each for each in root.modules() if _is_fsdp(each) and each is not root)
        gathered = {id(parameter) for each in inner for parameter in each.parameters()}
        network = self._network_of(pl_module)
        if any(id(parameter) not in gathered for parameter in network.parameters()):
            raise ValueError(
                f"Expected FSDP to wrap the submodules that hold the network's parameters (see "
                f"`auto_wrap_policy` of {type(trainer.strategy).__name__}) but some belong to the module as a whole."
            )

    def _begin(self, trainer: Trainer, pl_module: LightningModule, loaders: int) -> None:
        with torch.inference_mode(False):  # states made in it could not be written outside
            self._maps = [FirstMaps() for _ in range(loaders)] if self._draws(trainer) else []
            self._evaluators = [self._evaluator(self._maps[i] if self._maps else None) for i in range(loaders)]
        for evaluator in self._evaluators:
            # A process whose loader is empty takes part in the reduction too, on its device.
            evaluator.to(pl_module.device)

    def _sums(self, dataloader_idx: int) -> Evaluator | None:
        return self._evaluators[dataloader_idx] if self._evaluators else None

    def _measure(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, call: NetworkCall | None, loader: LoaderPlace
    ) -> None:
        evaluator = self._evaluators[loader.index]
        network = self._network_of(pl_module)
        reader = OutputReader(self.logits, self._output.names)
        arguments, base_logits = self._arguments_and_logits(pl_module, self.action, batch, call, reader)
        self._check_weights(pl_module, call)
        arguments.check_max_batch(self.max_batch)
        at = self._settings(trainer, network, arguments, call, reader)
        x = arguments.x
        labels = locate_target(batch, self.target, len(x), () if call is None else call.given)
        if not self._verified:
            self._verified = True
            several = self._output.names is not None
            evaluator.check_labels(labels if base_logits is None or several else labels.for_logits(base_logits))
            evaluator.check_inputs(arguments.inputs)
            if self.action is not None:
                arguments.acting(self.action).verify(x)
                staying = base_logits if self._output.stays else None
                for message in what_stays(self.input, self.action, arguments, staying):
                    self._warn_of(message)
            for message in [] if base_logits is None else stray_labels(labels, base_logits):
                self._warn_of(message)
        place = 0 if call is None else call.place
        first = not evaluator.samples
        if first:  # in the first batch of each epoch: averages of weights may begin late
            # Where parameters are shared out, all processes would have to look, and to find the same.
            repeats = is_sharded(trainer) or self._repeats(pl_module, at, x, base_logits)
            (self._again.discard if repeats else self._again.add)(place)
        base_logits = None if place in self._again else base_logits
        positions, kept = positions_of(loader, evaluator.samples, len(x))
        found = labels
        if is_sharded(trainer):
            # Every process runs what the others run, or they wait for each other: repeats are left out afterwards.
            processes = trainer.world_size
        else:
            processes = 1
            evaluator.samples += len(x) - kept
            x, positions = x[:kept], positions[:kept]
            base_logits = None if base_logits is None else base_logits[:kept]
            found = labels.first(kept)
            if not kept:
                return
        logits = evaluator.update(
            at,
            x,
            base_logits=base_logits,
            packing=reader.packed,
            labels=found,
            dealt=Dealt(positions, kept, processes, arguments.is_divisible),
            module=network,
        )
        if not self._said:
            self._said = True
            self._say(pl_module, arguments, call, base_logits, reader, labels, evaluator)
        if first and not self._doubted and not is_sharded(trainer):  # in each epoch: training shows what is wrong
            for message in evaluator.doubts(at, x, logits, reader.packed(), network, arguments.is_divisible):
                self._doubted = True
                self._warn_of(message)

    def _settings(
        self,
        trainer: Trainer,
        network: nn.Module,
        arguments: Arguments,
        call: NetworkCall | None,
        reader: OutputReader,
    ) -> Callable[[int], Setting]:
        # Hooks run outside autocast: the network gets the precision that it has in its own step.
        precision = trainer.precision_plugin.val_step_context
        device = arguments.inputs[0].device

        @contextmanager
        def calm() -> Iterator[None]:
            # The network's own precision, but for autocast.
            with precision(), full_precision(device):
                yield

        run = None if call is None else partial(call.repeat, network)
        # Random numbers, where the network draws some, are those of the step for all elements.
        start = call.random_state if call is not None and call.drew_random_numbers else None

        def at(samples: int) -> Setting:
            with torch.inference_mode(False):
                first = arguments.first(samples)
            return Setting(
                NetworkOfInput(network, first, reader, precision, run, start),
                NetworkOfInput(network, first, reader, calm),
                None if self.action is None else first.acting(self.action),
            )

        return at

    def _repeats(self, module: LightningModule, at: Callable[[int], Setting], x: Tensor, logits: Tensor | None) -> bool:
        """Whether f(x), run again, is what the step's call gave; warns where it is not."""
        run = at(len(x)).network
        network = self._network_of(module)
        with torch.inference_mode(False), torch.no_grad(), preserved_random_state(x.device), preserved_buffers(network):
            repeats = logits is None or are_close(run(ordinary(x)), logits)
        if not repeats and not self._warned:
            self._warned = True
            self._warn_of(
                f"{self._network_in_words(module)} gives another output for the same input when it is "
                "run again after its call in the step: its weights were exchanged for the call, say, or it depends on "
                "a state that is no buffer. What is measured is the network as it is after the step."
            )
        return repeats

    def _say(
        self,
        module: LightningModule,
        arguments: Arguments,
        call: NetworkCall | None,
        logits: Tensor | None,
        reader: OutputReader,
        labels: Labels,
        evaluator: Evaluator,
    ) -> None:
        """After the first batch, which shows what the outputs are."""
        self._findings.say(
            network=self._network_in_words(module),
            call="" if call is None else call.in_words(),
            input=arguments.in_words(),
            logits="that are computed again" if logits is None else reader.in_words(logits),
            labels=(labels if logits is None or self._output.names else labels.for_logits(logits)).in_words(),
            group="" if self.action is None else repr(self.action),
            output_action="" if self._output.stays else repr(self.output_action),
            saliency=evaluator.saliency_in_words(),
            without=", ".join(evaluator.left_out(arguments.x, labels)),
        )

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        besides = self._besides(pl_module) if self._evaluators else {}
        for dataloader_idx, evaluator in enumerate(self._evaluators):
            # Every process must take part in computing a measure that any of them has seen.
            updated = evaluator.updated().to(trainer.strategy.root_device)
            wanted = trainer.strategy.reduce(updated, reduce_op="sum")
            computed = evaluator.compute(wanted)
            by_element = {name: computed.pop(name) for name in list(computed) if _measure(name) in ERROR_BY_ELEMENT}
            of_classes = evaluator.compute_per_class(wanted)
            self._publish(
                trainer,
                pl_module,
                stage,
                dataloader_idx,
                len(self._evaluators),
                {**computed, **besides},
                self._output.spec,
                evaluator.saliency if evaluator.saliency_in_words() else None,
                of_classes,
                evaluator.class_names(of_classes),
            )
            if self._maps and trainer.is_global_zero:
                names = self._log_names(stage, dataloader_idx, len(self._evaluators))
                self._send_figures(trainer, names, self._maps[dataloader_idx], by_element, computed)

    def _send_figures(
        self,
        trainer: Trainer,
        names: tuple[str, str],
        maps: FirstMaps,
        by_element: dict[str, Estimate],
        computed: dict[str, Estimate],
    ) -> None:
        start, end = names
        panels = {_heading(name): each for name, each in by_element.items()}
        panels |= {
            name: each for name, each in computed.items() if self._labels_of(name, each) == self.action.labels[1:]
        }
        panels = {heading: Estimate(*(part.cpu() for part in each)) for heading, each in panels.items()}
        figures = {
            "saliency_orbit": maps.figure(self.action),
            "error_by_element": bars_by_element(panels, self.action),
        }
        for name, figure in figures.items():
            if figure is not None:
                send_figure(trainer.loggers, f"{start}{name}{end}", figure, trainer.global_step)

    def _besides(self, pl_module: LightningModule) -> dict[str, Estimate]:
        """What is logged of the network as it is, besides what is measured on batches."""
        return {}

    def _named(self, measured: dict[str, Estimate], start: str, end: str) -> dict[str, float]:
        named = super()._named(measured, start, end)
        for name, estimate in measured.items():
            for label, value in zip(self._labels_of(name, estimate), estimate.value.flatten().tolist(), strict=False):
                named[f"{start}{name}{end}/{label}"] = value
        return named

    def _labels_of(self, name: str, estimate: Estimate) -> tuple[str, ...]:
        """What a measure has values of: the elements, or the generators of a flow; nothing if it is a single one."""
        elements = () if self.action is None else self.action.labels[1:]
        flow = None if self.action is None else self.action.flow
        labels = tuple(flow.generators) if flow is not None and name in self._by_generator else elements
        return labels if estimate.value.ndim == 1 and len(estimate.value) == len(labels) else ()

    def _forget(self) -> None:
        self._evaluators = []
        self._maps = []


def _measure(name: str) -> str:
    """A measure's name without that of the output, where there are several."""
    return name.rpartition("/")[2]


def _heading(name: str) -> str:
    output, _, measure = name.rpartition("/")
    heading = ERROR_BY_ELEMENT[measure].heading
    return f"{output}: {heading}" if output else heading


def _is_fsdp(module: nn.Module) -> bool:
    return type(module).__name__ == "FullyShardedDataParallel"
