"""Streams of signals as a camera might send them: slow common waves of traffic, noise of each frame."""

import numpy as np

from cahqp.drift.signals import PLAIN, Signals

VALUES = 8
USUAL = {"brightness": 120.0, "contrast": 50.0, "sharpness": 20.0, "detections": 5.0, "change": 3.0}


def stream(count, camera="north", seed=0, shift=0.0, moved=0.0, correlation=0.6, recording=None, **plain):
    """Return `count` frames; `shift` moves the features by so many spreads, `moved` turns the camera, in
    0..1; `plain` sets plain signals."""
    random = np.random.default_rng(seed)
    wave = np.zeros((count, 2))
    noise = random.normal(size=(count, 2))
    for row in range(count):
        before = wave[row - 1] if row else noise[0]
        wave[row] = correlation * before + np.sqrt(1 - correlation**2) * noise[row]
    mixing = np.random.default_rng(1).normal(size=(2, VALUES))
    features = wave @ mixing + random.normal(size=(count, VALUES)) + shift
    scores = random.poisson(3 + 0 * wave[:, :1], size=(count, 10))
    values = {**USUAL, **plain}
    told = np.stack([values[name] * (1 + 0.05 * random.normal(size=count)) for name in PLAIN], 1)
    place = np.random.default_rng(2).normal(size=16)
    view = np.roll(place, 1) * moved + place * (1 - moved) + 0.1 * random.normal(size=(count, 16))
    return Signals(
        features=features.astype(np.float32),
        scores=scores.astype(np.float32),
        plain=told.astype(np.float32),
        view=view.astype(np.float32),
        uncertainty=random.random(count).astype(np.float32),
        readable=np.ones(count, np.bool_),
        names=[f"{camera}/{row}.jpg" for row in range(count)],
        cameras=[camera] * count,
        recordings=[recording or camera] * count,
        indices=list(range(count)),
        times=[float(row) for row in range(count)],
    )
