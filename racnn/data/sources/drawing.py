"""Draw the built-in data set: birds that differ in a detail.

Eight species come in four look-alike pairs. A pair is told by its shape and colours, which even a small view of the whole
photo shows; the two species of a pair differ only in the telling part, a disc a tenth of the bird across, which both fill
with the same two colours, in equal areas, arranged differently. Averaged down until the disc is one to three pixels wide,
the two arrangements are nearly the same blur, and looking closer is what helps. The same discs, of both arrangements, also
lie about in the background: one tells nothing unless it is on the bird.

Nothing is read from disk: a drawing is a function of (seed, index, size) alone.

Convention:
    Images are uint8 [h, w, 3] in RGB. Points (x, y) and boxes (xyxy, outer corners) are in pixels, x right, y down; pixel
    (i, j) covers [j, j + 1) x [i, i + 1). The bird's own frame has x ahead (where the beak points) and y down, in units
    that only matter relative to each other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]
Shape = tuple[np.ndarray, np.ndarray]  # corner points [n, 2], colour [3]

PART_NAME = "telling part"
SPECIES = (
    "Ruby-eyed Reedling",
    "Ruby-ringed Reedling",
    "Bar-winged Greenfinch",
    "Stripe-winged Greenfinch",
    "Spot-breasted Bluebill",
    "Band-breasted Bluebill",
    "Checker-tailed Rosecrake",
    "Target-tailed Rosecrake",
)

# The scene is painted this many times larger and averaged down: smooth edges, exact areas.
_SUPERSAMPLE = 2
_FIXED_POINT_BITS = 4
# What covers half of the unit disc: a band through its middle of this half width, a disc of this radius.
_BAND = 0.4040
_SPOT = 0.5**0.5

_CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 32, endpoint=False)) for f in (np.cos, np.sin)], axis=1)

_BIRD_SIDE = (0.25, 0.50)  # of the photo's side
# Of the bird's side. A small network on whole photos at 64 px is about 60 % right; with (0.115, 0.14), 80 %.
_PART_SIDE = (0.085, 0.105)
_TILT_DEGREES = 25.0
_NUM_DISTRACTORS = (6, 14)


@dataclass(frozen=True)
class Drawing:
    """One photo and its annotations; boxes are in pixels and tight around what is drawn."""

    image: np.ndarray
    label: int
    bird_xyxy: Box
    part_xyxy: Box


@dataclass(frozen=True)
class _Pair:
    """What two look-alike species share (lengths and points in the bird's frame), and how they differ."""

    body: tuple[float, float]  # half length, half height
    body_tilt: float  # degrees, positive lifts the breast
    head: tuple[float, float, float]  # x, y, radius
    beak: tuple[float, float]  # length, thickness
    tail: tuple[float, float, float]  # length, width at the end, degrees it is lifted
    wing: tuple[float, float]  # half length, half height
    leg: float
    part: tuple[float, float]  # centre
    coat: Colour
    belly: Colour
    head_colour: Colour
    wing_colour: Colour
    beak_colour: Colour
    part_colours: tuple[Colour, Colour]
    arrangements: tuple[str, str]


# Where the first of the two colours goes, given points of the unit disc in the bird's directions; half of it.
_ARRANGEMENTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "spot": lambda x, y: x * x + y * y < _SPOT**2,
    "ring": lambda x, y: x * x + y * y >= _SPOT**2,
    "across": lambda x, y: np.abs(x) < _BAND,
    "along": lambda x, y: np.abs(y) < _BAND,
    "checker": lambda x, y: (x > 0) == (y > 0),
}

