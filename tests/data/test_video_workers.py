import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from cahqp.data.frames import open_frames


class Means(Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, position):
        return self.source.read(position).mean()


def test_workers_read_a_video_that_is_open_already(tmp_path):
    video = cv2.VideoWriter(str(tmp_path / "a.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (96, 64))
    for grey in range(0, 200, 20):
        video.write(np.full((64, 96, 3), grey, np.uint8))
    video.release()
    source = open_frames([tmp_path / "a.mp4"])
    source.read(3)  # its decoder's threads are not in the workers that are forked now
    assert len(list(DataLoader(Means(source), batch_size=5, num_workers=1, timeout=30))) == 2
