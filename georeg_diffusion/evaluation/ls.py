"""LS: how well a hyperplane in X, or a kernel machine, tells what a classifier sees in the images."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from georeg import register
from georeg_diffusion.errors import UsageError
from georeg_diffusion.evaluation.classifier import Classifier
from georeg_diffusion.evaluation.feature_network import FeatureNetwork
from georeg_diffusion.evaluation.generated import GeneratedFeatures
from georeg_diffusion.evaluation.score import Result, Score
from georeg_diffusion.evaluation.separability import gram, joint_table, predictions, separability
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.sampling.noise import seeded_noise

UNITS = ("nats", "bits")
SPLITS = ("held-out", "in-sample")


class _Probabilities(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.features, self.head, self.exclusive = classifier.features, classifier.head, classifier.exclusive

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(self.features(images))
        return torch.softmax(logits, 1) if self.exclusive else torch.sigmoid(logits)


@register("score", "ls")
class Ls(Score):
    """e to the power of Σᵢ H(Yᵢ|Xᵢ), Y what a classifier sees in an image, X what a linear SVM says of its x_T (Eq. 9).

    1 is separable; the details have the chance level, which is that of an SVM that knows nothing.

    Of each attribute the half of the images with the most confident labels is kept, as in Karras et al. 2019. Classes
    that exclude each other are one attribute of K values. By default each X comes from an SVM that has not seen the
    latent (5 folds): a linear SVM separates any 1,000 points in 200,000 dimensions, so that ``in-sample``, the
    paper's protocol, measures the dimension. With entropies in bits it is 2 that is raised, as in StyleGAN's code,
    which gives the same number; e to the power of bits would not.

    Args:
        setting: the model; ``options["ls_split"]`` is ``held-out`` or ``in-sample``, ``options["ls_entropy"]`` ``nats`` or
            ``bits``.

    Raises:
        UsageError: other values of these.
        RunError: there is no classifier.

    References:
        Hahm et al. 2024, Eq. 9 and App. D; Karras et al. 2019, A style-based generator architecture, Sec. 4.2.
    """

    name: ClassVar[str] = "ls"
    label: ClassVar[str] = "linear separability (LS)"
    lower_is_better: ClassVar[bool | None] = True
    kernel: ClassVar[str] = "linear"

    def __init__(self, setting: Setting) -> None:
        self.setting, self.classifier = setting, setting.classifier()
        self.split = setting.options.get("ls_split", "in-sample" if setting.protocol == "paper" else "held-out")
        self.unit = setting.options.get("ls_entropy", "nats")
        for option, got, known in (("--ls-split", self.split, SPLITS), ("--ls-entropy", self.unit, UNITS)):
            if got not in known:
                raise UsageError(f"{option}: got {got!r}, expected one of {', '.join(known)}")
        steps = setting.steps(20, 20)
        self.labels = GeneratedFeatures(
            lambda seeds: setting.sample(seeds, steps),
            FeatureNetwork(f"labels by {self.classifier.name}", _Probabilities(self.classifier)),
            setting.count(2000, 2000),
            setting.seed,
            setting.batch_size,
            f"{steps} DDIM steps",
            setting.cache,
            setting.key,
        )
        self.parts: list[Tensor] = []

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(setting)

    def pieces(self) -> int:
        return self.labels.pieces()

    def update(self, piece: int) -> None:
        self.parts.append(self.labels(piece).double())

    def compute(self) -> Result:
        setting = self.setting
        found = torch.cat(self.parts) if self.parts else torch.empty(0, len(self.classifier.names))
        n, kept = len(found), len(found) // 2
        base = "2" if self.unit == "bits" else "e"
        how = "by SVMs that have not seen them (5 folds)" if self.split == "held-out" else "by the SVM that they trained"
        protocol = (
            f"{self.kernel} SVM (C = 1) on x_T; {self.classifier.name}; the {kept:,} most confident of {n:,} images, "
            f"{self.labels.how}; predicted {how}; {base} to the power of entropies in {self.unit}"
        )
        if kept < 10:
            return Result(None, None, n, setting.seed, f"{protocol}; at least 20 images are needed")
        products = gram(seeded_noise(setting.bundle.sample_shape, range(setting.seed, setting.seed + n)), self.kernel)
        attributes, tables, left_out = [], [], []
        for name, values, confidence in self._attributes(found):
            rows = confidence.argsort(descending=True, stable=True)[:kept].sort().values
            if len(values[rows].unique()) < 2:
                left_out.append(name)
                continue
            said = predictions(products[rows][:, rows], values[rows], in_sample=self.split == "in-sample", seed=setting.seed)
            attributes.append(name)
            tables.append(joint_table(rows, said, values[rows], n))
        if not tables:
            text = f"{protocol}; among them is one class only, which nothing can separate"
            return Result(None, None, n, setting.seed, text)
        estimate, details = separability(tables, bits=self.unit == "bits")
        details |= {"measure": self.classifier.name, "attributes": attributes}
        missing = self._missing(found, kept) if self.classifier.exclusive else left_out
        if missing:
            details["caution"] = f"missing among the {kept:,} images, and left out: {', '.join(missing)}"
            protocol += f"; {details['caution']}"
        result = Result.of(estimate, seed=setting.seed, protocol=protocol, details=details)
        return Result(result.value, result.ci, n, result.seed, protocol, details)

    def _attributes(self, found: Tensor) -> list[tuple[str, Tensor, Tensor]]:
        """Name, values and confidence ``(n,)`` of each."""
        if self.classifier.exclusive:
            confidence, values = found.max(1)
            return [("class", values, confidence)]
        pairs = zip(self.classifier.names, found.unbind(1), strict=True)
        return [(name, (one > 0.5).long(), (one - 0.5).abs()) for name, one in pairs]

    def _missing(self, found: Tensor, kept: int) -> list[str]:
        confidence, values = found.max(1)
        seen = set(values[confidence.argsort(descending=True, stable=True)[:kept]].tolist())
        return [name for i, name in enumerate(self.classifier.names) if i not in seen]

    def state(self) -> dict[str, Tensor]:
        return {"probabilities": torch.cat(self.parts)} if self.parts else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.parts = [state["probabilities"]] if state else []


@register("score", "ls_radial")
class LsRadial(Ls):
    """LS with an SVM whose kernel is exp(−γ‖x − x′‖²), γ = 1/(d Var x), in place of a hyperplane."""

    name: ClassVar[str] = "ls_radial"
    label: ClassVar[str] = "  with a radial kernel (LS-radial)"
    kernel: ClassVar[str] = "radial"
