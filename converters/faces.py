"""The faces of a conversion: some to calibrate quantized variants with, others for the jury that judges a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.bundle import Bundle
from pipnet_edge.converters.checkpoint.network import Network, maps_of
from pipnet_edge.converters.plan import Count, Judge, Quantize
from pipnet_edge.converters.quantize import calibration
from pipnet_edge.converters.quantize.budget import Budget
from pipnet_edge.converters.quantize.calibration import Calibration, Face
from pipnet_edge.decode import Decoder, Landmarks
from pipnet_edge.errors import EdgeError


@dataclass(frozen=True, eq=False)
class Jury:
    """It says whether variants stay within a budget.

    crops: (n, S, S, 3) uint8 RGB, faces that nothing is calibrated with. reference: the float network's landmarks for
    them. truth: their labels (n, L, 2), normalised to the crop; None if the budget does not need them.
    """

    budget: Budget
    judge: Judge
    crops: NDArray[np.uint8]
    reference: Landmarks
    truth: NDArray[np.float64] | None

    def verdict(self, bundle: Bundle, count: Count) -> Mapping[str, float]:
        """What the judge says about the only variant of a bundle on disk. count: gets how many faces are done."""
        (variant,) = bundle.variants
        return self.judge(bundle, variant.name, self.crops, self.reference, self.truth, count)


@dataclass(frozen=True, eq=False)
class Faces:
    """The calibration faces, and the jury if there is a budget."""

    calibration: Calibration
    jury: Jury | None


def gather(given: Quantize, network: Network) -> Faces:
    """Reads the faces to calibrate with, and those to judge a budget by.

    Raises EdgeError for too few faces, for images that cannot be used, and if a budget needs labels but has none.
    """
    faces, side, jury = list(given.faces), network.spec.input_size, None
    if given.budget and given.judge:
        faces, others = calibration.split(faces, given.count, given.seed)
        held = calibration.choose(others, side, len(others))
        truth = _labels(given, held.faces, network.spec.num_lms) if given.budget.metric == "nme" else None
        reference = Decoder(network.spec)(maps_of(network, held.crops))
        jury = Jury(given.budget, given.judge, held.crops, reference, truth)
    return Faces(calibration.choose(faces, side, given.count, given.seed), jury)


def _labels(given: Quantize, faces: Sequence[Face], num_lms: int) -> NDArray[np.float64]:
    """The labels (n, L, 2) of these faces. Raises EdgeError if one is missing, or for another L."""
    labels = [points for face in faces if (points := given.faces[face]) is not None]
    if len(labels) != len(faces):
        raise EdgeError(f"a budget of {given.budget} needs labels: give --calibrate-labels")
    if len(labels[0]) != num_lms:
        raise EdgeError(
            f"a budget of {given.budget} needs labels of {num_lms} landmarks, as the checkpoint has; "
            f"--calibrate-labels has {len(labels[0])}"
        )
    return np.stack(labels)
