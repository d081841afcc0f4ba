"""Which plots ``evaluate`` shows of which scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from georeg_diffusion.report.curves import Curve, Models, Plot, plot


def plots(models: Models) -> dict[str, list[Plot]]:
    """The plots of all scores that were measured, by section of the page.

    Args:
        models: entries by score by name, as ``metrics.json`` holds them.
    """
    sections: dict[str, list[Plot | None]] = {
        "paths": [_trajectories(models), _segments(models), _adjacent(models)],
        "profile": _profile(models),
        "spectra": [_spectra(models), _conditions(models)],
        "inversion": _inversion(models),
    }
    return {name: [one for one in found if one is not None] for name, found in sections.items()}


def _details(models: Models, score: str) -> dict[str, Mapping[str, Any]]:
    """What a score's entries hold beside its value, by model; of those that were measured."""
    entries = {name: scores[score] for name, scores in models.items() if score in scores}
    return {name: entry.get("details") or {} for name, entry in entries.items()}


def _curves(models: Models, score: str, draw: Callable[[Mapping[str, Any]], Curve]) -> dict[str, Curve]:
    """A curve of each model, empty where it has not what it takes."""
    found = {}
    for name, details in _details(models, score).items():
        try:
            found[name] = draw(details)
        except (KeyError, TypeError, IndexError):
            found[name] = Curve([], [])
    return found


def _perfect(models: Models) -> tuple[float, str] | None:
    values = [d["perfect"] for d in _details(models, "mrtl").values() if d.get("perfect") is not None]
    return (float(values[0]), f"perfect isometry: {values[0]:.3f}") if values else None


def _trajectories(models: Models) -> Plot | None:
    return plot(
        "Relative trajectory length in h",
        "RTL(t) along slerps of x_T, at each reverse step of the sampler: 1 is the noise, the last step the image, as in "
        "Fig. 5. Lower is straighter; a perfect isometry of the sphere has arc over chord and not 1.",
        _curves(models, "mrtl", lambda d: Curve.around(range(1, len(d["rtl"]) + 1), d["rtl"], d.get("rtl_stderr"))),
        xlabel="reverse step (1: noise)",
        ylabel="RTL = length / chord",
        perfect=_perfect(models),
        whole=True,
    )


def _segments(models: Models) -> Plot | None:
    def converging(d: Mapping[str, Any]) -> Curve:
        pairs = sorted((int(count), value) for count, value in d["segments"].items())
        return Curve([count for count, _ in pairs], [value for _, value in pairs])

    return plot(
        "Is mRTL converged?",
        "mRTL of the same paths in fewer segments. A polyline is shorter than its curve, so that mRTL grows with the "
        "number of segments towards the curve's own; compare only numbers of equal segments.",
        _curves(models, "mrtl", converging),
        xlabel="segments of each path",
        ylabel="mRTL",
        whole=True,
    )


def _adjacent(models: Models) -> Plot | None:
    def walk(d: Mapping[str, Any]) -> Curve:
        distances: Sequence[float] = d["adjacent"]
        count = len(distances)
        return Curve.around([(i + 0.5) / count for i in range(count)], distances, d.get("adjacent_stderr"))

    return plot(
        "Distance between adjacent frames",
        f"Mean over the slerps from A to B{_measured_by(models, 'interpolation')}. A smooth interpolation is level; a "
        "peak is an abrupt change (Fig. 6).",
        _curves(models, "interpolation", walk),
        xlabel="position on the slerp, A to B",
        ylabel="distance of adjacent frames",
        zero=True,
    )


