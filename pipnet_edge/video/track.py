"""Faces kept from one frame to the next: each is cut where its landmarks were, and detection runs only when it must.

A state machine over two functions, `detect` and `read`: it knows no network, no file and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pipnet_edge.decode import Landmarks
from pipnet_edge.detect.boxes import Found
from pipnet_edge.errors import EdgeError
from pipnet_edge.preprocess import check_pixels
from pipnet_edge.spec import MARGIN, ModelSpec
from pipnet_edge.video.level import Eyes, LevelCrop, around, eyes_of, is_inside
from pipnet_edge.video.smooth import Points, Smoothed, smooth

# A reading with a score below so many times the presence threshold is taken again, cut around its own landmarks.
AGAIN = 1.5

# The longer side of a face's landmarks, in pixels, below which it is lost.
SMALLEST = 20

# Overlaps (intersection over union of boxes): of a detection that is a face tracked already, of two tracks on one face.
KNOWN, SAME = 0.2, 0.5

# Where no face is, it is looked for at least in every so many frames.
NOBODY = 5


@dataclass(frozen=True)
class Reading:
    """Landmarks (L, 2) in pixels of the picture, and the mean of their winning scores."""

    points: Points
    score: float

    @staticmethod
    def of(found: Landmarks, crop: LevelCrop) -> Reading:
        """What was found in one crop."""
        return Reading(crop.to_picture(found.points), float(np.add.reduce(found.score)) / len(found.score))


Picture = NDArray[np.uint8]
Detect = Callable[[Picture], Sequence[Found]]
Read = Callable[[Picture, LevelCrop], Reading]


@dataclass(frozen=True)
class Face:
    """A face in one frame. raw: landmarks (L, 2) in pixels, read in `crop`; points: the same, smoothed.

    id: 1, 2, 3 …; a face that is lost and found again has another. is_new: this is its first frame.
    """

    id: int
    points: Points
    raw: Points
    score: float
    crop: LevelCrop
    is_new: bool


@dataclass(frozen=True)
class Tracked:
    """The faces in one frame, the oldest first, and whether it was detected in."""

    faces: tuple[Face, ...]
    detected: bool


@dataclass(frozen=True)
class Rules:
    """How faces are tracked. Refuses contradictions when it is built (EdgeError).

    presence: the mean winning score from which there is a face; it is the network's own. margin: the side of a crop as
    a multiple of its landmarks' box. faces: at most so many. every: while there are fewer, they are looked for at least
    in every so many frames.
    """

    presence: float
    margin: float = MARGIN
    faces: int = 4
    every: int = 15

    def __post_init__(self) -> None:
        if not 0 < self.presence < math.inf:
            raise EdgeError(f"a presence threshold of {self.presence:g}; a number above 0 is needed")
        if not 1 <= self.margin <= 4:
            raise EdgeError(f"a crop margin of {self.margin:g}; allowed: 1 to 4")
        for name, count in (("faces", self.faces), ("every", self.every)):
            if count < 1:
                raise EdgeError(f"{name} is {count}; a whole number of at least 1 is needed")

    @classmethod
    def of(cls, spec: ModelSpec, faces: int = 4, every: int = 15) -> Rules:
        """With the network's own presence and margin. Raises EdgeError if nobody knows its presence."""
        if spec.presence is None:
            raise EdgeError(
                "the network is not known to tell faces from what is none: the bundle has no presence threshold"
            )
        return cls(spec.presence, spec.margin, faces, every)


@dataclass(frozen=True)
class _Track:
    """A face, its filter, and where it is cut in the next frame."""

    face: Face
    filter: Smoothed
    next: LevelCrop


