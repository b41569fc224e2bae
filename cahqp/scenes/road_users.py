"""The five classes of road users, and models of individuals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from cahqp.scenes.models import Colour, Lamp, Part, Points, RoadUserModel, assemble, box, disc, extrude
from cahqp.scenes.randomness import choose_one, generator

CLASSES = ("car", "bus", "truck", "motorcycle", "person")

GLASS: Colour = (52, 62, 74)
TYRE: Colour = (26, 26, 28)
HUB: Colour = (130, 130, 134)
LENS: Colour = (232, 232, 222)
REAR_LENS: Colour = (168, 22, 22)
PLATE: Colour = (226, 226, 214)
HEADLIGHT: Colour = (1.0, 0.95, 0.82)
SALOON_LIGHT: Colour = (0.62, 0.58, 0.46)
TAIL_LIGHT: Colour = (1.0, 0.12, 0.08)

PAINTS: tuple[Colour, ...] = (
    (226, 228, 230), (188, 192, 196), (118, 122, 128), (46, 48, 54), (32, 34, 40), (150, 32, 34), (42, 66, 128),
    (70, 100, 150), (56, 86, 66), (176, 158, 120), (196, 122, 46), (206, 184, 60), (98, 56, 44),
)  # fmt: skip
BUS_PAINTS: tuple[Colour, ...] = ((206, 170, 48), (178, 44, 40), (60, 120, 72), (62, 96, 168), (214, 216, 218))
CARGO_PAINTS: tuple[Colour, ...] = ((222, 222, 220), (196, 190, 174), (66, 92, 140), (160, 68, 48), (104, 128, 108))
CLOTHES: tuple[Colour, ...] = (
    (168, 44, 48), (42, 62, 120), (30, 32, 38), (206, 204, 198), (72, 116, 82), (196, 152, 62), (116, 72, 120),
    (90, 94, 102), (52, 128, 150),
)  # fmt: skip
SKIN: tuple[Colour, ...] = ((222, 182, 154), (186, 138, 104), (116, 80, 60))


def _pick(rng: np.random.Generator, colours: Sequence[Colour]) -> Colour:
    varied = np.array(colours[int(rng.integers(len(colours)))]) * rng.uniform(0.88, 1.08) + rng.normal(0, 5, 3)
    red, green, blue = np.clip(varied, 12, 245)
    return float(red), float(green), float(blue)


def _darker(colour: Colour, share: float) -> Colour:
    return colour[0] * share, colour[1] * share, colour[2] * share


def _wheels(positions: Sequence[float], radius: float) -> list[tuple[Points, Colour]]:
    tyres: list[tuple[Points, Colour]] = [(disc(x, radius, radius), TYRE) for x in positions]
    return tyres + [(disc(x, radius, radius * 0.5, 6), HUB) for x in positions]


def _face_lights(part: Part, x: float, ahead: int, half_width: float, z: float, width: float, height: float) -> None:
    """Add lenses and plate to the front or the rear, which distinguish both ends by day."""
    colour = LENS if ahead > 0 else REAR_LENS
    for side in (-1, 1):
        edge, inner = side * half_width * 0.96, side * (half_width * 0.96 - width)
        _upright(part, x, ahead, (edge, inner), (z, z + height), colour)
    _upright(part, x, ahead, (-0.26, 0.26), (z - 0.2, z - 0.06), PLATE)


def _upright(
    part: Part, x: float, ahead: int, across: tuple[float, float], up: tuple[float, float], colour: Colour
) -> None:
    corners = [(across[0], up[0]), (across[1], up[0]), (across[1], up[1]), (across[0], up[1])]
    polygon = np.array([(x + 0.01 * ahead, y, z) for y, z in corners], np.float32)
    part.add(polygon, np.array([ahead, 0, 0], np.float32), colour)


def _vehicle_lamps(front: float, rear: float, half_width: float, z: float, rear_z: float, size: float) -> list[Lamp]:
    lamps = []
    for side in (-1, 1):
        y = side * half_width * 0.8
        lamps.append(Lamp((front, y, z), 1, HEADLIGHT, size, 1.0))
        lamps.append(Lamp((rear, y, rear_z), -1, TAIL_LIGHT, size * 0.95, 0.3))
    return lamps


# Corners of the cabin from the rear, as shares of the length; height and length in metres.
_CAR_STYLES = {
    "sedan": ((-0.43, -0.28, 0.04, 0.21), 1.43, 4.5),
    "hatchback": ((-0.48, -0.41, 0.05, 0.24), 1.48, 4.0),
    "estate": ((-0.49, -0.45, 0.04, 0.22), 1.5, 4.6),
    "suv": ((-0.49, -0.44, 0.06, 0.24), 1.76, 4.6),
    "van": ((-0.49, -0.47, 0.22, 0.37), 1.95, 4.7),
    "pickup": ((-0.12, -0.09, 0.12, 0.25), 1.78, 5.1),
}


def _car(rng: np.random.Generator) -> RoadUserModel:
    style = list(_CAR_STYLES)[int(rng.integers(len(_CAR_STYLES)))]
    roof, height, length = _CAR_STYLES[style]
    length *= rng.uniform(0.94, 1.06)
    height *= rng.uniform(0.96, 1.04)
    half, width = length / 2, rng.uniform(0.86, 0.95)
    belt = height * 0.61
    paint = _pick(rng, PAINTS)
    profile = [
        (-half, 0.26), (half, 0.26), (half, belt * 0.74), (roof[3] * length + 0.1, belt), (-half * 0.94, belt),
        (-half, belt * 0.88),
    ]  # fmt: skip
    wheels = _wheels((-length * 0.3, length * 0.31), 0.34)
    bands = [(box(-half, half, 0.26, 0.36), _darker(paint, 0.4))]
    body = extrude(profile, width, paint, decals=[*bands, *wheels])
    _face_lights(body, half, 1, width, 0.55, 0.36, 0.16)
    _face_lights(body, -half, -1, width, belt * 0.68, 0.3, 0.2)
    rear_low, rear_top, front_top, front_low = (share * length for share in roof)
    cabin_base = belt - 0.06
    cabin_profile = [(rear_low, cabin_base), (front_low, cabin_base), (front_top, height), (rear_top, height)]
    low, high, middle = belt + 0.02, height - 0.1, (rear_top + front_top) / 2
    windows: list[tuple[Points, Colour]] = [
        ([(middle + 0.06, low), (front_low - 0.34, low), (front_top - 0.05, high), (middle + 0.06, high)], GLASS)
    ]
    if not (style == "van" and rng.random() < 0.5):
        back = [(rear_low + 0.26, low), (middle - 0.06, low), (middle - 0.06, high), (rear_top + 0.1, high)]
        windows.append((back, GLASS))
    roof_paint = _darker(paint, 0.97)
    cabin = extrude(
        cabin_profile, width * 0.95, roof_paint, level=1, top_width=width * 0.78, strips={1: GLASS, 3: GLASS},
        decals=windows,
    )  # fmt: skip
    return assemble([body, cabin], _vehicle_lamps(half, -half, width, 0.64, belt * 0.75, 0.14))


def _bus(rng: np.random.Generator) -> RoadUserModel:
    half, width, height = rng.uniform(4.4, 5.3), 1.26, rng.uniform(2.9, 3.15)
    paint, stripe = _pick(rng, BUS_PAINTS), _pick(rng, BUS_PAINTS)
    wheels = _wheels((-half * 0.58, half * 0.6), 0.48)
    decals: list[tuple[Points, Colour]] = [(box(-half, half, 0.3, 0.45), _darker(paint, 0.4))]
    if rng.random() < 0.7:
        decals.append((box(-half, half, 0.95, 1.25), stripe))
    count = int(rng.integers(5, 8))
    edges = np.linspace(-half + 0.3, half - 0.25, count + 1)
    for start, end in pairwise(edges):
        decals.append((box(float(start) + 0.07, float(end) - 0.07, 1.5, height - 0.5), GLASS))
    body = extrude(box(-half, half, 0.3, height), width, paint, decals=[*decals, *wheels])
    _upright(body, half, 1, (-width * 0.92, width * 0.92), (1.25, height - 0.62), GLASS)
    _upright(body, half, 1, (-width * 0.6, width * 0.6), (height - 0.5, height - 0.18), (236, 160, 40))
    _upright(body, -half, -1, (-width * 0.75, width * 0.75), (1.6, height - 0.6), GLASS)
    _face_lights(body, half, 1, width, 0.7, 0.36, 0.22)
    _face_lights(body, -half, -1, width, 0.8, 0.24, 0.4)
    hatch = extrude(box(-half * 0.7, -half * 0.3, height, height + 0.2), 0.7, _darker(paint, 0.85), level=1)
    lamps = _vehicle_lamps(half, -half, width, 0.8, 1.0, 0.15)
    lamps.append(Lamp((half, 0.0, height - 0.34), 1, (1.0, 0.62, 0.15), 0.16, 0.1))
    extent = (half / count - 0.12, (height - 2.0) / 2)  # light from inside, visible through the windows
    for x in (edges[:-1] + edges[1:]) / 2:
        for side in (-1, 1):
            place = (float(x), side * width, (height + 1.0) / 2)
            lamps.append(Lamp(place, 0, SALOON_LIGHT, 0.2, 0.05, panel=extent))
    return assemble([body, hatch], lamps)


def _cargo(rng: np.random.Generator, rear: float, front: float) -> list[Part]:
    kind = choose_one(rng, {"box": 0.55, "tipper": 0.25, "tanker": 0.2})
    paint = _pick(rng, CARGO_PAINTS)
    if kind == "box":
        top = rng.uniform(2.8, 3.3)
        label = box(rear + 0.8, front - 0.8, 1.6, top - 0.6)
        decals: list[tuple[Points, Colour]] = [(label, _pick(rng, CARGO_PAINTS))] if rng.random() < 0.6 else []
        part = extrude(box(rear, front, 0.95, top), 1.24, paint, level=1, decals=decals)
        _upright(part, rear, -1, (-0.03, 0.03), (1.0, top - 0.1), _darker(paint, 0.5))
        return [part]
    if kind == "tipper":
        profile = [(rear + 0.3, 0.95), (front - 0.2, 0.95), (front, 2.1), (rear, 2.1)]
        ribs = [
            (box(float(x), float(x) + 0.12, 1.0, 2.0), _darker(paint, 0.6))
            for x in np.linspace(rear + 0.5, front - 0.5, 5)
        ]
        tub = extrude(profile, 1.2, paint, level=1, decals=ribs)
        load = box(rear + 0.25, front - 0.25, 2.1, 2.3)
        return [tub, extrude(load, 1.0, (118, 96, 70), level=2, top_width=0.4)]
    middle, hull = 1.85, []
    for level, (low, high, base, top_width) in enumerate(((0.95, middle, 0.7, 1.2), (middle, 2.75, 1.2, 0.6))):
        hull.append(extrude(box(rear, front, low, high), base, paint, level=level + 1, top_width=top_width))
    return hull


def _truck(rng: np.random.Generator) -> RoadUserModel:
    half, width = rng.uniform(3.3, 4.3), 1.18
    paint = _pick(rng, PAINTS)
    cab_rear, height = half - rng.uniform(1.7, 2.0), rng.uniform(2.4, 2.75)
    wheels = _wheels((-half * 0.72, -half * 0.42, half * 0.7), 0.48)
    chassis = extrude(box(-half, half - 0.1, 0.45, 0.98), width * 0.96, (44, 44, 48), decals=wheels)
    _face_lights(chassis, -half, -1, width, 0.62, 0.3, 0.22)
    profile = [(cab_rear, 0.5), (half, 0.5), (half, 1.35), (half - 0.25, height), (cab_rear, height)]
    window = [(cab_rear + 0.5, 1.5), (half - 0.2, 1.5), (half - 0.36, height - 0.28), (cab_rear + 0.5, height - 0.28)]
    front_wheel = _wheels((half * 0.7,), 0.48)
    cab = extrude(profile, width, paint, level=1, strips={2: GLASS}, decals=[(window, GLASS), *front_wheel])
    _upright(cab, half, 1, (-width * 0.7, width * 0.7), (0.85, 1.2), _darker(paint, 0.35))
    _face_lights(cab, half, 1, width, 0.62, 0.34, 0.2)
    parts = [chassis, cab, *_cargo(rng, -half, cab_rear - 0.15)]
    lamps = _vehicle_lamps(half, -half, width, 0.75, 0.75, 0.15)
    lamps.extend(Lamp((half - 0.25, y, height), 1, (1.0, 0.7, 0.25), 0.06, 0.06) for y in (-0.9, 0.0, 0.9))
    lamps.extend(
        Lamp((x, s * width, 0.9), 0, (1.0, 0.55, 0.1), 0.05, 0.03) for x in (-half * 0.5, 0.0) for s in (-1, 1)
    )
    return assemble(parts, lamps)


def _motorcycle(rng: np.random.Generator) -> RoadUserModel:
    paint, jacket = _pick(rng, PAINTS), _pick(rng, CLOTHES)
    helmet, trousers = _pick(rng, PAINTS), _darker(_pick(rng, CLOTHES), 0.55)
    wheels = [extrude(disc(x, 0.32, 0.33), 0.08, TYRE) for x in (-0.72, 0.74)]
    engine = extrude([(-0.45, 0.26), (0.36, 0.26), (0.5, 0.64), (-0.5, 0.64)], 0.18, (52, 52, 56), level=1)
    seat = [(-0.95, 0.72), (-0.3, 0.6), (0.5, 0.62), (0.56, 0.9), (0.3, 1.0), (-0.9, 0.84)]
    body = extrude(seat, 0.17, paint, level=2, top_width=0.22)
    fairing = extrude([(0.5, 0.75), (0.82, 0.72), (0.7, 1.22), (0.52, 1.12)], 0.3, _darker(paint, 0.9), level=2)
    _upright(fairing, 0.8, 1, (-0.12, 0.12), (0.8, 1.0), LENS)
    _upright(body, -0.95, -1, (-0.1, 0.1), (0.74, 0.84), REAR_LENS)
    thighs = [(-0.25, 0.5), (0.2, 0.42), (0.38, 0.85), (-0.1, 0.98)]
    legs = extrude(thighs, 0.36, trousers, level=3, top_width=0.3)
    torso_profile = [(-0.3, 0.86), (0.06, 0.88), (0.3, 1.42), (-0.02, 1.5), (-0.2, 1.35)]
    torso = extrude(torso_profile, 0.24, jacket, level=4, top_width=0.3)
    arms = extrude([(0.05, 1.2), (0.6, 1.02), (0.62, 1.12), (0.22, 1.4)], 0.38, _darker(jacket, 0.85), level=5)
    head = extrude(disc(0.2, 1.62, 0.17), 0.14, helmet, level=6, decals=[(box(0.2, 0.36, 1.58, 1.68), GLASS)])
    lamps = [
        Lamp((0.82, 0.0, 0.9), 1, HEADLIGHT, 0.13, 1.0),
        Lamp((-0.96, 0.0, 0.8), -1, TAIL_LIGHT, 0.1, 0.25),
    ]
    return assemble([*wheels, engine, body, fairing, legs, torso, arms, head], lamps)


def _person(rng: np.random.Generator, stride: float) -> RoadUserModel:
    tall = rng.uniform(0.93, 1.07)
    jacket, trousers, skin = _pick(rng, CLOTHES), _darker(_pick(rng, CLOTHES), 0.7), _pick(rng, SKIN)
    hair = _darker(_pick(rng, PAINTS), 0.4)

    def high(points: Points) -> Points:
        return [(x, z * tall) for x, z in points]

    parts = []
    for side, step in ((-1, stride), (1, -stride)):
        foot = step * 0.34
        leg = [(foot - 0.1, 0.0), (foot + 0.16, 0.0), (0.11, 0.88), (-0.11, 0.88)]
        parts.append(extrude(high(leg), 0.09, trousers, top_width=0.1, centre=side * 0.11))
    for side, step in ((-1, -stride), (1, stride)):
        hand = step * 0.26
        arm = [(hand - 0.06, 0.8), (hand + 0.08, 0.8), (0.08, 1.42), (-0.08, 1.42)]
        parts.append(extrude(high(arm), 0.06, _darker(jacket, 0.82), level=1, centre=side * 0.3))
    torso = extrude(high(box(-0.15, 0.15, 0.82, 1.46)), 0.2, jacket, level=1, top_width=0.25)
    parts.append(torso)
    if rng.random() < 0.45:
        bag = high(box(-0.36, -0.15, 0.95, 1.4))
        parts.append(extrude(bag, 0.17, _pick(rng, CLOTHES), level=1))
    parts.append(extrude(high(disc(0.0, 1.62, 0.14)), 0.1, skin, level=2))
    parts.append(extrude(high(disc(-0.03, 1.68, 0.12)), 0.105, hair, level=3))
    return assemble(parts, [])


_BUILDERS: dict[str, Callable[[np.random.Generator], RoadUserModel]] = {
    "car": _car,
    "bus": _bus,
    "truck": _truck,
    "motorcycle": _motorcycle,
}


def build(label: int, identity: tuple[int, ...], phase: int = 0) -> RoadUserModel:
    """Build the model of one individual.

    Args:
        label: Index in `CLASSES`.
        identity: Seed, and numbers that identify the individual.
        phase: Phase of a person's step, 0..3.
    """
    rng = generator(identity[0], "individual", *identity[1:])
    name = CLASSES[label]
    if name == "person":
        return _person(rng, (1.0, 0.2, -1.0, -0.2)[phase % 4])
    return _BUILDERS[name](rng)
