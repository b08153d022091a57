"""Makes the golden frames in tests/golden with an independent implementation: pydicom + numpy + Pillow.

    python3 -m venv venv
    venv/bin/pip install pydicom==3.0.2 numpy==2.4.6 Pillow==13.0.0 pylibjpeg==2.1.0 \
        pylibjpeg-libjpeg==2.5.0 pylibjpeg-openjpeg==2.6.0 pylibjpeg-rle==2.2.0
    venv/bin/python oracle.py DIR_OF_PYDICOM_DATA

DIR_OF_PYDICOM_DATA holds the .dcm files of the wheel pydicom-data==1.0.0.
JPEG lossless files need DCMTK's dcmcjpeg on PATH.
For each NAME.dcm it writes NAME.png, the frame of side SIDE; real radiographs are not copied, only their frames are.
"""
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    ComputedRadiographyImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian,
    JPEG2000Lossless, JPEGBaseline8Bit, RLELossless,
)

GOLDEN = pathlib.Path(__file__).parent / "golden"
ROWS, COLUMNS, SYNTHETIC_SIDE, REAL_SIDE = 90, 71, 56, 112
# Black and white of red, green and blue in Hounsfield units, by model version; 1.0's are given as width and level.
MEDGEMMA_1_5 = [(-1024, 1024), (-135, 215), (0, 80)]
MEDGEMMA_1_0 = [(level - width / 2, level + width / 2) for width, level in ((2250, -100), (350, 40), (80, 40))]


def antialiased(square, side):
    return Image.fromarray(square).resize((side, side), Image.Resampling.BILINEAR)


def sampled(square, side):
    """Bilinear between the four nearest pixels at half-pixel centres, however much smaller it becomes, then cut to whole levels:
    tf.image.resize without antialiasing and astype(uint8), as MedSigLIP's card has it."""
    at = np.clip((np.arange(side) + 0.5) * len(square) / side - 0.5, 0, len(square) - 1)
    low = np.floor(at).astype(int)
    high, share = np.minimum(low + 1, len(square) - 1), at - low
    values = square.reshape(*square.shape[:2], -1).astype(np.float64)
    rows = values[low] + (values[high] - values[low]) * share[:, np.newaxis, np.newaxis]
    both = rows[:, low] + (rows[:, high] - rows[:, low]) * share[:, np.newaxis]
    return Image.fromarray(both.astype(np.uint8).squeeze())