_PAIRS = (
    _Pair(
        body=(0.30, 0.23), body_tilt=20, head=(0.25, -0.22, 0.18), beak=(0.11, 0.09), tail=(0.46, 0.11, -12),
        wing=(0.24, 0.13), leg=0.13, part=(0.304, -0.242),
        coat=(214, 128, 52), belly=(244, 206, 150), head_colour=(150, 160, 176), wing_colour=(150, 78, 30),
        beak_colour=(240, 190, 60),
        part_colours=((165, 12, 36), (255, 242, 150)), arrangements=("spot", "ring"),
    ),
    _Pair(
        body=(0.36, 0.27), body_tilt=12, head=(0.31, -0.21, 0.19), beak=(0.13, 0.17), tail=(0.27, 0.20, 8),
        wing=(0.27, 0.17), leg=0.12, part=(-0.06, -0.03),
        coat=(112, 196, 58), belly=(222, 232, 120), head_colour=(92, 176, 70), wing_colour=(52, 112, 48),
        beak_colour=(236, 170, 150),
        part_colours=((240, 236, 220), (48, 40, 46)), arrangements=("across", "along"),
    ),
    _Pair(
        body=(0.32, 0.22), body_tilt=42, head=(0.22, -0.30, 0.19), beak=(0.36, 0.09), tail=(0.20, 0.14, -30),
        wing=(0.25, 0.12), leg=0.08, part=(0.17, -0.02),
        coat=(42, 120, 216), belly=(120, 196, 240), head_colour=(36, 92, 190), wing_colour=(26, 62, 140),
        beak_colour=(232, 112, 48),
        part_colours=((110, 14, 22), (255, 214, 120)), arrangements=("spot", "across"),
    ),
    _Pair(
        body=(0.36, 0.18), body_tilt=5, head=(0.46, -0.34, 0.115), beak=(0.20, 0.06), tail=(0.34, 0.40, 26),
        wing=(0.24, 0.10), leg=0.34, part=(-0.37, -0.18),
        coat=(216, 74, 132), belly=(250, 190, 206), head_colour=(190, 50, 104), wing_colour=(140, 40, 96),
        beak_colour=(250, 210, 90),
        part_colours=((20, 44, 84), (236, 246, 226)), arrangements=("checker", "spot"),
    ),
)  # fmt: skip


def draw(*, seed: int, index: int, size: int = 192) -> Drawing:
    """Draw one photo; the same arguments always give the same pixels.

    Args:
        seed: Chooses the data set.
        index: Chooses the photo in it. Its label is ``index % 8``, so every run of eight is balanced.
        size: Side of the square photo in pixels.
    """
    return _draw_as(index % len(SPECIES), seed=seed, index=index, size=size)


def _draw_as(label: int, *, seed: int, index: int, size: int) -> Drawing:
    """Draw (seed, index) as the given species; all that chance decides is the same for the two of a pair."""
    rng = np.random.default_rng((seed, index))
    pair = _PAIRS[label // 2]
    shapes, bird, part, angle = _pose(rng, pair, size)
    canvas = foliage(rng, size * _SUPERSAMPLE)
    _scatter_clutter(rng, canvas, size)
    _scatter_distractors(rng, canvas, size, bird)
    for points, colour in shapes:
        _fill(canvas, points, colour)
    _fill_disc(canvas, part, angle, _jitter(rng, pair.part_colours, 10), pair.arrangements[label % 2])
    image = _photograph(rng, cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA))
    x, y, radius = part.tolist()
    return Drawing(image, label, bird, part_xyxy=(x - radius, y - radius, x + radius, y + radius))


def _pose(rng: np.random.Generator, pair: _Pair, size: int) -> tuple[list[Shape], Box, np.ndarray, float]:
    """Place the bird in the photo: its shapes, box, telling disc (x, y, radius) and angle in radians."""
    angle = np.deg2rad(rng.uniform(-_TILT_DEGREES, _TILT_DEGREES))
    flip = rng.choice((-1.0, 1.0))
    stretch = rng.uniform(0.92, 1.08)
    side = rng.uniform(*_BIRD_SIDE) * size
    diameter = rng.uniform(*_PART_SIDE) * side
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    to_photo = turn @ np.diag([flip * stretch, 1 / stretch])

    shapes = [(points @ to_photo.T, colour) for points, colour in _bird_shapes(rng, pair)]
    corners = np.concatenate([points for points, _ in shapes])
    low, high = corners.min(0), corners.max(0)
    scale = side / (high - low).max()
    extent = (high - low) * scale
    place = rng.uniform(1, size - extent - 1)

    shapes = [((points - low) * scale + place, colour) for points, colour in shapes]
    centre = (to_photo @ pair.part - low) * scale + place
    x0, y0, x1, y1 = np.concatenate([place, place + extent]).tolist()
    return shapes, (x0, y0, x1, y1), np.array([*centre, diameter / 2]), angle


def _bird_shapes(rng: np.random.Generator, pair: _Pair) -> list[Shape]:
    """Polygons of the bird in its own frame, in painting order."""
    coat, belly, head_colour, wing, beak = _jitter(
        rng, (pair.coat, pair.belly, pair.head_colour, pair.wing_colour, pair.beak_colour), 18
    )
    half_length, half_height = pair.body
    head_x, head_y, head_radius = pair.head
    lift = -pair.body_tilt
    neck = np.array(
        [[head_x - head_radius, head_y], [head_x + head_radius * 0.95, head_y], [0.28, 0.02], [-0.1, 0]]
    )
    eye_x, eye_y, eye = head_x + 0.3 * head_radius, head_y - 0.12 * head_radius, 0.2 * head_radius
    return [
        *_leg_shapes(pair, 0.6 * beak),
        (_tail(pair, rng.uniform(0.9, 1.1)), 0.85 * wing),
        (_beak(pair, rng.uniform(0.9, 1.1)), beak),
        (neck, coat),
        (_ellipse(0, 0, half_length, half_height, lift), coat),
        (_ellipse(0.12 * half_length, 0.3 * half_height, 0.72 * half_length, 0.6 * half_height, lift), belly),
        (_ellipse(head_x, head_y, head_radius, head_radius), head_colour),
        (_wing(pair), wing),
        (_ellipse(eye_x, eye_y, eye, eye), np.array([16, 14, 18])),
        (_ellipse(eye_x + 0.3 * eye, eye_y - 0.35 * eye, 0.3 * eye, 0.3 * eye), np.array([245, 245, 245])),
    ]


