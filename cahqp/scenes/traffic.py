"""Positions of the road users: a pure function of the seed, the recording and the time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from cahqp.scenes.layout import Lane, Layout
from cahqp.scenes.models import RoadUserModel
from cahqp.scenes.randomness import choose_one, generator
from cahqp.scenes.road_users import CLASSES, build

VEHICLE_SHARES = {"car": 0.45, "bus": 0.12, "truck": 0.15, "motorcycle": 0.28}
VEHICLES_IN_VIEW = 6.2
PEOPLE_IN_VIEW = 3.0
PARKING_OFFSET = 2.4  # metres from the middle of the outermost lane, half on the pavement
PARKING_GAP = 9.0  # smallest distance of parked vehicles in metres; a bus is longer than a car
MARGIN = 14.0  # metres by which lanes extend beyond the view at both ends
FIRST_SLOT = 1000  # keeps track ids positive
FIRST_PARKED = 10_000_000  # track ids of parked vehicles; those of slots stay far below
SIGNAL_PERIOD = 24.0  # seconds from one green light to the next


@dataclass(frozen=True)
class RoadUser:
    """Vehicle or person at one moment.

    Attributes:
        label: Index in `CLASSES`.
        track_id: Constant over all frames of a recording, and unique.
        x: Position of the middle in metres.
        y: Position of the middle in metres.
        angle: Direction in radians, from straight ahead (0) to the right.
        model: Shape.
    """

    label: int
    track_id: int
    x: float
    y: float
    angle: float
    model: RoadUserModel


@dataclass(frozen=True)
class Stops:
    """Vehicles that stand still. People never do.

    Attributes:
        waiting: Share of the time, 0..1, in which the vehicles of a lane wait, as in a queue at lights.
        parked: Mean number of parked vehicles beside the road, with their lights off.
    """

    waiting: float = 0.0
    parked: float = 0.0


@lru_cache(maxsize=512)
def _model(label: int, identity: tuple[int, ...], phase: int) -> RoadUserModel:
    return build(label, identity, phase)


class Traffic:
    """Road users of one recording.

    Every lane is a row of slots that move at its speed, evenly spaced apart from a jitter. A slot is permanently empty
    or contains one road user. The spacing gives the intended mean number of road users in view.

    Args:
        seed: Seed of the world.
        identity: Whole numbers that distinguish this recording's traffic from that of others.
        layout: Surroundings, with the lanes.
        stops: Waiting and parked vehicles; by default all road users move.
    """

    def __init__(self, seed: int, identity: tuple[int, ...], layout: Layout, stops: Stops | None = None) -> None:
        self.seed, self.identity, self.layout, self.stops = seed, identity, layout, stops or Stops()
        rng = generator(seed, "density", *identity)
        self._lanes = [
            row
            for people, in_view, closest in ((False, VEHICLES_IN_VIEW, 13.0), (True, PEOPLE_IN_VIEW, 2.5))
            for row in self._spacings(people, in_view * float(rng.uniform(0.75, 1.3)), closest)
        ]
        self._parked = self._park() if self.stops.parked else []

    def _spacings(self, people: bool, in_view: float, closest: float) -> list[tuple[int, Lane, float, float]]:
        """Return lanes with the metres between slots and the share of occupied slots.

        Args:
            people: Lanes of people, not of vehicles.
            in_view: Mean number of road users in view.
            closest: Smallest distance between slots in metres.
        """
        lanes = [(number, lane) for number, lane in enumerate(self.layout.lanes) if lane.pavement == people]
        length = sum(lane.end - lane.start for _, lane in lanes)
        apart = max(length / max(in_view, 1e-6) * 0.7, closest)
        return [(number, lane, apart, min(in_view * apart / max(length, 1e-6), 1.0)) for number, lane in lanes]

    def at(self, time: float) -> list[RoadUser]:
        """Return the road users in or near the view `time` seconds after the first frame."""
        users = []
        for number, lane, apart, occupied in self._lanes:
            length = lane.end - lane.start + 2 * MARGIN
            driven = (time if lane.pavement else self._moving_time(number, time)) * lane.speed
            first = math.floor((driven - length) / apart) - 1
            for slot in range(first, math.ceil(driven / apart) + 2):
                user = self._slot(number, lane, slot, driven - slot * apart, apart, occupied)
                if user is not None:
                    users.append(user)
        return users + self._parked

    def _moving_time(self, number: int, time: float) -> float:
        """Return the seconds until `time` in which a lane's vehicles moved. Each lane has a signal phase of its own."""
        if not self.stops.waiting:
            return time
        green = (1 - self.stops.waiting) * SIGNAL_PERIOD
        start = float(generator(self.seed, "signal", *self.identity, number).uniform(0, SIGNAL_PERIOD))

        def moved(until: float) -> float:
            periods, rest = divmod(until, SIGNAL_PERIOD)
            return periods * green + min(rest, green)

        return moved(start + time) - moved(start)

    def _park(self) -> list[RoadUser]:
        """Return parked vehicles, at the kerb of the outermost lane of either direction."""
        lanes = [lane for lane in self.layout.lanes if not lane.pavement]
        outermost = [max(own, key=lambda lane: abs(lane.offset)) for own in _by_direction(lanes)]
        rng = generator(self.seed, "parked", *self.identity)
        users: list[RoadUser] = []
        for number in range(int(rng.poisson(self.stops.parked)) if outermost else 0):
            lane = outermost[int(rng.integers(len(outermost)))]
            label = CLASSES.index(choose_one(rng, VEHICLE_SHARES))
            along = float(rng.uniform(lane.start, lane.end))
            x, y, angle = self.layout.road.at(along, lane.offset + math.copysign(PARKING_OFFSET, lane.offset))
            if any(math.hypot(float(x) - user.x, float(y) - user.y) < PARKING_GAP for user in users):
                continue  # too close to a parked vehicle
            model = replace(_model(label, (self.seed, *self.identity, FIRST_PARKED, number), 0), lamps=[])
            heading = float(angle) if lane.direction > 0 else float(angle) + math.pi
            users.append(RoadUser(label, FIRST_PARKED + number, float(x), float(y), heading, model))
        return users

    def _slot(
        self, number: int, lane: Lane, slot: int, travelled: float, apart: float, occupied: float
    ) -> RoadUser | None:
        identity = (self.seed, *self.identity, number, slot)
        rng = generator(self.seed, "slot", *identity[1:])
        if rng.random() > occupied:
            return None
        label = CLASSES.index("person" if lane.pavement else choose_one(rng, VEHICLE_SHARES))
        travelled += float(rng.uniform(-0.5, 0.5)) * max(apart - (2.0 if lane.pavement else 12.5), 0.0)
        if not 0 <= travelled <= lane.end - lane.start + 2 * MARGIN:
            return None
        along = lane.start - MARGIN + travelled if lane.direction > 0 else lane.end + MARGIN - travelled
        shift = float(rng.normal(0, 0.18))
        x, y, angle = self.layout.road.at(along, lane.offset + shift)
        heading = float(angle) if lane.direction > 0 else float(angle) + math.pi
        phase = int(travelled / 0.4) % 4 if lane.pavement else 0
        track_id = (slot + FIRST_SLOT) * len(self.layout.lanes) + number
        return RoadUser(label, track_id, float(x), float(y), heading, _model(label, identity, phase))


def _by_direction(lanes: list[Lane]) -> list[list[Lane]]:
    """Return the lanes of each direction that has any."""
    directions = sorted({lane.direction for lane in lanes})
    return [[lane for lane in lanes if lane.direction == direction] for direction in directions]
