"""The losses, one a file: each a function of pooled statistics of R = G⁻¹JᵀHJ. Which to choose:

===========================  ==================================  ===========================  ==============
loss                         what is perfect                     what it does not care about  products/probe
===========================  ==================================  ===========================  ==============
:class:`IsometryLoss`        one scale for all x                 the scale of f               2
:class:`ConformalLoss`       a scale c(x) for each x             the scale at each x          2
:class:`StrictIsometryLoss`  scale 1: lengths are kept           nothing                      2
:class:`FlatManifoldLoss`    one scale, or no map at all         c⁴ multiplies it             2
:class:`PathLengthLoss`      ‖Jᵀu‖ the same for all x and u      c² multiplies it             1
:class:`ContractiveLoss`     no map at all                       c² multiplies it             2
:class:`VolumeLoss`          one volume factor for all x         angles, the scale of f       d, exact
===========================  ==================================  ===========================  ==============

Distances up to a unit: ``IsometryLoss``. Angles only: ``ConformalLoss``. Distances in absolute units:
``StrictIsometryLoss``. A generator of images, where two products are too dear: ``PathLengthLoss``.
Densities, in two or three dimensions: ``VolumeLoss``.
"""

from georeg.functionals.conformal import ConformalLoss
from georeg.functionals.contractive import ContractiveLoss
from georeg.functionals.flat import FlatManifoldLoss
from georeg.functionals.isometry import IsometryLoss
from georeg.functionals.path_length import PathLengthLoss, PathLengths
from georeg.functionals.strict import StrictIsometryLoss
from georeg.functionals.volume import LogVolumes, VolumeLoss

__all__ = [
    "ConformalLoss",
    "ContractiveLoss",
    "FlatManifoldLoss",
    "IsometryLoss",
    "LogVolumes",
    "PathLengthLoss",
    "PathLengths",
    "StrictIsometryLoss",
    "VolumeLoss",
]