def _profile(models: Models) -> list[Plot | None]:
    def of(key: str, error: str | None = None) -> dict[str, Curve]:
        def draw(d: Mapping[str, Any]) -> Curve:
            return Curve.around(d["timesteps"], d[key], None if error is None else d.get(error))

        return _curves(models, "isometry", draw)

    sphere = _curves(models, "isometry", lambda d: Curve.around(d["timesteps"], d["sphericity"], _deviation(d)))
    t = "timestep t (larger: noisier)"
    return [
        plot(
            "Isometry loss",
            "Eq. 6, normalised: 1 is a perfect scaled isometry, in any dimension. Band: ± 1.96 standard errors.",
            of("isometry", "isometry_stderr"),
            xlabel=t,
            ylabel="d · E[τ₂] / E[τ₁]²",
            log=("y",),
            perfect=(1.0, "perfect: 1"),
        ),
        plot(
            "Conformality",
            "The same with the scale free to change from point to point: 1 keeps all angles.",
            of("conformality"),
            xlabel=t,
            ylabel="d · E[τ₂ / τ₁²]",
            log=("y",),
            perfect=(1.0, "perfect: 1"),
        ),
        plot(
            "Effective rank",
            "Directions of x_t that h follows about equally; at most the smaller dimension d.",
            of("effective_rank"),
            xlabel=t,
            ylabel="E[τ₁² / τ₂]",
            perfect=_dimension(models),
            zero=True,
        ),
        plot(
            "Sphericity of x_t",
            "Squared norm of x_t per pixel: 1 is the sphere that the paper takes x_t to be on. Band: ± one standard "
            "deviation over images. It depends on the images and the schedule, not on the weights.",
            sphere,
            xlabel=t,
            ylabel="‖x_t‖² / n",
            perfect=(1.0, "sphere of radius √n"),
            zero=True,
        ),
    ]


def _deviation(details: Mapping[str, Any]) -> list[float | None]:
    return [None if one is None else one / 1.96 for one in details["sphericity_std"]]


def _dimension(models: Models) -> tuple[float, str] | None:
    found = {d["dimension"] for d in _details(models, "isometry").values() if "dimension" in d}
    return (float(found.copy().pop()), f"perfect: {found.pop()}") if len(found) == 1 else None


def _spectra(models: Models) -> Plot | None:
    found = {name: d for name, d in _details(models, "vor").items() if d.get("spectrum")}
    if not found:
        return None
    at = next(iter(found.values()))["timesteps"]
    middle = len(at) // 2

    def spectrum(d: Mapping[str, Any]) -> Curve:
        one = d["spectrum"][middle]
        top = one["median"][0]
        low, median, high = ([value / top for value in one[key]] for key in ("low", "median", "high"))
        return Curve(one["index"], median, low, high)

    return plot(
        f"Singular values of the encoder at t = {at[middle]}",
        "Relative to the median of the largest; a level line is isotropic. Line: median over images, band: quartiles.",
        _curves(models, "vor", spectrum),
        xlabel="index",
        ylabel="σᵢ / σ₁",
        log=("y",),
    )


def _conditions(models: Models) -> Plot | None:
    return plot(
        "Condition number",
        "σ_max/σ_min of the encoder at each timestep, mean over images (Eq. 10): 1 is isotropic.",
        _curves(models, "mcn", lambda d: Curve(d["timesteps"], d["per_t"])),
        xlabel="timestep t (larger: noisier)",
        ylabel="σ_max / σ_min",
        log=("y",),
        perfect=(1.0, "perfect: 1"),
    )


def _inversion(models: Models) -> list[Plot | None]:
    def of(key: str) -> dict[str, Curve]:
        return _curves(models, "inversion", lambda d: Curve.around(d["steps"], d[key], d.get(f"{key}_stderr")))

    steps = "DDIM steps, there and back"
    return [
        plot(
            "Error of reconstructions",
            "Mean-squared error of values in [−1, 1] after plain DDIM inversion and sampling. Both axes are logarithmic: an "
            "error of first order falls as 1/steps².",
            of("mse"),
            xlabel=steps,
            ylabel="squared error per pixel",
            log=("x", "y"),
        ),
        plot(
            "Perceptual distance of reconstructions",
            f"The same images{_measured_by(models, 'inversion')}.",
            of("distance"),
            xlabel=steps,
            ylabel="distance",
            log=("x", "y"),
        ),
    ]


def _measured_by(models: Models, score: str) -> str:
    names = {str(d["measure"]) for d in _details(models, score).values() if d.get("measure")}
    return f", by {names.pop()}" if len(names) == 1 else ""
