import numpy as np

from cahqp.labels.calibration.curves import fit


def test_a_class_with_three_objects_shares_the_curve_of_all_classes():
    rng = np.random.default_rng(0)
    scores = {"car": rng.uniform(0, 1, 200), "bus": rng.uniform(0, 1, 40)}
    hits = {"car": scores["car"] > 0.5, "bus": np.arange(40) < 3}
    curves = fit("isotonic", scores, hits)
    assert curves["car"].own
    assert not curves["bus"].own