def _leg_shapes(pair: _Pair, colour: np.ndarray) -> list[Shape]:
    """Two thin legs, each with a foot."""
    top, bottom = 0.5 * pair.body[1], pair.body[1] + pair.leg
    outline = np.array(
        [[0, top], [0.025, top], [0.025, bottom - 0.025], [0.09, bottom - 0.025], [0.09, bottom], [0, bottom]]
    )
    return [(outline + np.array([x, 0]), colour) for x in (-0.06, 0.06)]


def _tail(pair: _Pair, growth: float) -> np.ndarray:
    """A fan from the rear of the body, slightly notched."""
    length, width, lift = pair.tail
    reach = 0.6 * pair.body[0] + length * growth
    fan = [[0, -0.06], [0, 0.06], [-reach, width / 2], [-0.93 * reach, 0], [-reach, -width / 2]]
    return _rotate(np.array(fan), lift)


def _beak(pair: _Pair, growth: float) -> np.ndarray:
    """A triangle at the front of the head."""
    head_x, head_y, head_radius = pair.head
    length, thickness = pair.beak
    root = head_x + 0.85 * head_radius
    tip = head_x + head_radius + length * growth
    return np.array([[root, head_y - thickness / 2], [tip, head_y + 0.03], [root, head_y + thickness / 2]])


def _wing(pair: _Pair) -> np.ndarray:
    """A teardrop on the body, its point towards the tail."""
    half_length, half_height = pair.wing
    taper = (0.55 + 0.45 * _CIRCLE[:, 0]) ** 0.6
    drop = _CIRCLE * [half_length, half_height]
    drop[:, 1] *= taper
    return _rotate(drop, -0.8 * pair.body_tilt) + np.array([-0.08, -0.02])


def _ellipse(x: float, y: float, half_width: float, half_height: float, degrees: float = 0) -> np.ndarray:
    """Corner points of an ellipse, turned about the origin's axes and moved to (x, y) in the turned frame."""
    return _rotate(_CIRCLE * [half_width, half_height] + [x, y], degrees)


def _rotate(points: np.ndarray, degrees: float) -> np.ndarray:
    """Turn points about the origin, clockwise on the screen (y is down)."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return points @ np.array([[c, s], [-s, c]])


def foliage(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return blurred foliage: noise in octaves about a muted colour, uint8 [size, size, 3]."""
    field: np.ndarray = np.zeros((2, 2, 3), np.float32)
    for cells, amplitude in ((3, 18), (6, 16), (12, 14), (24, 12), (64, 11)):
        light = rng.standard_normal((cells, cells, 1), np.float32)
        tint = rng.standard_normal((cells, cells, 3), np.float32)
        field = cv2.resize(field, (cells, cells), interpolation=cv2.INTER_CUBIC)
        field += amplitude * (light + 0.35 * tint)
    field = np.clip(field + rng.uniform((60, 70, 50), (120, 125, 110)), 0, 255).astype(np.uint8)
    return cv2.resize(field, (size, size))


def _scatter_clutter(rng: np.random.Generator, canvas: np.ndarray, size: int) -> None:
    """Paint branches and leaves in muted colours."""
    for _ in range(rng.integers(2, 6)):
        ends = rng.uniform(-0.1, 1.1, (2, 2)) * size
        ahead = ends[1] - ends[0]
        aside = np.array([-ahead[1], ahead[0]]) / (np.hypot(*ahead) + 1e-6) * rng.uniform(0.004, 0.018) * size
        outline = np.stack([ends[0] - aside, ends[0] + aside, ends[1] + 0.4 * aside, ends[1] - 0.4 * aside])
        _fill(canvas, outline, rng.uniform((50, 40, 25), (130, 105, 85)))
    for _ in range(rng.integers(14, 30)):
        half_length = rng.uniform(0.02, 0.08) * size
        leaf = _ellipse(0, 0, half_length, half_length * rng.uniform(0.25, 0.7), rng.uniform(0, 180))
        _fill(canvas, leaf + rng.uniform(0, size, 2), rng.uniform((40, 55, 35), (150, 150, 130)))


