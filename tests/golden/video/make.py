"""Reference values of prepare_video: frame numbers and sizes (NumPy), a resized frame (PyTorch)."""

import json
import math
import random

import cv2
import numpy as np
import torch


def prepared(case):
    """The arithmetic of Text2Video-Zero's prepare_video."""
    fps_in, frames = case["fpsIn"], case["frames"]
    fps = int(fps_in) if case["fps"] == -1 else case["fps"]
    duration = frames / fps_in
    end = duration if case["end"] == -1 else min(duration, case["end"])
    parts = [case["start"] * fps_in, end * fps_in, (end - case["start"]) * fps]
    # Where rounding errors decide, the reader is meant to differ.
    if any(int(x) != math.floor(x + 1e-6) for x in parts) or int(parts[2]) == 0:
        return None
    numbers = np.linspace(int(parts[0]), int(parts[1]), int(parts[2]), endpoint=False).astype(int)
    scale = case["resolution"] / max(case["width"], case["height"])
    size = [int(np.round(side * scale / 64.0)) * 64 for side in (case["width"], case["height"])]
    return None if 0 in size else {**case, "numbers": numbers.tolist(), "size": size}


def selections():
    rng = random.Random(8)
    cases = []
    while len(cases) < 60:
        start = rng.choice([0, 0, round(rng.uniform(0, 2), 2)])
        case = {
            "fpsIn": rng.choice([8, 12.5, 23.976, 24, 25, 29.97, 30, 50, 60]),
            "frames": rng.randint(60, 150),
            "start": start,
            "end": rng.choice([-1, -1, round(start + rng.uniform(0.2, 3), 2)]),
            "fps": rng.choice([-1, -1, 2, 4, 8, 15, 24, 30, 60]),
            "resolution": rng.choice([64, 256, 512, 768]),
            "width": rng.choice([640, 720, 854, 1080, 1920, 480, 352, 63]),
            "height": rng.choice([480, 360, 1920, 1080, 270, 64]),
        }
        if case["start"] < case["frames"] / case["fpsIn"] and (found := prepared(case)):
            cases.append(found)
    return cases


with open("selection.json", "w") as file:
    json.dump(selections(), file, separators=(",", ":"))

strip = cv2.imread("h264_709.png")
frame = torch.from_numpy(strip[:, :48].copy()).permute(2, 0, 1)[None].float()
for name, size in (("larger", (128, 192)), ("smaller", (14, 21))):
    resized = torch.nn.functional.interpolate(frame, size=size, mode="bilinear", antialias=True)
    pixels = resized.round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()
    cv2.imwrite(f"resized_{name}.png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
