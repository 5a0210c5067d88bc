"""Checks of outputs and maps: do they mean what they say?"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_invariance.auditing._findings import Finding
from lightning_invariance.auditing._subject import (
    Skip,
    Subject,
    quiet,
)
from lightning_invariance.evaluation._sources import SaliencySource, Samples
from lightning_invariance.functional import orbit_share, saliency_invariance_similarity
from lightning_invariance.functional._orbit_values import (
    finite_samples,
    flat_samples,
    is_single,
    rounding_variance,
    spread,
)
from lightning_invariance.saliency import Gradient, PreparedOtherwise, Saliency, default_saliency, prepared_by

#: How far noise on the input may raise the similarity of maps before ties are to blame.
_TIES = 0.02

#: An orbit share of the outputs as they are that is above this, and this many times that of logits, is one that was not
#: seen.
_SHARE, _TIMES = 0.01, 3.0


class _Noisy(PreparedOtherwise):
    """Another saliency, on inputs with noise that is drawn before they move."""

    def prepare(self, x: Tensor) -> Tensor:
        return prepared_by(default_saliency(), prepared_by(self._saliency, x))


def ties(subject: Subject) -> Finding:
    """The similarity of saliency maps with and without a little noise on the input."""
    asked = subject.saliency
    dithered = isinstance(asked, Gradient) and asked.dither > 0
    plain = Gradient() if dithered else asked
    subject = subject.first(32)
    logits = subject.run()
    source = SaliencySource(plain)
    several = subject.arguments.joint is not None or subject.motion.names is not None
    if several or not subject.motion.stays or not source.can_explain(logits, subject.x):
        raise Skip("there are no saliency maps of such inputs or outputs.")
    try:
        without, noisy = _similarity(subject, logits, plain), _similarity(subject, logits, _Noisy(plain))
    except Exception as failure:  # of any kind: a network may take only values of some range
        raise Skip.because(
            "there are no saliency maps, with or without noise of 0.001 on the input", failure
        ) from failure
    x = subject.x
    flat = float((x[..., 1:] == x[..., :-1]).double().mean()) if x.ndim > 1 and x.shape[-1] > 1 else 0.0
    measured = {"similarity": without, "similarity_with_noise": noisy, "equal_neighbours": flat}
    if without != without or noisy != noisy:
        raise Skip("the maps are 0.")
    said = f"SI is {without:.2f} with {plain!r}, and {noisy:.2f} with noise of 0.001 on the input"
    if noisy - without <= _TIES:
        return Finding("ties", "fine", f"{said}: maps do not hang on ties.", "", measured)
    why = "max-pooling over equal values (a flat background) picks one by its position, which no group respects"
    if dithered:
        remedy = f"Keep the noise, as {asked!r} has it."
        return Finding("ties", "note", f"{said}: {why}.", remedy, measured)
    return Finding("ties", "problem", f"{said}: {why}.", "Use saliency=Gradient(dither=1e-3), the default.", measured)


def _similarity(subject: Subject, logits: Tensor, saliency: Saliency) -> float:
    network, _ = subject.network()
    samples = Samples(
        x=subject.x,
        network=network,
        calm=network,
        action=subject.acting,
        output=None,
        packing=lambda: None,
        positions=tuple(range(len(subject.x))),
        max_batch=len(subject.x),
        target=subject.labels.of(logits),
        logits=logits,
    )
    maps = SaliencySource(saliency).run(samples)
    with quiet():
        return float(saliency_invariance_similarity(maps["saliency"], maps["orbit_saliency"]))


def finite_outputs(subject: Subject) -> Finding:
    """Whether outputs are numbers, in each pose."""
    outputs = subject.orbit()
    finite = finite_samples(outputs.logits, outputs.orbit_logits)
    measured = {"samples_not_finite": float((~finite).double().mean())}
    if finite.all():
        return Finding("finite_outputs", "fine", "All outputs are finite.", "", measured)
    said = f"{int((~finite).sum())} of {len(finite)} samples have NaN or infinite outputs in some pose."
    return Finding(
        "finite_outputs", "problem", said, "Nothing can be said of these: look for what overflows.", measured
    )


def constant_output(subject: Subject) -> Finding:
    """How far the outputs of samples lie apart."""
    logits = subject.run()
    if len(logits) < 2:
        raise Skip("there is one sample.")
    flat = flat_samples(logits).double()
    squares = flat.square().sum(dim=1).mean()
    variance = spread(flat)
    share = float((variance / squares).sqrt()) if squares > 0 else 0.0
    measured = {"relative_spread": share}
    if not variance > rounding_variance(squares, logits.dtype):
        said = "The output is the same for all samples."
        remedy = "Errors are 0 whatever the group: train the network, or look for layers that are dead."
        return Finding("constant_output", "problem", said, remedy, measured)
    said = f"Outputs of different samples lie {share:.2g} of their size apart"
    if share < 0.01:
        remedy = (
            "Errors relative to the outputs' size look small for that alone: read those relative to the variance "
            "between samples ('relative_logit_invariance_error', 'orbit_share')."
        )
        return Finding("constant_output", "note", f"{said}.", remedy, measured)
    return Finding("constant_output", "fine", f"{said}.", "", measured)


def collapsed_logits(subject: Subject) -> Finding:
    """Probabilities that are nearly uniform, or predictions that are all the same."""
    logits, shares = _probabilities(subject)
    classes = logits.shape[1]
    excess = float(((shares.amax(dim=1) - 1 / classes) / (1 - 1 / classes)).mean())
    predicted = logits.argmax(dim=1).unique()
    target = subject.labels.of(logits)
    measured = {"largest_probability": float(shares.amax(dim=1).mean()), "predicted_classes": float(len(predicted))}
    if excess < 0.01:
        largest = measured["largest_probability"]
        said = f"The largest of {classes} probabilities is {largest:.3g} on average: they are nearly uniform."
        remedy = (
            "Logits so small hide from DI and JS, and from LI: read 'orbit_share' or "
            "'relative_logit_invariance_error', which scale does not change."
        )
        return Finding("collapsed_logits", "problem", said, remedy, measured)
    one_label = target is not None and len(target.unique()) == 1
    if len(predicted) == 1 and len(logits) >= 8 and not one_label:
        said = f"Class {int(predicted)} is predicted for all {len(logits)} samples."
        remedy = "Consistency and accuracies say nothing of such a network: train it, or check its last layer."
        return Finding("collapsed_logits", "problem", said, remedy, measured)
    said = f"The largest probability is {measured['largest_probability']:.3g} on average, of {len(predicted)} classes."
    return Finding("collapsed_logits", "fine", said, "", measured)


def saturated_softmax(subject: Subject) -> Finding:
    """Probabilities that are 1 as far as single precision knows."""
    logits, _ = _probabilities(subject)
    ordered = logits.double().sort(dim=1, descending=True).values
    left = (ordered[:, 1:] - ordered[:, :1]).exp().sum(dim=1)
    left = left / (1 + left)  # 1 less the largest probability, without its rounding
    measured = {"median_of_the_rest": float(left.median()), "saturated": float((left < 1e-6).double().mean())}
    said = f"For half of the samples the largest probability is 1 but for {measured['median_of_the_rest']:.1e}"
    if measured["median_of_the_rest"] >= 1e-6:
        return Finding("saturated_softmax", "fine", f"{said}.", "", measured)
    remedy = (
        "DI grows without bound where such predictions differ, and a few samples decide it: read JS, which is bounded, "
        "and LI; calibrate the logits with a temperature to compare models by DI."
    )
    return Finding("saturated_softmax", "note", f"{said}.", remedy, measured)


def common_part(subject: Subject) -> Finding:
    """Outputs that may be no logits of classes, of which measures leave out the part that is common to all."""
    outputs = subject.orbit()
    logits, orbit_logits = outputs.logits, outputs.orbit_logits
    if subject.kind(logits) != "classes":
        raise Skip("the outputs are no (B, C).")
    if subject.labels.of(logits) is not None:
        return Finding("common_part", "fine", "Labels say that the outputs are scores of classes.", "", {})
    if len(logits) < 2:
        raise Skip("there is one sample.")
    with quiet():
        centred = float(orbit_share(logits, orbit_logits))
        # Each number beside its opposite: nothing is common to all of these, so nothing of them is left out.
        whole = float(
            orbit_share(torch.cat([logits, -logits], dim=-1), torch.cat([orbit_logits, -orbit_logits], dim=-1))
        )
    measured = {"orbit_share": centred, "orbit_share_with_common_part": whole}
    said = (
        f"No labels say that the outputs {tuple(logits.shape)} are logits of classes. They are taken for these: what "
        f"is added to all {logits.shape[1]} of them alike does not count in 'orbit_share', DI and JS, as softmax does "
        f"not know it. The orbit share is {centred:.2g}, and {whole:.2g} with that part."
    )
    remedy = (
        "Of embeddings and other numbers read 'relative_logit_invariance_error', which counts all of them; of logits "
        "give integer labels (`target=` says where)."
    )
    unseen = whole > _SHARE and not whole <= _TIMES * centred
    return Finding("common_part", "problem" if unseen else "note", said, remedy, measured)


def single_output(subject: Subject) -> Finding:
    """One number a sample, which is a regression's, with labels that are a classifier's."""
    logits = subject.run()
    if not is_single(logits):
        return Finding("single_output", "fine", "The outputs are several numbers a sample.", "", {})
    labels = subject.labels.of(logits)
    if labels is None:
        raise Skip("there are no integer labels.")
    distinct = labels.unique().tolist()
    measured = {"distinct_labels": float(len(distinct))}
    said = "There is one output a sample, which is taken for that of a regression"
    if len(distinct) > 2:
        return Finding("single_output", "fine", f"{said}.", "", measured)
    remedy = (
        "If it is the logit of a binary classifier, say logits=lambda o: torch.cat([torch.zeros_like(o), o], dim=1), "
        "for outputs (B, 1): accuracies, consistency, DI and JS are measured then."
    )
    return Finding("single_output", "note", f"{said}, and the labels are {distinct}.", remedy, measured)


def _probabilities(subject: Subject) -> tuple[Tensor, Tensor]:
    logits = subject.run()
    if subject.kind(logits) != "classes":
        raise Skip("the outputs are no scores of classes.")
    return logits, logits.double().softmax(dim=1)
