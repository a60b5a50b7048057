"""Random networks, and what they give."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import strategies as st

from pipnet_edge.decode import Heads, Maps, map_shapes
from pipnet_edge.spec import MeanFace, ModelSpec

RandomMaps = Callable[..., Maps]


@pytest.fixture(scope="session")
def random_maps() -> RandomMaps:
    """random_maps(spec, seed, batch=None): offsets of a few cells and small whole scores, so that ties are frequent."""

    def make(spec: ModelSpec, seed: int, batch: int | None = None) -> Maps:
        random = np.random.default_rng(seed)
        lead = () if batch is None else (batch,)
        arrays = {
            name: random.normal(0, 3, lead + shape).astype(np.float32) for name, shape in map_shapes(spec).items()
        }
        arrays["score"] = random.integers(-3, 3, arrays["score"].shape).astype(np.float32)
        return Maps(**arrays)

    return make


@pytest.fixture(scope="session")
def random_heads() -> Callable[[ModelSpec, int, int], Heads]:
    """random_heads(spec, channels, seed): they give offsets of a few cells, whatever the number of channels."""

    def make(spec: ModelSpec, channels: int, seed: int) -> Heads:
        random = np.random.default_rng(seed)
        shape = (spec.num_lms, 2, 1 + spec.num_nb)
        weight = random.normal(0, 1 / np.sqrt(channels), (*shape, channels)).astype(np.float32)
        return Heads(weight, random.normal(0, 1, shape).astype(np.float32))

    return make


@pytest.fixture(scope="session")
def specs() -> Callable[..., st.SearchStrategy[ModelSpec]]:
    """specs(most): any small spec, at most so many landmarks.

    Mean faces lie on a lattice of 1/64: exact, often equal distances.
    """

    @st.composite
    def any_spec(draw: st.DrawFn, most: int = 30) -> ModelSpec:
        whole = st.integers(-8, 72)
        places = draw(st.lists(st.tuples(whole, whole), min_size=2, max_size=most, unique=True))
        face = MeanFace("drawn", tuple((x / 64, y / 64) for x, y in places))
        stride, grid = draw(st.sampled_from((16, 32, 64, 128))), draw(st.integers(1, 8))
        num_nb = draw(st.integers(0, len(places) - 1))
        return ModelSpec("any", len(places), num_nb, stride, stride * grid, face, clamp=draw(st.booleans()))

    return any_spec
