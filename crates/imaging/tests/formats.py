"""Makes tests/golden/formats: small files of every format beside radiographs, and the frames that other software makes of them.

    python3 -m venv venv
    venv/bin/pip install pydicom==3.0.2 numpy==2.4.6 Pillow==13.0.0 tifffile==2026.3.3 imagecodecs==2026.3.6 nibabel==5.4.2
    venv/bin/python formats.py

For each NAME.EXT it writes NAME.png, the frame of side SIDE, and for volumes NAME-K.png, the K-th slice that is shown.
Files are written by pydicom, Pillow, tifffile and nibabel; TIFFs are read back by Pillow or tifffile, never by what wrote them
where both can, so that a mistake of one is not its own witness.
"""
import io
import pathlib
import struct

import nibabel
import numpy as np
from PIL import Image, ImageCms
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit
import tifffile

GOLDEN = pathlib.Path(__file__).parent / "golden" / "formats"
ROWS, COLUMNS, SIDE = 52, 41, 32
CT_WINDOWS = [(-1024, 1024), (-135, 215), (0, 80)]


def grey(largest, rows=ROWS, columns=COLUMNS, seed=7):
    """A phantom with ramps, an edge and a little noise, so that a mirrored, shifted or swapped picture shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns]
    unit = 0.5 + 0.3 * np.sin(x / 6.0 + seed) * np.cos(y / 9.0) + 0.05 * rng.standard_normal((rows, columns))
    unit[rows // 6:rows // 3, columns // 8:columns // 3] = 0.95
    unit[0, 0], unit[0, 1] = 0.0, 1.0
    return np.round(np.clip(unit, 0, 1) * largest).astype(np.uint16 if largest > 255 else np.uint8)


def colour(largest=255):
    return np.stack([grey(largest, seed=seed) for seed in (1, 2, 3)], -1)


def smooth():
    """Colours without noise: decoders of JPEG differ in how they spread half-width chrominance."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    return np.stack([90 + x * 2, 200 - y * 2, 60 + x + y], -1).astype(np.uint8)


def frame(levels, side=SIDE):
    """Zero padding to a square, centred, and Pillow's antialiased bilinear resize."""
    levels = np.asarray(levels, np.uint8)
    height, width = levels.shape[:2]
    square = np.zeros((max(height, width),) * 2 + levels.shape[2:], np.uint8)
    top, left = (len(square) - height) // 2, (len(square) - width) // 2
    square[top:top + height, left:left + width] = levels
    return Image.fromarray(square).resize((side, side), Image.Resampling.BILINEAR)


def save(name, levels):
    frame(levels).save(GOLDEN / f"{name}.png", optimize=True)


# Photographs and mammograms


def data_set(modality, photometric, pixels, bits=8, **attributes):
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.4", "2.25.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.2", "2.25.3"
    ds.Modality, ds.PatientName, ds.PatientID = modality, "Synthetic^Phantom", "PHANTOM"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation, ds.PixelRepresentation = photometric, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * pixels.itemsize, bits, bits - 1
    for name, value in attributes.items():
        setattr(ds, name, value)
    data = pixels.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    return ds


def write(name, ds, levels, syntax=ExplicitVRLittleEndian):
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(GOLDEN / f"{name}.dcm", enforce_file_format=True)
    save(name, levels)


