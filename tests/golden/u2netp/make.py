"""Reference outputs of U2-Net-p (arXiv:2005.09007) by PyTorch, with weights made by a formula.

    python3 make.py outputs.safetensors

Weights: tensor `name` holds scale * (2 u - 1) + centre, where u runs through a linear congruential
generator seeded with FNV-1a of the name (see `uniform`). tests/u2net_test.ts makes the same ones.
Cases: `full` has the widths of U2-Net-p, `narrow` has 4 inside and 8 outside of every stage; the
first is the network alone, the second goes from a picture to its mask.
"""

import json
import struct
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def uniform(name, count):
    state = 2166136261
    for byte in name.encode():
        state = (state ^ byte) * 16777619 % 2**32
    out = np.empty(count)
    for i in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        out[i] = (state >> 8) / 2**24
    return out


def values(name, shape):
    u = uniform(name, int(np.prod(shape)))
    if len(shape) == 4:
        # Sides are small, so that the sigmoid behind them is not at its ends.
        gain = 0.1 if name.startswith("side") else 1
        scale, centre = gain * (6 / np.prod(shape[1:])) ** 0.5, 0.0
    elif name.endswith("running_var") or name.endswith("bn_s1.weight"):
        scale, centre = 0.4, 1.0
    else:
        scale, centre = 0.2, 0.0
    return torch.from_numpy((scale * (2 * u - 1) + centre).reshape(shape).astype(np.float32))


class Block(nn.Module):
    def __init__(self, inputs, outputs, dilation=1):
        super().__init__()
        self.conv_s1 = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.bn_s1(self.conv_s1(x)))


def like(x, y):
    return F.interpolate(x, size=y.shape[2:], mode="bilinear", align_corners=False)


def halve(x):
    return F.max_pool2d(x, 2, 2, ceil_mode=True)


class ResidualU(nn.Module):
    def __init__(self, height, inputs, mid, outputs, flat=False):
        super().__init__()
        self.height, self.flat = height, flat
        down = [2**i if flat else 1 for i in range(height)]
        if not flat:
            down[-1] = 2
        self.rebnconvin = Block(inputs, outputs)
        for i in range(height):
            self.add_module(f"rebnconv{i + 1}", Block(mid if i else outputs, mid, down[i]))
        for i in range(height - 1):
            self.add_module(f"rebnconv{i + 1}d", Block(2 * mid, mid if i else outputs, down[i]))

    def forward(self, x):
        first = self.rebnconvin(x)
        h, skips = first, []
        for i in range(self.height):
            if not self.flat and 0 < i < self.height - 1:
                h = halve(h)
            h = getattr(self, f"rebnconv{i + 1}")(h)
            skips.append(h)
        for i in reversed(range(self.height - 1)):
            h = getattr(self, f"rebnconv{i + 1}d")(torch.cat([like(h, skips[i]), skips[i]], 1))
        return h + first


class U2Net(nn.Module):
    def __init__(self, mid, out):
        super().__init__()
        kinds = [(7, False), (6, False), (5, False), (4, False), (4, True), (4, True)]
        for i, (height, flat) in enumerate(kinds):
            self.add_module(f"stage{i + 1}", ResidualU(height, out if i else 3, mid, out, flat))
        for i, (height, flat) in enumerate(kinds[:5]):
            self.add_module(f"stage{i + 1}d", ResidualU(height, 2 * out, mid, out, flat))
        for i in range(6):
            self.add_module(f"side{i + 1}", nn.Conv2d(out, 1, 3, padding=1))
        self.outconv = nn.Conv2d(6, 1, 1)

    def forward(self, x):
        h, skips = x, []
        for i in range(6):
            h = getattr(self, f"stage{i + 1}")(halve(h) if i else h)
            skips.append(h)
        features = [h]
        for i in reversed(range(5)):
            h = getattr(self, f"stage{i + 1}d")(torch.cat([like(h, skips[i]), skips[i]], 1))
            features.insert(0, h)
        maps = [getattr(self, f"side{i + 1}")(f) for i, f in enumerate(features)]
        return torch.sigmoid(self.outconv(torch.cat([like(m, maps[0]) for m in maps], 1)))


def filled(mid, out):
    net = U2Net(mid, out).eval()
    state = net.state_dict()
    net.load_state_dict({
        name: tensor if name.endswith("num_batches_tracked") else values(name, tuple(tensor.shape))
        for name, tensor in state.items()
    })
    return net


def detect(net, picture):
    small = F.interpolate(picture, size=(320, 320), mode="bilinear", antialias=True)
    light = small / small.max()
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    d = net((light - mean) / std)
    d = (d - d.min()) / (d.max() - d.min())
    return F.interpolate(d, size=picture.shape[2:], mode="bilinear", antialias=True)


def picture(shape):
    return torch.from_numpy(uniform("picture", int(np.prod(shape))).reshape(shape).astype(np.float32))


def main(path):
    with torch.no_grad():
        full = filled(16, 64)(2 * picture((1, 3, 64, 96)) - 1)
        narrow = detect(filled(4, 8), F.interpolate(picture((1, 3, 6, 9)), size=(80, 120)))
    tensors = {"full": full, "narrow": narrow}
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.numpy().tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    header["__metadata__"] = {"reference": f"torch {torch.__version__}"}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
    for name, tensor in tensors.items():
        print(name, tuple(tensor.shape), float(tensor.min()), float(tensor.max()), float(tensor.std()))


main(sys.argv[1])
