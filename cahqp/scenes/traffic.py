"""Positions of the road users: a pure function of the seed, the recording and the time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from cahqp.scenes.layout import Lane, Layout
from cahqp.scenes.models import RoadUserModel
from cahqp.scenes.randomness import choose_one, generator
from cahqp.scenes.road_users import CLASSES, build

VEHICLE_SHARES = {"car": 0.45, "bus": 0.12, "truck": 0.15, "motorcycle": 0.28}
VEHICLES_IN_VIEW = 6.2
PEOPLE_IN_VIEW = 3.0
MARGIN = 14.0  # metres by which lanes extend beyond the view at both ends
FIRST_SLOT = 1000  # keeps track ids positive


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
    """

    def __init__(self, seed: int, identity: tuple[int, ...], layout: Layout) -> None:
        self.seed, self.identity, self.layout = seed, identity, layout
        rng = generator(seed, "density", *identity)
        self._lanes = [
            row
            for people, in_view, closest in ((False, VEHICLES_IN_VIEW, 13.0), (True, PEOPLE_IN_VIEW, 2.5))
            for row in self._spacings(people, in_view * float(rng.uniform(0.75, 1.3)), closest)
        ]

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
            driven = time * lane.speed
            first = math.floor((driven - length) / apart) - 1
            for slot in range(first, math.ceil(driven / apart) + 2):
                user = self._slot(number, lane, slot, driven - slot * apart, apart, occupied)
                if user is not None:
                    users.append(user)
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