def photographs():
    rgb = colour()
    write("xc-rgb", data_set("XC", "RGB", rgb), rgb)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write("es-rgb-profile", data_set("ES", "RGB", rgb, ICCProfile=srgb), rgb)
    write("dms-rgb-adobe", data_set("DMS", "RGB", rgb, ColorSpace="ADOBERGB"), rgb)
    planes = data_set("GM", "RGB", rgb)
    planes.PlanarConfiguration = 1
    planes.PixelData = rgb.transpose(2, 0, 1).tobytes()
    write("gm-rgb-planes", planes, rgb)
    sixteen = colour(65535)
    deep = np.round(sixteen / 65535 * 255)
    write("op-rgb-16bit", data_set("OP", "RGB", sixteen, bits=16), deep)
    jpeg = io.BytesIO()
    Image.fromarray(smooth()).save(jpeg, "JPEG", quality=95, subsampling="4:2:2")
    data = jpeg.getvalue()
    packed = data_set("OP", "YBR_FULL_422", smooth())
    packed.PixelData = encapsulate([data + b"\0" * (len(data) % 2)])
    packed["PixelData"].is_undefined_length = True
    write("op-jpeg", packed, np.asarray(Image.open(io.BytesIO(data))), JPEGBaseline8Bit)
    index = grey(63)
    tables = np.stack([np.linspace(0, 65535, 64), np.linspace(65535, 0, 64), np.full(64, 30000)], -1).astype("<u2")
    named = {f"{name}PaletteColorLookupTable{part}": value
             for at, name in enumerate(("Red", "Green", "Blue"))
             for part, value in (("Descriptor", [64, 0, 16]), ("Data", tables[:, at].tobytes()))}
    write("gm-palette", data_set("GM", "PALETTE COLOR", index, **named), np.round(tables[index] / 65535 * 255))
    write("gm-grey", data_set("GM", "MONOCHROME2", grey(255)), grey(255))
    write("opt-grey-12bit", data_set("OPT", "MONOCHROME2", grey(4095), bits=12), np.round(grey(4095) / 4095 * 255))
    mammogram = data_set("MG", "MONOCHROME1", grey(4095), bits=12, WindowCenter=2000, WindowWidth=3000,
                         PresentationIntentType="FOR PRESENTATION", PresentationLUTShape="INVERSE")
    # PS3.3 C.11.2.1.2.1, written out.
    unit = (grey(4095).astype(float) - (2000 - 0.5)) / (3000 - 1) + 0.5
    write("mg-mono1", mammogram, 255 - np.round(np.clip(unit, 0, 1) * 255))


# TIFF


def tiff(name, write_it, levels):
    path = GOLDEN / f"{name}.tif"
    write_it(path)
    levels = np.asarray(levels)
    save(name, levels)


def tiffs():
    eight, sixteen, rgb, rgb16 = grey(255), grey(65535), colour(), colour(65535)
    pillow = lambda array, **options: lambda path: Image.fromarray(array).save(path, **options)
    other = lambda array, **options: lambda path: tifffile.imwrite(path, array, metadata=None, **options)
    scaled = lambda array: np.floor(array / 257 + 0.5)
    tiff("grey-strips", pillow(eight, compression="raw"), eight)
    tiff("grey16-lzw-big-endian", other(sixteen, byteorder=">", compression="lzw", predictor=True, rowsperstrip=9), scaled(sixteen))
    tiff("grey16-deflate-tiles", other(sixteen, compression="zlib", predictor=True, tile=(16, 16)), scaled(sixteen))
    tiff("rgb-lzw", pillow(rgb, compression="tiff_lzw"), rgb)
    tiff("rgb-deflate-tiles", other(rgb, compression="zlib", tile=(16, 32), photometric="rgb"), rgb)
    tiff("rgb-packbits", pillow(rgb, compression="packbits"), rgb)
    tiff("rgb16-planes", other(rgb16.transpose(2, 0, 1), planarconfig="separate", photometric="rgb", compression="lzw"), scaled(rgb16))
    tiff("rgb-big-tiff", other(rgb, bigtiff=True, photometric="rgb"), rgb)
    tiff("grey-min-is-white", other(eight, photometric="miniswhite"), 255 - eight)
    tiff("rgb-orientation-6", other(rgb, photometric="rgb", extratags=[(274, "H", 1, 6, True)]), np.rot90(rgb, -1))
    alpha = np.concatenate([rgb, grey(255, seed=9)[..., None]], -1)
    over = np.round(rgb.astype(float) * (alpha[..., 3:] / 255.0))
    tiff("rgba-unassociated", other(alpha, photometric="rgb", extrasamples=["unassalpha"]), over)
    indexed = Image.fromarray(rgb).quantize(200)
    tiff("palette-packbits", lambda path: indexed.save(path, compression="packbits"), np.asarray(indexed.convert("RGB")))
    for name, options in (("ybr-jpeg", dict(subsampling=(1, 1))), ("ybr-jpeg-420-tiles", dict(subsampling=(2, 2), tile=(16, 16)))):
        path = GOLDEN / f"{name}.tif"
        options = dict(photometric="ycbcr", compression="jpeg", compressionargs={"level": 95}, **options)
        tifffile.imwrite(path, smooth(), metadata=None, **options)
        save(name, np.asarray(Image.open(path).convert("RGB")))
    path = GOLDEN / "rgb-jpeg-tables.tif"
    # libtiff, through Pillow, puts the tables into the directory.
    Image.fromarray(smooth()).save(path, compression="jpeg", quality=95)
    save("rgb-jpeg-tables", np.asarray(Image.open(path).convert("RGB")))
    # What wrote them is not what vouches for them.
    for path in sorted(GOLDEN.glob("*.tif")):
        if "jpeg" in path.name or "rgba" in path.name or "planes" in path.name or "orientation" in path.name:
            continue
        shown, read = np.asarray(Image.open(path).convert("RGB") if "16" not in path.name else Image.open(path)), tifffile.imread(path)
        if "16" in path.name and shown.dtype == read.dtype:
            assert np.array_equal(shown, read), path
    two = GOLDEN / "two-pages.tif"
    Image.fromarray(eight).save(two, save_all=True, append_images=[Image.fromarray(eight)])


