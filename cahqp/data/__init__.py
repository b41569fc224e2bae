"""Data pipeline: COCO files, folders, videos, augmentation, batches and DataModules."""