class Tracker:
    """Faces from frame to frame.

        track = Tracker(detector.find, landmarker.read, landmarker.spec, Rules.of(landmarker.spec))
        for picture, time in frames:
            for face in track(picture, time).faces: ...

    What it does in a frame, in this order:
    1. Each face is read where its landmarks were in the last frame. If its score is below AGAIN times the presence
       threshold, it is read once more around the landmarks just read, and the better reading counts. It is lost if its
       score is below the threshold, its landmarks are too small or their middle has left the picture.
    2. Of two that are on one face, the one with the better score stays (of equals, the older).
    3. While there are fewer than wanted, they are detected: at the start, in a frame where one was lost, and `every`
       frames after a detection. One that finds nobody new is done again after 1, 2, 4 … frames, at most `every`, and at
       most NOBODY while there is no face at all. A box on a face that is tracked is none; another is read as in 1.
    If pictures change their size, all faces are lost.
    """

    def __init__(self, detect: Detect, read: Read, spec: ModelSpec, rules: Rules) -> None:
        self.rules = rules
        self._detect, self._read = detect, read
        self._side, self._eyes = spec.input_size, eyes_of(spec.mean_face)
        self._last_id = 0
        self.reset()

    def reset(self) -> None:
        """Forgets all faces, as after a cut. Their ids are not given again."""
        self._tracks: tuple[_Track, ...] = ()
        self._shape: tuple[int, ...] = ()
        # Frames since the last detection, and how many there have to be until the next.
        self._since = self._wait = 0

    def __call__(self, picture: Picture, time: float) -> Tracked:
        """The faces in an (H, W, 3) uint8 RGB frame at a time in seconds.

        If time goes back or stands still, smoothing begins anew. Raises EdgeError for any other picture or time.
        """
        check_pixels("frame", picture)
        if not math.isfinite(time):
            raise EdgeError(f"a frame's time is {time}; a number of seconds is needed")
        if picture.shape != self._shape:
            self.reset()
            self._shape = picture.shape
        followed = [self._track(picture, time, track.next, track.face.id, track.filter) for track in self._tracks]
        tracks = _distinct([track for track in followed if track])
        self._since += 1
        if len(tracks) < len(self._tracks):
            self._wait = 0
        detected = len(tracks) < self.rules.faces and self._since >= self._wait
        if detected:
            new = self._new(picture, time, tracks)
            tracks += new
            longest = self.rules.every if tracks else min(NOBODY, self.rules.every)
            self._since, self._wait = 0, longest if new else min(max(1, 2 * self._wait), longest)
        self._tracks = tuple(tracks)
        return Tracked(tuple(track.face for track in tracks), detected)

    def _new(self, picture: Picture, time: float, tracks: Sequence[_Track]) -> list[_Track]:
        """Tracks of the faces that are detected, the best scores first, and are not tracked yet."""
        known = [_box(track.face.raw) for track in tracks]
        wanted, new = self.rules.faces - len(tracks), list[_Track]()
        found = sorted(self._detect(picture), key=lambda face: -face.score)
        corners = [np.array([[x, y], [x + w, y + h]]) for x, y, w, h in (face.box for face in found)]
        unknown = [face for face in corners if all(_overlap(_box(face), box) < KNOWN for box in known)]
        # A reading takes milliseconds. A detector that finds faces everywhere must not stop the video.
        for face in unknown[: 2 * wanted]:
            crop = self._crop(face, None) if len(new) < wanted else None
            track = self._track(picture, time, crop, self._last_id + 1, None) if crop else None
            if track and all(_overlap(_box(track.face.raw), box) <= SAME for box in known):
                self._last_id += 1
                known.append(_box(track.face.raw))
                new.append(track)
        return new

    def _track(
        self, picture: Picture, time: float, crop: LevelCrop, face_id: int, before: Smoothed | None
    ) -> _Track | None:
        """A face read in a crop, or around what was read there, None if there is none."""
        reading = self._read(picture, crop)
        around_it = self._crop(reading.points, self._eyes)
        if around_it and reading.score < AGAIN * self.rules.presence:
            second = self._read(picture, around_it)
            if second.score > reading.score:
                reading, crop, around_it = second, around_it, self._crop(second.points, self._eyes)
        if around_it is None or reading.score < self.rules.presence:
            return None
        smoothed = smooth(before, reading.points, time)
        face = Face(face_id, smoothed.points, reading.points, reading.score, crop, before is None)
        return _Track(face, smoothed, around_it)

    def _crop(self, points: NDArray[np.floating], eyes: Eyes | None) -> LevelCrop | None:
        """The crop around landmarks or corners, None if it is too small or too large or its middle is not in sight."""
        try:
            crop = around(points, eyes, self._side, self.rules.margin)
        except EdgeError:
            return None
        height, width = self._shape[:2]
        return crop if crop.size >= SMALLEST * self.rules.margin and is_inside(crop, width, height) else None


def _distinct(tracks: Sequence[_Track]) -> list[_Track]:
    """The tracks, in their order. Of two on one face the one with the better score, of equals the older."""
    if len(tracks) < 2:
        return list(tracks)
    boxes = [_box(track.face.raw) for track in tracks]
    dropped = set[int]()
    for a, b in combinations(range(len(tracks)), 2):
        if not dropped & {a, b} and _overlap(boxes[a], boxes[b]) > SAME:
            dropped.add(b if tracks[a].face.score >= tracks[b].face.score else a)
    return [track for index, track in enumerate(tracks) if index not in dropped]


def _box(points: NDArray[np.floating]) -> tuple[float, float, float, float]:
    """left, top, right, bottom of points (n, 2)."""
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes, 0 if one has no size."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)