# NIfTI


def volume(slices=7, rows=20, columns=24):
    """Hounsfield units, [slice up, row to the back, column to the left]; nothing in it is symmetric."""
    z, y, x = np.mgrid[0:slices, 0:rows, 0:columns]
    return (-1000 + 40 * x + 25 * y + 60 * z + 300 * ((x > 15) & (y < 6))).astype(np.int16)


def nifti(name, array, affine, qform=True, sform=True, modality="CT", slope=None, inter=0.0):
    """`array` in nibabel's order: first axis fastest."""
    image = nibabel.Nifti1Image(array, None)
    image.header.set_intent("none", name=modality)
    image.set_qform(affine, code=1 if qform else 0)
    image.set_sform(affine, code=1 if sform else 0)
    path = GOLDEN / f"{name}.nii"
    nibabel.save(image, path)
    if slope is not None:
        # nibabel chooses slopes itself; this one is written into its place in the header.
        raw = bytearray(path.read_bytes())
        struct.pack_into("<ff", raw, 112, slope, inter)
        path.write_bytes(raw)
    read = nibabel.as_closest_canonical(nibabel.load(path))
    values = read.get_fdata()
    windows = CT_WINDOWS if modality == "CT" else [(values.min(), values.max())]
    # Canonical axes go right, front and up; a DICOM picture goes left and back.
    shown = values[::-1, ::-1, :].transpose(2, 1, 0)
    for index, picture in enumerate(shown):
        channels = [np.round((np.clip(picture, low, high) - low) / (high - low) * 255) for low, high in windows]
        if index in (0, len(shown) - 1):
            save(f"{name}-{index}", np.stack(channels, -1).squeeze())


def niftis():
    units = volume()
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    spacing = np.diag([0.7, 0.7, 2.5, 1.0])
    lps = units.transpose(2, 1, 0)
    nifti("ct-left-back-up", lps, to_ras @ spacing)
    nifti("ct-right-front-up", lps[::-1, ::-1, :], spacing)
    nifti("ct-right-front-down-float", lps[::-1, ::-1, ::-1].astype(np.float32), spacing @ np.diag([1.0, 1.0, -1.0, 1.0]), qform=False)
    nifti("ct-scaled", (lps + 1024).astype(np.int16), to_ras @ spacing, slope=1.0, inter=-1024.0)
    cube = np.diag([1.2, 1.2, 1.2, 1.0])
    # Sagittal as scanners store it: front to back, up to down, and right to left.
    sagittal = np.array([[0, 0, -1.2, 0], [-1.2, 0, 0, 0], [0, -1.2, 0, 0], [0, 0, 0, 1]], float)
    nifti("mr-sagittal-u8", (lps // 8 + 128).astype(np.uint8).transpose(1, 2, 0)[:, ::-1, :], sagittal, sform=False, modality="MR")
    tilt = np.deg2rad(10)
    turned = np.array([[1, 0, 0, 0], [0, np.cos(tilt), -np.sin(tilt), 0], [0, np.sin(tilt), np.cos(tilt), 0], [0, 0, 0, 1]])
    nifti("mr-tilted-i32", (lps.astype(np.int32) * 1000), turned @ to_ras @ cube, modality="MR")
    nifti_big = nibabel.Nifti1Image(lps.astype(">i2"), to_ras @ spacing, nibabel.Nifti1Header(endianness=">"))
    nibabel.save(nifti_big, GOLDEN / "unsaid-big-endian.nii")


def main():
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for path in GOLDEN.iterdir():
        path.unlink()
    photographs()
    tiffs()
    niftis()


if __name__ == "__main__":
    main()