def _scatter_distractors(rng: np.random.Generator, canvas: np.ndarray, size: int, bird: Box) -> None:
    """Paint telling discs of any pair beside the bird, some of them as the heart of a flower."""
    for _ in range(rng.integers(_NUM_DISTRACTORS[0], _NUM_DISTRACTORS[1] + 1)):
        pair = _PAIRS[rng.integers(len(_PAIRS))]
        radius = rng.uniform(*_BIRD_SIDE) * rng.uniform(*_PART_SIDE) * size / 2
        disc = np.array([*_place_beside(rng, size, bird, 2.5 * radius), radius])
        angle = np.deg2rad(rng.uniform(-_TILT_DEGREES, _TILT_DEGREES))
        arrangement = pair.arrangements[rng.integers(2)]
        if rng.random() < 0.5:
            petals = _ellipse(0, 0, 2.4 * radius, rng.uniform(1.2, 2.2) * radius, rng.uniform(0, 180))
            _fill(canvas, petals + disc[:2], rng.uniform((50, 50, 50), (200, 180, 190)))
        _fill_disc(canvas, disc, angle, _jitter(rng, pair.part_colours, 10), arrangement)


def _place_beside(rng: np.random.Generator, size: int, bird: Box, room: float) -> np.ndarray:
    """A random point at least `room` away from the bird's box and the photo's border."""
    x_low, y_low, x_high, y_high = bird
    while True:  # the box covers at most a quarter of the photo, so a few tries do
        x, y = rng.uniform(room, size - room, 2)
        if not (x_low - room < x < x_high + room and y_low - room < y < y_high + room):
            return np.array([x, y])


def _jitter(rng: np.random.Generator, colours: tuple[Colour, ...], amount: float) -> np.ndarray:
    """Shift colours [n, 3] a little: all of them together, and each by itself half as much."""
    together = rng.uniform(-amount, amount, (1, 3))
    apart = rng.uniform(-amount / 2, amount / 2, (len(colours), 3))
    return np.clip(np.array(colours) + together + apart, 0, 255)


def _fill(canvas: np.ndarray, points: np.ndarray, colour: np.ndarray) -> None:
    """Fill a polygon given in photo pixels."""
    # OpenCV counts from pixel centres, in fixed point.
    corners = np.rint((points * _SUPERSAMPLE - 0.5) * 2**_FIXED_POINT_BITS).astype(np.int32)
    cv2.fillPoly(canvas, [corners], tuple(map(float, colour)), shift=_FIXED_POINT_BITS)


def _fill_disc(
    canvas: np.ndarray, disc: np.ndarray, angle: float, colours: np.ndarray, arrangement: str
) -> None:
    """Fill a disc, given in photo pixels, with two colours; it must lie inside the photo."""
    x, y, radius = disc * _SUPERSAMPLE
    left, top, right, bottom = map(int, (x - radius, y - radius, x + radius + 1, y + radius + 1))
    across = (np.arange(left, right) + 0.5 - x)[None, :] / radius
    down = (np.arange(top, bottom) + 0.5 - y)[:, None] / radius
    c, s = np.cos(angle), np.sin(angle)
    first = _ARRANGEMENTS[arrangement](c * across + s * down, c * down - s * across)
    inside = across**2 + down**2 < 1
    patch = canvas[top:bottom, left:right]
    patch[inside & first] = colours[0]
    patch[inside & ~first] = colours[1]


def _photograph(rng: np.random.Generator, scene: np.ndarray) -> np.ndarray:
    """Put a scene, uint8 [size, size, 3], in some light, with uneven shade and sensor noise."""
    size = scene.shape[0]
    gains = rng.uniform(0.8, 1.1) * rng.uniform(0.93, 1.07, 3)
    curves = gains * np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.85, 1.2)
    exposed = cv2.LUT(scene, np.clip(255 * curves, 0, 255).astype(np.uint8)[None])
    # One shade for the three colours; repeated, because broadcasting over the last axis is slow.
    shade = np.repeat(rng.uniform(0.85, 1.1, (5, 5, 1)), 3, axis=2).astype(np.float32)
    # Even noise instead of normal noise: 30 times faster to draw, and the eye cannot tell.
    noise = rng.integers(-128, 128, scene.shape, np.int8) * np.float32(rng.uniform(1, 4) / 74)
    return np.clip(exposed * cv2.resize(shade, (size, size)) + noise, 0, 255).astype(np.uint8)
