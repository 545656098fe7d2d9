"""Drawn digits in the four files of MNIST."""

import gzip
import hashlib
import struct

import cv2
import numpy as np

from racnn.data.sources import digits


def drawn(number, seed):
    """Return a digit, uint8 [28, 28]."""
    rng = np.random.default_rng((number, seed))
    canvas = np.zeros((28, 28), np.uint8)
    at = int(rng.integers(5, 9)), int(rng.integers(20, 24))
    cv2.putText(canvas, str(number), at, cv2.FONT_HERSHEY_SIMPLEX, 0.7, int(rng.integers(160, 256)), 2)
    return canvas


def write_mnist(root, monkeypatch, *, num_train=80, num_test=40, packed=True):
    """Write the files, and take them for MNIST's own; return their folder."""
    root.mkdir(parents=True, exist_ok=True)
    for part, num in (("train", num_train), ("t10k", num_test)):
        labels = np.arange(num, dtype=np.uint8) % 10
        images = np.stack([drawn(int(label), seed) for seed, label in enumerate(labels)])
        contents = {
            f"{part}-images-idx3-ubyte": struct.pack(">IIII", 2051, num, 28, 28) + images.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">II", 2049, num) + labels.tobytes(),
        }
        for name, content in contents.items():
            path = root / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content) if packed else content)
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            monkeypatch.setitem(digits.FILES, name, digest)
    digits._images.cache_clear()
    digits._labels.cache_clear()
    return root
