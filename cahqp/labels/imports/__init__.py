"""`cahqp import`: labels in other layouts as one validated COCO file; imports no torch."""
