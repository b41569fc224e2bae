"""What feeds the detectors: COCO files, folders of frames, videos, augmentation and batches."""
