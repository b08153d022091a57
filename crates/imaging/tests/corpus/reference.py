"""Writes reference.jsonl: what pydicom and its plugins make of every file of the corpora.

    python3 -m venv venv
    venv/bin/pip install pydicom==3.0.2 numpy==2.4.6 Pillow==13.0.0 pylibjpeg==2.1.0 pylibjpeg-libjpeg==2.5.0 \
        pylibjpeg-openjpeg==2.6.0 pylibjpeg-rle==2.2.0 pyjpegls==1.5.1
    cargo xtask fetch deid-files nicom-files dicom-files films dicom-network-files
    mkdir corpora && cp -r CACHE/{deid-data,nibabel-nicom,pydicom,pynetdicom}-* corpora
    venv/bin/python reference.py corpora

One line a file: its path, and either why it has no values, or its frames. Values are modality values (DICOM PS3.3 C.11.1)
of grey images and red, green, blue of colour images, row-major, interleaved, as little-endian doubles. Of losslessly
stored frames the line has the SHA-256 of those bytes; of lossy ones, where decoders may differ by a little, 256 values at
fixed positions, as base64 of little-endian floats.
"""
import base64
import hashlib
import json
import pathlib
import sys
import warnings

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

SAMPLES = 256
# Frames of one file whose values are kept; the others are only counted.
FRAMES_MAX = 8
LOSSY = {
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.203",
}


def read(path):
    try:
        return pydicom.dcmread(path)
    except InvalidDicomError:
        ds = pydicom.dcmread(path, force=True)
        if "PixelData" not in ds:
            raise
        if "TransferSyntaxUID" not in ds.file_meta:
            implicit, little = ds.original_encoding
            ds.file_meta.TransferSyntaxUID = {
                (True, True): "1.2.840.10008.1.2", (False, True): "1.2.840.10008.1.2.1", (False, False): "1.2.840.10008.1.2.2",
            }[implicit, little]
        return ds


def group(ds, index, name):
    """The item of a functional group that holds for a frame, or the data set itself."""
    places = []
    if "PerFrameFunctionalGroupsSequence" in ds and index < len(ds.PerFrameFunctionalGroupsSequence):
        places.append(ds.PerFrameFunctionalGroupsSequence[index])
    if "SharedFunctionalGroupsSequence" in ds and ds.SharedFunctionalGroupsSequence:
        places.append(ds.SharedFunctionalGroupsSequence[0])
    for place in places:
        if place.get(name):
            return place[name].value[0]
    return ds


def values(ds, frame, index):
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        return apply_color_lut(frame, ds)
    if ds.SamplesPerPixel > 1:
        return frame
    source, scaled = group(ds, index, "PixelValueTransformationSequence"), Dataset()
    scaled.file_meta = ds.file_meta
    for name in ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"):
        if name in source:
            setattr(scaled, name, source[name].value)
    return apply_modality_lut(frame, scaled)


def samples(flat):
    n = len(flat)
    at = [((k * 2654435761) % 2**32) * n >> 32 for k in range(SAMPLES)]
    return base64.b64encode(flat[at].astype("<f4").tobytes()).decode()


def describe(path):
    try:
        ds = read(path)
    except Exception as error:
        return {"fails": f"read: {type(error).__name__}"}
    if not any(name in ds for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return {"fails": "no pixels"}
    syntax = str(ds.file_meta.get("TransferSyntaxUID", ""))
    try:
        pixels = pixel_array(ds, raw=False)
        frames = int(ds.get("NumberOfFrames") or 1)
        pixels = pixels if frames > 1 else pixels[np.newaxis]
        if len(pixels) != frames:
            return {"fails": f"{len(pixels)} frames instead of {frames}"}
        out = []
        for index, frame in enumerate(pixels[:FRAMES_MAX]):
            flat = np.asarray(values(ds, frame, index)).astype("<f8").ravel()
            entry = {"samples": samples(flat)} if syntax in LOSSY else {"sha256": hashlib.sha256(flat.tobytes()).hexdigest()}
            out.append({"values": len(flat), **entry})
    except Exception as error:
        return {"fails": f"decode: {type(error).__name__}", "syntax": syntax}
    photometric = str(ds.get("PhotometricInterpretation", ""))
    return {"syntax": syntax, "photometric": photometric, "frames_total": frames, "frames": out}


def main(root):
    warnings.simplefilter("ignore")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    root, here = pathlib.Path(root), pathlib.Path(__file__).parent
    with open(here / "reference.jsonl", "w") as out:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            name = path.relative_to(root).as_posix()
            print(json.dumps({"file": name, **describe(path)}), file=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