def frame(ds, side, resize=antialiased):
    """The model-ready frame of a grey data set, by pydicom's LUTs and Pillow's resize."""
    modality = apply_modality_lut(ds.pixel_array, ds)
    voi = apply_voi_lut(np.asarray(modality), ds, prefer_lut=True).astype(np.float64)
    if "VOILUTSequence" in ds:
        low, high = 0.0, 2.0 ** ds.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif "WindowCenter" in ds:
        low, high = window_range(ds)
    else:
        shown = voi
        if "PixelPaddingValue" in ds:
            shown = voi[ds.pixel_array != ds.PixelPaddingValue]
        low, high = shown.min(), shown.max()
    grey = np.round(np.clip((voi - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    height, width = grey.shape
    square = np.zeros((max(grey.shape),) * 2, np.uint8)
    top, left = (len(square) - height) // 2, (len(square) - width) // 2
    square[top:top + height, left:left + width] = grey
    return resize(square, side)


def slice_frame(volume, index, side, ct_windows=MEDGEMMA_1_5, resize=antialiased):
    """The model-ready frame of one slice of a volume: the model version's CT windows, or the MR volume's range."""
    ds = volume[index]
    values = apply_modality_lut(ds.pixel_array, ds).astype(np.float64)
    if ds.Modality == "CT":
        windows = ct_windows
    else:
        every = [apply_modality_lut(one.pixel_array, one).astype(np.float64) for one in volume]
        if "PixelPaddingValue" in ds:
            every = [v[one.pixel_array != one.PixelPaddingValue] for v, one in zip(every, volume)]
        windows = [(min(v.min() for v in every), max(v.max() for v in every))]
    channels = [np.round((np.clip(values, low, high) - low) / (high - low) * 255).astype(np.uint8) for low, high in windows]
    height, width = values.shape
    square = np.zeros((max(values.shape),) * 2 + (len(channels),), np.uint8)
    top, left = (len(square) - height) // 2, (len(square) - width) // 2
    square[top:top + height, left:left + width] = np.stack(channels, -1)
    return resize(square.squeeze(), side)


def window_range(ds):
    """pydicom stretches a window over the range that rescaled stored values can have."""
    first, last = (-(2 ** (ds.BitsStored - 1)), 2 ** (ds.BitsStored - 1) - 1) if ds.PixelRepresentation else (0, 2**ds.BitsStored - 1)
    if "RescaleSlope" in ds:
        # In this order: with a negative slope pydicom's black is the larger number.
        return tuple(value * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for value in (first, last))
    return first, last


def scene(low, high):
    """A phantom with edges, ramps and noise over the whole range of values."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    unit = 0.5 + 0.35 * np.sin(x / 9.0) * np.cos(y / 13.0) + 0.1 * rng.standard_normal((ROWS, COLUMNS))
    unit[20:40, 10:30] = 0.9
    unit[60:64, :] = 0.05
    unit[0, 0], unit[0, 1] = 0.0, 1.0
    return np.round(low + np.clip(unit, 0, 1) * (high - low)).astype(np.int64)


def data_set(bits, signed=False, photometric="MONOCHROME2", allocated=16, **attributes):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = ComputedRadiographyImageStorage, "2.25.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.2", "2.25.3"
    ds.Modality, ds.PatientName, ds.PatientID = "CR", "Synthetic^Phantom", "PHANTOM"
    ds.PatientAge, ds.PatientSex, ds.ViewPosition = "045Y", "F", "PA"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = ROWS, COLUMNS, 1
    ds.PhotometricInterpretation, ds.BitsAllocated, ds.BitsStored = photometric, allocated, bits
    ds.HighBit, ds.PixelRepresentation = bits - 1, int(signed)
    for name, value in attributes.items():
        setattr(ds, name, value)
    dtype = {(8, False): "u1", (8, True): "i1", (16, False): "<u2", (16, True): "<i2"}[allocated, signed]
    data = scene(low, high).astype(dtype).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW" if allocated == 16 else "OB"
    return ds


def voi_lut(first, entries, bits):
    """An S-shaped table."""
    item = Dataset()
    steps = 1 / (1 + np.exp(-np.linspace(-6, 6, entries)))
    item.add_new(0x00283002, "SS" if first < 0 else "US", [entries, first, bits])
    item.add_new(0x00283006, "OW", np.round(steps * (2**bits - 1)).astype("<u2").tobytes())
    return [item]


def write(name, ds, syntax=ExplicitVRLittleEndian):
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax in (RLELossless, JPEG2000Lossless) else syntax
    if syntax in (RLELossless, JPEG2000Lossless):
        ds.compress(syntax, generate_instance_uid=False)
    path = GOLDEN / f"{name}.dcm"
    ds.save_as(path, enforce_file_format=True)
    frame(pydicom.dcmread(path), SYNTHETIC_SIDE).save(GOLDEN / f"{name}.png", optimize=True)


def main(pydicom_data):
    GOLDEN.mkdir(exist_ok=True)
    linear = dict(WindowCenter=2000, WindowWidth=3000)
    write("mono1-12bit-linear", data_set(12, photometric="MONOCHROME1", **linear))
    write("mono1-inverse-shape", data_set(12, photometric="MONOCHROME1", PresentationLUTShape="INVERSE", **linear))
    write("mono2-implicit-no-window", data_set(10), ImplicitVRLittleEndian)
    write("mono2-deflated", data_set(12, **linear), DeflatedExplicitVRLittleEndian)
    write("mono2-8bit", data_set(8, allocated=8, WindowCenter=120, WindowWidth=200))
    write("mono2-signed-rescale-exact", data_set(
        13, signed=True, RescaleSlope="0.5", RescaleIntercept="-100", WindowCenter=-50, WindowWidth=3000, VOILUTFunction="LINEAR_EXACT"))
    write("mono2-negative-slope", data_set(12, RescaleSlope="-1", RescaleIntercept="4095", **linear))
    write("mono1-sigmoid", data_set(12, photometric="MONOCHROME1", VOILUTFunction="SIGMOID", **linear))
    write("mono2-several-windows", data_set(12, WindowCenter=[1500, 3000], WindowWidth=[2000, 500]))
    write("mono2-padding", data_set(12, PixelPaddingValue=0))
    write("mono2-voi-lut", data_set(12, VOILUTSequence=voi_lut(512, 2048, 12), **linear))
    write("mono2-voi-lut-signed", data_set(12, signed=True, VOILUTSequence=voi_lut(-1024, 2048, 10)))
    write("mono2-rle", data_set(12, **linear), RLELossless)
    write("mono2-rle-8bit", data_set(8, allocated=8), RLELossless)
    write("mono2-j2k", data_set(12, **linear), JPEG2000Lossless)
    write("mono2-j2k-signed", data_set(12, signed=True, WindowCenter=0, WindowWidth=3000), JPEG2000Lossless)

    baseline = data_set(8, allocated=8)
    jpeg = GOLDEN / "baseline.jpg"
    Image.fromarray(scene(0, 255).astype(np.uint8)).save(jpeg, quality=95)
    data = jpeg.read_bytes()
    jpeg.unlink()
    baseline.PixelData = encapsulate([data + b"\0" * (len(data) % 2)])
    baseline["PixelData"].is_undefined_length = True
    write("mono2-jpeg-baseline", baseline, JPEGBaseline8Bit)
    for name, option in (("mono2-jpeg-lossless", "+el"), ("mono2-jpeg-lossless-sv1", "+e1")):
        write(name, data_set(12, **linear))
        path = GOLDEN / f"{name}.dcm"
        subprocess.run(["dcmcjpeg", option, "+un", path, path], check=True)
        frame(pydicom.dcmread(path), SYNTHETIC_SIDE).save(GOLDEN / f"{name}.png", optimize=True)

    for name in ("RG1_UNCR", "RG3_UNCR"):
        frame(pydicom.dcmread(pathlib.Path(pydicom_data) / f"{name}.dcm"), REAL_SIDE).save(GOLDEN / f"{name}.png", optimize=True)
    for name in ("693_UNCR", "MR2_UNCR"):
        volume = [pydicom.dcmread(pathlib.Path(pydicom_data) / f"{name}.dcm")]
        slice_frame(volume, 0, REAL_SIDE).save(GOLDEN / f"{name}.png", optimize=True)
    other_versions(pathlib.Path(pydicom_data))


def other_versions(pydicom_data):
    """The same files for the models that take them otherwise than the newest MedGemma."""
    film, ct = (pydicom.dcmread(pydicom_data / f"{name}.dcm") for name in ("RG1_UNCR", "693_UNCR"))
    for name, made in (
        ("693_UNCR-medgemma-1.0", slice_frame([ct], 0, REAL_SIDE, MEDGEMMA_1_0)),
        ("693_UNCR-medsiglip", slice_frame([ct], 0, REAL_SIDE, resize=sampled)),
        ("RG1_UNCR-medsiglip", frame(film, REAL_SIDE, sampled)),
    ):
        made.save(GOLDEN / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
