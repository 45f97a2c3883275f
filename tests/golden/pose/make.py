"""Poses, and their drawings by OpenCV (4.6.0): python3 make.py"""

import json
import math
import os

import cv2
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(18)

STANDING = [
    (50, 16), (50, 28), (41, 28), (37, 42), (35, 55), (59, 28), (64, 41), (67, 54), (44, 56),
    (43, 75), (42, 93), (56, 56), (57, 75), (59, 93), (48, 13), (53, 13), (45, 15), (56, 15),
]
JUMPING = [
    (50, 20), (50, 30), (42, 30), (30, 22), (22, 10), (58, 30), (71, 24), (80, 12), (45, 55),
    (32, 66), (22, 82), (55, 55), (67, 67), (80, 80), (47, 17), (53, 17), (44, 19), (56, 19),
]
LIMBS = "1-2 1-5 2-3 3-4 5-6 6-7 1-8 8-9 9-10 1-11 11-12 12-13 1-0 0-14 14-16 0-15 15-17"


def hue(i):
    swatch = np.array([[[i / 18 * 360, 1, 1]]], np.float32)
    return tuple(float(round(255 * v)) for v in cv2.cvtColor(swatch, cv2.COLOR_HSV2RGB)[0, 0])


def draw(people, width, height):
    canvas = np.zeros((height, width, 3), np.uint8)
    for i in range(18):
        for joints in people:
            if joints[i] is not None:
                cv2.circle(canvas, tuple(int(v) for v in joints[i]), 4, hue(i), -1)
    for i, limb in enumerate(LIMBS.split()):
        a, b = (int(v) for v in limb.split("-"))
        for joints in people:
            if joints[a] is None or joints[b] is None:
                continue
            (x0, y0), (x1, y1) = joints[a], joints[b]
            centre = int((x0 + x1) / 2), int((y0 + y1) / 2)
            axes = int(math.hypot(x0 - x1, y0 - y1) / 2), 4
            angle = int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
            over = canvas.copy()
            cv2.fillConvexPoly(over, cv2.ellipse2Poly(centre, axes, angle, 0, 360, 1), hue(i))
            canvas = cv2.addWeighted(canvas, 0.4, over, 0.6, 0)
    return canvas


def scaled(joints, scale, left=0.0, top=0.0, shake=0.0):
    return [
        (round(scale * x + left + shake * rng.standard_normal(), 3),
         round(scale * y + top + shake * rng.standard_normal(), 3))
        for x, y in joints
    ]


def without(joints, missing):
    return [None if i in missing else joint for i, joint in enumerate(joints)]


CASES = {
    "standing": (256, 256, [scaled(STANDING, 2.56)]),
    "jumping": (384, 256, [scaled(JUMPING, 2.4, 70.3, 8.6, 1.5)]),
    "crowd": (320, 192, [
        scaled(STANDING, 1.7, -20.5, 6),
        without(scaled(JUMPING, 1.8, 70, 4, 2), {4, 7, 16}),
        scaled(STANDING, 2.2, 180, -60),
        without(scaled(STANDING, 0.3, 250, 20), {1}),
    ]),
    "outside": (128, 160, [scaled(JUMPING, 3, -70, -30), scaled(STANDING, 2, 60, 40, 3)]),
    "scattered": (256, 320, [scaled(STANDING, 2.5, 0, 20, 40), scaled(STANDING, 2, 20, 60, 60)]),
    "one-point": (64, 64, [[(31.5, 30.25)] * 18]),
    "nobody": (40, 24, []),
}

for name, (width, height, people) in CASES.items():
    listed = [
        {"pose_keypoints_2d": [v for j in joints for v in ((*j, 0.9) if j else (0, 0, 0))]}
        for joints in people
    ]
    with open(os.path.join(HERE, name + ".json"), "w") as file:
        json.dump({"people": listed, "canvas_width": width, "canvas_height": height}, file)
    drawn = draw(people, width, height)
    path = os.path.join(HERE, name + ".png")
    cv2.imwrite(path, drawn[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
