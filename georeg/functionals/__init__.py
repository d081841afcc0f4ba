"""The losses, one a file: each a function of pooled statistics of the Jacobian."""

from georeg.functionals.conformal import ConformalLoss
from georeg.functionals.contractive import ContractiveLoss
from georeg.functionals.flat import FlatManifoldLoss
from georeg.functionals.isometry import IsometryLoss
from georeg.functionals.path_length import PathLengthLoss, PathLengths
from georeg.functionals.strict import StrictIsometryLoss
from georeg.functionals.volume import LogVolumes, VolumeLoss
from georeg.jackknife import Estimate, jackknife

__all__ = [
    "ConformalLoss",
    "ContractiveLoss",
    "Estimate",
    "FlatManifoldLoss",
    "IsometryLoss",
    "LogVolumes",
    "PathLengthLoss",
    "PathLengths",
    "StrictIsometryLoss",
    "VolumeLoss",
    "jackknife",
]
