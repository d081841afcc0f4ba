"""Figure VI: contents injected in h-space, {h_t + 1.5 h′_t}."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from georeg_diffusion.editing.subjects import Subjects
    from georeg_diffusion.evaluation.setting import Setting
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "H after isometric training: the content of x₀′ injected into x₀"
SOURCE = "Figure VI, App. G"
DATA = "digits"

STRENGTHS = (0.5, 1.5)
"""c of h + c·h′; the last is the paper's."""

SHOWN = 6
TAKEN, OTHER, KEPT = "edited: class of the content", "edited: class of another content", "edited: class kept"
CLOSER = "distance from the content, edited / unedited"


def run(lab: Lab) -> Finding:
    """Inject the h of images into others, in both models, and see by the classifier what came with it."""
    from georeg_diffusion.editing.apply import inject
    from georeg_diffusion.experiments import comparison
    from georeg_diffusion.experiments.finding import Claim, Finding
    from georeg_diffusion.experiments.linearity import subjects_at
    from georeg_diffusion.experiments.measured import absent, gathered, models_of, table_of
    from georeg_diffusion.experiments.replicates import in_words, is_below_zero, over_seeds, paired
    from georeg_diffusion.report.edits import write_injection

    models = models_of(lab)
    scores: dict[str, list[dict[str, float | None]]] = {name: [] for name in models}
    pictures, num_steps, count = [], 0, 0
    for seed in lab.seeds:
        for name, changes in models.items():
            setting = lab.setting(lab.model(seed, **changes), seed, "injection")
            count = setting.num_samples or (6 if lab.quick else 12)
            subjects, contents = subjects_at(setting, count), subjects_at(setting, count, first=count)
            edited = inject(subjects, contents, STRENGTHS, interval=subjects.interval())
            plain, source = subjects.images(), contents.images()
            found: dict[str, float | None] = {}
            for c, images in zip(STRENGTHS, edited, strict=True):
                found |= {_at(kind, c): value for kind, value in transferred(setting, plain, source, images).items()}
            scores[name].append(found)
            num_steps = len(subjects.steps)
            if seed == lab.seeds[0]:
                folder = name.split(" ", 1)[0]
                write_injection(
                    lambda file, folder=folder: lab.path(f"{folder}/{file}"),  # type: ignore[misc]
                    plain[:SHOWN],
                    source[:SHOWN],
                    edited[-1, :SHOWN, :SHOWN],
                    samples=_names("x₀", subjects),
                    others=_names("x₀′", contents),
                    title=f"Figure VI on {lab.recipe.label}, {name}: h + {STRENGTHS[-1]:g} h′",
                )
                pictures.append(lab.path(f"{folder}/injection.png"))
    results = {name: gathered(one) for name, one in scores.items()}
    base, ours = results
    kinds = {TAKEN: False, OTHER: None, KEPT: None, CLOSER: True}
    table = table_of(
        f"{SOURCE}: {TITLE}",
        results,
        {_at(kind, c): better for c in STRENGTHS for kind, better in kinds.items()},
        pairs=(("isometric − base", base, ours),),
        caption=f"{count} × {count} pairs for each seed, those of different classes; the class of another content is what "
        f"chance would give. h is edited from T to T/2 and enters the predicted x₀ alone; {num_steps} DDIM steps. "
        f"{comparison.setting_of(lab)}",
    )
    c = STRENGTHS[-1]
    claims = []
    for name, one in results.items():
        gain = paired(one.values[_at(OTHER, c)], one.values[_at(TAKEN, c)])
        falls = is_below_zero(gain)
        claims.append(
            Claim(
                f"h′ carries content: more images take the class of their content than chance gives ({name.split(' (')[0]})",
                None if falls is None else not falls,
                f"{_percent(over_seeds(one.values[_at(TAKEN, c)]))} against "
                f"{_percent(over_seeds(one.values[_at(OTHER, c)]))}, difference {in_words(gain)}",
            )
        )
    change = comparison.difference(results[base], results[ours], _at(TAKEN, c))
    falls = is_below_zero(change)
    claims.append(
        Claim(
            "H is preserved: no fewer images take the class of their content than in the base",
            None if falls is None else not falls,
            f"share {in_words(change)}",
        )
    )
    notes = (
        *absent(classifier=setting.classifier, distance=setting.distance),
        "Rows are x₀, columns x₀′, as in the paper; the first of the first seed are drawn, whatever they show.",
    )
    return Finding((table,), tuple(pictures), tuple(claims), notes)


def transferred(setting: Setting, plain: Tensor, source: Tensor, edited: Tensor) -> dict[str, float | None]:
    """What edited images ``(C, B, ...)`` have of their contents ``(C, ...)`` and of the samples ``(B, ...)``.

    Classes count over pairs whose sample and content differ in class; the control is the mean over contents of a third
    class. None without a classifier of classes that exclude each other, or without such pairs.
    """
    import torch

    from georeg_diffusion.experiments.measured import available, labels_of, mean_of

    found: dict[str, float | None] = dict.fromkeys((TAKEN, OTHER, KEPT, CLOSER))
    classifier = available(setting.classifier)
    if classifier is not None and classifier.exclusive:
        of_plain, of_source, of_edited = (
            labelled[0].double().argmax(-1)
            for images in (plain, source, edited)
            if (labelled := labels_of(setting, images)) is not None
        )
        differ = of_source[:, None] != of_plain[None]  # (C, B)
        taken = of_edited == of_source[:, None]
        third = (of_source[None] != of_source[:, None])[:, :, None] & (of_source[:, None] != of_plain[None])[None]
        hits = (of_edited[:, None] == of_source[None, :, None]) & third  # (C, other contents, B)
        if bool(differ.any()):
            found[TAKEN] = mean_of(taken[differ])
            found[KEPT] = mean_of((of_edited == of_plain[None])[differ])
            has_third = differ & third.any(1)
            if bool(has_third.any()):
                found[OTHER] = mean_of((hits.sum(1) / third.sum(1).clamp_min(1))[has_third])
    distance = available(setting.distance)
    if distance is not None:
        with torch.no_grad():
            count, batch = edited.shape[:2]
            there = source.repeat_interleave(batch, 0).to(setting.device)
            before = distance(plain.repeat(count, 1, 1, 1).to(setting.device), there).clamp_min(0).sqrt()
            after = distance(edited.flatten(0, 1).to(setting.device), there).clamp_min(0).sqrt()
        found[CLOSER] = mean_of(after) / max(mean_of(before), torch.finfo(torch.float32).tiny)
    return found


def _names(kind: str, subjects: Subjects) -> list[str]:
    return [f"{kind} {i + 1}" for i in range(min(SHOWN, len(subjects)))]


def _at(kind: str, strength: float) -> str:
    return f"{kind}, c = {strength:g}"


def _percent(estimate: object) -> str:
    from georeg import Estimate

    return f"{estimate.value:.0%}" if isinstance(estimate, Estimate) else "not measured"
