"""The film and the series of `medfleet bench frames`, packed by every codec, none of them ours.

    pip install numpy==2.4.6 pillow==13.0.0 pydicom==3.0.2 pylibjpeg-openjpeg==2.6.0
    apt-get install dcmtk openjph-tools
    medfleet bench frames --write DIR
    python tests/reference/make_bench_frames.py DIR
    medfleet bench frames DIR/*
"""

import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import numpy as np
import pydicom
from openjpeg import utils as openjpeg
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

J2K_LOSSLESS, J2K, HTJ2K = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


def run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def htj2k(pixels, bits):
    """OpenJPH takes PGM, whose 16-bit samples are big endian."""
    with tempfile.TemporaryDirectory() as name:
        source, target = pathlib.Path(name, "in.pgm"), pathlib.Path(name, "out.j2c")
        height, width = pixels.shape
        source.write_bytes(f"P5 {width} {height} {(1 << bits) - 1}\n".encode() + pixels.astype(">u2").tobytes())
        run("ojph_compress", "-i", source, "-o", target, "-reversible", "true")
        return target.read_bytes()


def j2k(pixels, bits, **options):
    return bytes(openjpeg.encode_array(pixels, bits_stored=bits, photometric_interpretation=2, **options))


def packed(file, syntax, streams, target):
    """The same file with other pixel data."""
    file.file_meta.TransferSyntaxUID = syntax
    file.PixelData = encapsulate(streams)
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = True
    file.save_as(target, enforce_file_format=True)


def film(folder):
    source = folder / "film-raw.dcm"
    run("dcmcrle", source, folder / "film-rle.dcm")
    run("dcmcjpeg", "+e1", source, folder / "film-jpeg-lossless.dcm")
    run("dcmcjpeg", "+ee", "+q", "90", source, folder / "film-jpeg-extended.dcm")
    run("dcmcjpls", "+el", source, folder / "film-jpeg-ls.dcm")
    pixels = pydicom.dcmread(source).pixel_array
    for name, syntax, stream in (
        ("j2k", J2K_LOSSLESS, j2k(pixels, 12)),
        ("j2k-lossy", J2K, j2k(pixels, 12, compression_ratios=[10.0])),
        ("htj2k", HTJ2K, htj2k(pixels, 12)),
    ):
        packed(pydicom.dcmread(source), syntax, [stream], folder / f"film-{name}.dcm")
    eight, out = (pixels >> 4).astype(np.uint8), io.BytesIO()
    Image.fromarray(eight).save(out, "JPEG", quality=90)
    file = pydicom.dcmread(source)
    file.BitsAllocated, file.BitsStored, file.HighBit = 8, 8, 7
    file.WindowCenter, file.WindowWidth = "128", "256"
    file.LossyImageCompression = "01"
    packed(file, JPEG_BASELINE, [out.getvalue()], folder / "film-jpeg-baseline.dcm")


def series(folder):
    sources = sorted((folder / "ct-raw").iterdir())
    for name, syntax, code in (("ct-j2k", J2K_LOSSLESS, j2k), ("ct-htj2k", HTJ2K, htj2k)):
        (folder / name).mkdir(exist_ok=True)
        for source in sources:
            file = pydicom.dcmread(source)
            packed(file, syntax, [code(file.pixel_array, 12)], folder / name / source.name)
    with zipfile.ZipFile(folder / "ct-raw.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for source in sources:
            archive.write(source, source.name)
    with tarfile.open(folder / "ct-raw.tar.gz", "w:gz") as archive:
        for source in sources:
            archive.add(source, source.name)
    enhanced([pydicom.dcmread(source) for source in sources], folder / "ct-enhanced.dcm")


def enhanced(slices, target):
    """One file with a frame for each slice, as far as the frames need it."""
    file = slices[0]
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["medfleet bench"])
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.NumberOfFrames = len(slices)

    def item(**elements):
        dataset = pydicom.Dataset()
        for name, value in elements.items():
            setattr(dataset, name, value)
        return dataset

    measures = item(PixelSpacing=list(file.PixelSpacing), SliceThickness=2.5)
    rescale = item(RescaleIntercept=file.RescaleIntercept, RescaleSlope=file.RescaleSlope, RescaleType="HU")
    file.SharedFunctionalGroupsSequence = Sequence(
        [item(PixelMeasuresSequence=Sequence([measures]), PixelValueTransformationSequence=Sequence([rescale]))]
    )
    file.PerFrameFunctionalGroupsSequence = Sequence(
        item(
            PlanePositionSequence=Sequence([item(ImagePositionPatient=list(one.ImagePositionPatient))]),
            PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=list(one.ImageOrientationPatient))]),
        )
        for one in slices
    )
    pixels = b"".join(one.PixelData for one in slices)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleIntercept", "RescaleSlope"):
        delattr(file, name)
    file.PixelData = pixels
    file.save_as(target, enforce_file_format=True)


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    film(folder)
    series(folder)
