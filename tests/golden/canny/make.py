"""The pictures of this folder, and their edges by OpenCV (4.6.0): python3 make.py"""

import os

import cv2
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
DOCS = os.path.join(HERE, "..", "..", "..", "docs")
rng = np.random.default_rng(20230323)


def to_bytes(x):
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def soft_noise(h, w, sigma, amount):
    noise = cv2.GaussianBlur(rng.standard_normal((h, w, 3)), (0, 0), sigma)
    return noise / noise.std() * amount


def scene():
    h, w = 176, 240
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    out = np.stack([120 + 90 * y / h, 160 + 60 * y / h, 235 - 40 * y / h], -1)
    for base, height, colour in [(90, 14, (90, 120, 90)), (115, 22, (60, 100, 50))]:
        hill = base + height * np.sin(x / 31 + base) + 5 * np.sin(x / 9)
        out[y > hill] = colour
    out[(x - 190) ** 2 + (y - 34) ** 2 < 18**2] = (250, 240, 180)
    cv2.rectangle(out, (48, 84), (104, 136), (170, 90, 70), -1)
    cv2.fillPoly(out, [np.array([[40, 86], [76, 58], [112, 86]])], (110, 40, 40))
    cv2.rectangle(out, (56, 96), (70, 110), (220, 230, 250), -1)
    cv2.rectangle(out, (82, 104), (96, 136), (70, 45, 30), -1)
    out = cv2.GaussianBlur(out, (0, 0), 0.9)
    return to_bytes(out + rng.standard_normal(out.shape) * 2.5)


def face():
    h, w = 144, 112
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)

    def blob(cx, cy, rx, ry, soft):
        d = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
        return (1 / (1 + np.exp((d - 1) * soft)))[..., None]

    out = np.full((h, w, 3), (70.0, 80.0, 95.0)) + soft_noise(h, w, 12, 12)
    for cx, cy, rx, ry, soft, colour in [
        (56, 60, 42, 52, 30, (60, 40, 30)),
        (56, 68, 33, 44, 20, (224, 172, 140)),
        (42, 60, 7, 4, 12, (250, 250, 250)),
        (70, 60, 7, 4, 12, (250, 250, 250)),
        (42, 60, 3, 3, 12, (40, 60, 90)),
        (70, 60, 3, 3, 12, (40, 60, 90)),
        (56, 92, 14, 4, 9, (180, 70, 80)),
        (56, 76, 5, 9, 5, (205, 150, 120)),
        (56, 160, 52, 42, 25, (40, 60, 140)),
    ]:
        a = blob(cx, cy, rx, ry, soft)
        out = out * (1 - a) + np.array(colour) * a
    return to_bytes(out + rng.standard_normal(out.shape) * 3)


def text():
    out = np.full((96, 208, 3), 244, np.uint8)
    cv2.putText(out, "zero-shot", (6, 30), cv2.FONT_HERSHEY_DUPLEX, 1, (20, 20, 30), 2, cv2.LINE_AA)
    cv2.putText(out, "text & video 0123", (6, 58), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (160, 30, 20), 1)
    blue = (30, 90, 160)
    cv2.putText(out, "Frames", (6, 88), cv2.FONT_HERSHEY_TRIPLEX, 0.9, blue, 1, cv2.LINE_AA)
    cv2.line(out, (130, 90), (204, 66), (0, 0, 0), 1, cv2.LINE_AA)
    return out


def gradients():
    h, w = 120, 150
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    ring = 127 + 120 * np.sin(np.hypot(x - 75, y - 60) ** 2 / 420)
    return to_bytes(np.stack([255 * x / w, ring, 255 * ((x + y) // 24 % 2)], -1))


def texture():
    h, w = 128, 128
    y, x = np.mgrid[0:h, 0:w]
    out = np.full((h, w, 3), (150.0, 70.0, 55.0)) + soft_noise(h, w, 1.2, 9)
    out[(y % 16 < 2) | ((x + (y // 16 % 2) * 14) % 28 < 2)] = (190, 185, 175)
    weave = 120 + 60 * np.sin(x * 0.9) * np.sin(y * 0.7)
    out[64:, 64:] = weave[64:, 64:, None]
    out[:64, 64:] = np.where((x // 5 + y // 5) % 2, 220, 40)[:64, 64:, None]
    return to_bytes(out)


def colours():
    """Edges of one channel each, and edges that all channels share but with opposite signs."""
    h, w = 96, 128
    y, x = np.mgrid[0:h, 0:w]
    r = np.where(np.hypot(x - 40, y - 40) < 28, 210, 60)
    g = np.where(np.hypot(x - 70, y - 40) < 28, 60, 200)
    b = np.where((x + y) // 20 % 2, 160, 110)
    return np.stack([r, g, b], -1).astype(np.uint8)


def ties():
    """Few levels: many equal gradients, in all channels and directions."""
    coarse = rng.integers(0, 4, (40, 50, 3)) * 60
    out = np.kron(coarse, np.ones((2, 2, 1), int))[:79, :99]
    out[40:] = out[40:, :, :1]
    return out.astype(np.uint8)


def spiral():
    """A weak line that winds around, strong only at its inner end."""
    out = np.full((151, 149, 3), 100.0)
    t = np.linspace(0, 12 * np.pi, 6000)
    points = np.stack([75 + 1.85 * t * np.cos(t), 75 + 1.85 * t * np.sin(t)], -1).astype(np.int32)
    cv2.polylines(out, [points], False, (136, 136, 136), 3)
    cv2.polylines(out, [points[60:160]], False, (170, 170, 170), 3)
    return to_bytes(cv2.GaussianBlur(out, (0, 0), 0.7))


def noise():
    return rng.integers(0, 256, (71, 83, 3)).astype(np.uint8)


def strip():
    return to_bytes(128 + 90 * np.sin(np.arange(3 * 160 * 3).reshape(3, 160, 3) / 7))


MADE = [scene, face, text, gradients, texture, colours, ties, spiral, noise, strip]


def save(name, edges):
    path = os.path.join(HERE, name + ".edges.png")
    cv2.imwrite(path, edges, [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 9])


for make in MADE:
    rgb = np.ascontiguousarray(make())
    name = make.__name__
    cv2.imwrite(os.path.join(HERE, name + ".png"), rgb[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    save(name, cv2.Canny(rgb, 100, 200))
    if name in ("scene", "face"):
        save(name + ".low30-high90.5", cv2.Canny(rgb, 30, 90.5))
        for sigma in (1.4, 3):
            save(f"{name}.blur{sigma}", cv2.Canny(cv2.GaussianBlur(rgb, (0, 0), sigma), 20, 60))

for name in ("start", "start-image"):
    rgb = np.ascontiguousarray(cv2.imread(os.path.join(DOCS, name + ".png"))[..., ::-1])
    save("docs-" + name, cv2.Canny(rgb, 100, 200))
