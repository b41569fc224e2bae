"""Valid files that attacks change, by name: those of the fuzz targets, and a labelled set with its model."""

from fuzz import frame_targets, label_targets, model_targets, plan_targets
from fuzz.target import Target

SETS = {t.name: t for part in (label_targets, plan_targets, model_targets, frame_targets) for t in part.TARGETS}


def make_labelled(folder):
    """Write a model file with the classes of a labelled set of images."""
    label_targets.write_labels(folder)
    model_targets.make_model(folder, list(label_targets.CLASSES))


SETS["labelled"] = Target("labelled", make_labelled, None)
