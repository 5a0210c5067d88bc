"""The paper's five claims, each held against the runs. The criteria are fixed here, not fitted to what came out."""

from __future__ import annotations

from statistics import mean

from examples.paper.paper_numbers import DI, LI, SI
from examples.paper.plan import FIGURE_5, TABLE_1, Experiments
from examples.paper.runs import GROUPS, TARGET_SI


def check_claims(experiments: Experiments) -> list[dict[str, str]]:
    """Each claim with its criterion, ``"holds"``, ``"does not hold"`` or ``"holds for R4"``, and its figures.

    Claims on methods that have no runs yet are left out.
    """
    claims = []
    for claim, check, models in (
        (
            "1. DA classifies whole orbits correctly and is still not invariant "
            "(worst-case orbit accuracy at least 85 % of accuracy; LI above 1; SI below 0.9)",
            _memorised,
            ("DA",),
        ),
        (
            "2. DA's invariance decays fast under drift, WT's and IR's does not "
            "(DI at β = 0.5 over DI at β = 0 above 3 for DA; DI at β = 0.5 below a tenth of DA's for IR and WT)",
            _decays,
            TABLE_1,
        ),
        (
            "3. LI regularisation brings LI, DI and SI close to WT's, at a cost in accuracy "
            f"(LI and DI below 1 % of DA's; SI at least {TARGET_SI}; accuracy below DA's)",
            _learned,
            ("DA", "IR"),
        ),
        ("4. All forms of the regulariser lower σ_max of the Jacobian (each below DA's)", _less_sensitive, FIGURE_5),
        ("5. Invariance without the loss in accuracy stays open (IR's accuracy below WT's)", _open, ("IR", "WT")),
    ):
        results = [experiments.of(group, model) for group in GROUPS for model in models]
        if not all(results) or (check is _decays and not all(result.drift for each in results for result in each)):
            continue
        verdicts, figures = {}, []
        for group in GROUPS:
            verdicts[group], text = check(experiments, group)
            figures.append(f"{group}: {text}")
        holding = [group for group, holds in verdicts.items() if holds]
        verdict = "holds" if len(holding) == len(GROUPS) else f"holds for {holding[0]}" if holding else "does not hold"
        claims.append({"claim": claim, "verdict": verdict, "figures": "; ".join(figures)})
    return claims


def _test(experiments: Experiments, group: str, model: str, measure: str) -> float:
    return mean(result.test[measure][0] for result in experiments.of(group, model))


def _memorised(experiments: Experiments, group: str) -> tuple[bool, str]:
    accuracy, worst, li, si = (
        _test(experiments, group, "DA", measure) for measure in ("accuracy", "worst_case_orbit_accuracy", LI, SI)
    )
    holds = worst >= 0.85 * accuracy and li > 1 and si < 0.9
    return holds, f"accuracy {accuracy:.3f}, whole orbits {worst:.3f}, LI {li:.3g}, SI {si:.3f}"


def _decays(experiments: Experiments, group: str) -> tuple[bool, str]:
    first, last = (
        {
            model: mean(result.drift["DI"][index] for result in experiments.of(group, model))
            for model in ("DA", "IR", "WT")
        }
        for index in (0, -1)
    )
    holds = last["DA"] > 3 * first["DA"] and max(last["IR"], last["WT"]) < 0.1 * last["DA"]
    return holds, "DI from β = 0 to 0.5: " + ", ".join(f"{m} {first[m]:.3g} to {last[m]:.3g}" for m in first)


def _learned(experiments: Experiments, group: str) -> tuple[bool, str]:
    ir, da = (
        {measure: _test(experiments, group, model, measure) for measure in (LI, DI, SI, "accuracy")}
        for model in ("IR", "DA")
    )
    holds = (
        ir[LI] < 0.01 * da[LI] and ir[DI] < 0.01 * da[DI] and ir[SI] >= TARGET_SI and ir["accuracy"] < da["accuracy"]
    )
    return holds, (
        f"IR against DA: LI {ir[LI]:.3g} / {da[LI]:.3g}, DI {ir[DI]:.3g} / {da[DI]:.3g}, "
        f"SI {ir[SI]:.3f} / {da[SI]:.3f}, accuracy {ir['accuracy']:.3f} / {da['accuracy']:.3f}"
    )


def _less_sensitive(experiments: Experiments, group: str) -> tuple[bool, str]:
    norms = {model: _test(experiments, group, model, "jacobian_spectral_norm") for model in FIGURE_5}
    return max(norms[model] for model in FIGURE_5 if model != "DA") < norms["DA"], ", ".join(
        f"{model} {norm:.3g}" for model, norm in norms.items()
    )


def _open(experiments: Experiments, group: str) -> tuple[bool, str]:
    ir, wt = (_test(experiments, group, model, "accuracy") for model in ("IR", "WT"))
    return ir < wt, f"accuracy IR {ir:.3f}, WT {wt:.3f}"
