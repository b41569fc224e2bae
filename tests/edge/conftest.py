from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cahqp.__main__ import main
from cahqp.detectors import DINO, RTDETR
from cahqp.detectors.model_file import save

CLASSES = ["car", "bus", "person"]
SMALL = {"dim": 32, "heads": 4, "points": 2, "ffn_dim": 32, "decoder_layers": 1, "queries": 12, "max_detections": 12}


def decided(detector):
    """Give an untrained detector opinions: scores that lie apart, some of them high."""
    torch.manual_seed(7)
    with torch.no_grad():
        for head in [*detector.class_heads, detector.proposal_class]:
            head.weight.normal_(std=0.6)
            head.bias.fill_(-0.5)
        for head in detector.box_heads:
            head.layers[-1].weight.normal_(std=0.3)
    return detector.eval()


def picture(seed, height=80, width=140):
    """A frame of blocks, (H, W, 3) uint8 BGR."""
    random = np.random.default_rng(seed)
    image = np.full((height, width, 3), 90, np.uint8)
    for _ in range(12):
        top, left = random.integers(0, height - 20), random.integers(0, width - 20)
        image[top : top + random.integers(5, 30), left : left + random.integers(5, 30)] = random.integers(0, 256, 3)
    return image


@pytest.fixture(scope="session")
def edge(tmp_path_factory):
    """Model files of both kinds, packages of them, and a folder of frames; never written to."""
    root = tmp_path_factory.mktemp("edge")
    torch.manual_seed(1)
    student = RTDETR(CLASSES, backbone_width=8, fusion_blocks=1, size=(64, 96), **SMALL)
    options = {"channels": [8, 16, 16, 32], "stem_width": 8}
    teacher = DINO(
        CLASSES, backbone="resnet10t", backbone_options=options, short_side=64, max_side=120, levels=3,
        encoder_layers=1, **SMALL,
    )  # fmt: skip
    for name, detector in (("student", student), ("teacher", teacher)):
        save(root / f"{name}.safetensors", decided(detector))
    (root / "frames").mkdir()
    for number in range(6):
        cv2.imwrite(str(root / "frames" / f"{number}.png"), picture(number))
    assert export(root, "student", f"--frames={root / 'frames'}") == 0
    return root


def export(root: Path, name: str, *given: str, output: str | None = None) -> int:
    return main(
        ["export", f"--weights={root / name}.safetensors", f"--output={root / (output or f'{name}-package')}", *given]
    )


@pytest.fixture
def coco(edge, tmp_path):
    """Write a COCO file of pictures whose truth is what the student's package says of them."""
    import json

    from cahqp.edge.package import read_package
    from cahqp.edge.runtime import Runtime

    def write(name, seeds):
        runtime = Runtime(read_package(edge / "student-package"))
        (tmp_path / name).mkdir()
        images, annotations = [], []
        for number, seed in enumerate(seeds, start=1):
            image = np.zeros((80, 140, 3), np.uint8) if seed is None else picture(seed)
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), image)
            size = {"width": 140, "height": 80}
            images.append({"id": number, "file_name": f"{number}.png", "recording": f"r{number}", **size})
            found = runtime.detect([image[:, :, ::-1]])[0].filter_by_score(np.full(3, 0.3, np.float32))
            for box, label in zip(found.boxes.astype(float).tolist(), found.labels.tolist(), strict=True):
                bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "bbox": bbox}
                annotations.append(row)
        categories = [{"id": number, "name": text} for number, text in enumerate(CLASSES, start=1)]
        path = tmp_path / name / "annotations.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        return path

    return write
