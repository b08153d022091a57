"""Makes crates/resample/src/tests.rs's table: Pillow's antialiased bilinear over pictures that script and test make alike.

    python tests/reference/make_resample.py
"""

import numpy as np
import PIL
from PIL import Image

SIZES = [(1, 5), (2, 1), (5, 7), (7, 5), (64, 64), (100, 30), (31, 100), (333, 224), (1000, 896), (2021, 896), (3000, 448)]


def picture(side, channels):
    y, x, c = np.mgrid[0:side, 0:side, 0:channels]
    return ((x * (3 + c)) ^ (y * 5) + x * y // 16 + (x * y * 7 + c * 31) % 97).astype(np.uint8)


def fnv(data):
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return value


print(f"// Pillow {PIL.__version__}")
for side, to in SIZES:
    for channels in (1, 3):
        pixels = picture(side, channels)
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        made = np.asarray(image.resize((to, to), Image.Resampling.BILINEAR)).tobytes()
        print(f"({side}, {channels}, {to}, {fnv(made):#018x}),")
