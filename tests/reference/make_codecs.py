"""Small compressed images for the tests of imaging and the seeds of the fuzzer.

crates/imaging/tests/codecs: one 12-bit original as a DICOM file in every lossless transfer syntax, each made by a codec
that is not ours (DCMTK, OpenJPH, OpenJPEG, CharLS), and JPEG-LS codestreams with restart intervals with the samples
that CharLS reads from them.
services/preprocess/tests/it/large.j2k: a codestream that takes more memory than a test lets its decoder have.
crates/fuzz/seeds: bare codestreams of every codec, as small as the codecs make them.

    pip install numpy==2.4.6 pillow==13.0.0 pydicom==3.0.2 pylibjpeg-openjpeg pyjpegls imagecodecs
    apt-get install dcmtk openjph-tools
    python tests/reference/make_codecs.py
"""

import io
import pathlib
import subprocess
import tempfile

import imagecodecs
import jpeg_ls
import numpy as np
from openjpeg import utils as openjpeg
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "crates/imaging/tests/codecs"
SEEDS = ROOT / "crates/fuzz/seeds"
J2K_LOSSLESS, J2K = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
HTJ2K_LOSSLESS, HTJ2K_RPCL = "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202"


def levels(height, width, bits, seed=1):
    """A slope, a disc and noise, so that every coder meets runs, edges and neither."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    most = (1 << bits) - 1
    picture = most * (0.2 + 0.5 * x / width)
    picture[(y - height / 2) ** 2 + (x - width / 2) ** 2 < (height / 4) ** 2] = most * 0.9
    picture[: height // 4] = most // 8
    noise = rng.normal(0, most / 100, picture.shape) * (y > height / 3)
    return np.clip(picture + noise, 0, most).astype(np.uint8 if bits <= 8 else np.uint16)


def run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def htj2k(folder, pixels, bits, *extra):
    """OpenJPH takes PGM, whose 16-bit samples are big endian."""
    source, target = folder / "in.pgm", folder / "out.j2c"
    height, width = pixels.shape
    kind = ">u2" if bits > 8 else "u1"
    source.write_bytes(f"P5 {width} {height} {(1 << bits) - 1}\n".encode() + pixels.astype(kind).tobytes())
    run("ojph_compress", "-i", source, "-o", target, "-reversible", "true", *extra)
    return target.read_bytes()


def strips(pixels, lines, near=0):
    """A JPEG-LS codestream with a restart every `lines` lines: CharLS codes each strip, this joins them (T.87 C.2.5)."""
    def parts(strip):
        # Not pyjpegls, which takes the depth from the largest value of each strip.
        coded = imagecodecs.jpegls_encode(np.ascontiguousarray(strip), level=near)
        scan = coded.index(b"\xff\xda")
        data = scan + 2 + int.from_bytes(coded[scan + 2 : scan + 4], "big")
        return coded[:scan], coded[scan:data], coded[data : coded.rindex(b"\xff\xd9")]

    height = pixels.shape[0]
    out = b""
    for number, first in enumerate(range(0, height, lines)):
        head, scan, data = parts(pixels[first : first + lines])
        if number == 0:
            size = head.index(b"\xff\xf7") + 5
            head = head[:size] + height.to_bytes(2, "big") + head[size + 2 :]
            out = head + b"\xff\xdd\x00\x04" + lines.to_bytes(2, "big") + scan
        else:
            out += bytes([0xFF, 0xD0 + (number - 1) % 8])
        out += data
    return out + b"\xff\xd9"


def dicom(pixels, bits):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "2.25.17"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID, file.SeriesInstanceUID = "2.25.18", "2.25.19"
    file.Modality, file.PatientName, file.PatientID = "CR", "PHANTOM^CODECS", "PHANTOM"
    file.StudyDate, file.StudyTime, file.InstanceNumber = "20260101", "120000", "1"
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, bits, bits - 1, 0
    file.WindowCenter, file.WindowWidth = str(1 << (bits - 1)), str(1 << bits)
    file.PixelData = pixels.astype("<u2").tobytes()
    return file


def fixtures(folder):
    FIXTURES.mkdir(parents=True, exist_ok=True)
    pixels = levels(60, 52, 12)
    native = FIXTURES / "native.dcm"
    dicom(pixels, 12).save_as(native, enforce_file_format=True)
    run("dcmconv", "+td", native, FIXTURES / "deflated.dcm")
    run("dcmcrle", native, FIXTURES / "rle.dcm")
    run("dcmcjpls", "+el", native, FIXTURES / "jpeg-ls.dcm")
    run("dcmcjpeg", "+e1", native, FIXTURES / "jpeg-lossless-sv1.dcm")
    for predictor in range(1, 8):
        run("dcmcjpeg", "+el", "+sv", predictor, native, FIXTURES / f"jpeg-lossless-p{predictor}.dcm")
    coded = {
        "j2k": (J2K_LOSSLESS, bytes(openjpeg.encode_array(pixels, bits_stored=12, photometric_interpretation=2))),
        "htj2k": (HTJ2K_LOSSLESS, htj2k(folder, pixels, 12)),
        "htj2k-rpcl": (HTJ2K_RPCL, htj2k(folder, pixels, 12, "-prog_order", "RPCL")),
        "jpeg-ls-restarts": ("1.2.840.10008.1.2.4.80", strips(pixels, 7)),
    }
    for name, (syntax, stream) in coded.items():
        file = dicom(pixels, 12)
        file.file_meta.TransferSyntaxUID = syntax
        file.PixelData = encapsulate([stream])
        file["PixelData"].VR = "OB"
        file["PixelData"].is_undefined_length = True
        file.save_as(FIXTURES / f"{name}.dcm", enforce_file_format=True)
    restarts(pixels)


def large():
    """Small to keep, large to decode; the noise keeps it below the largest ratio that imaging lets in."""
    pixels = np.full((4096, 4096), 100, np.uint8)
    pixels[:192, :192] = np.random.default_rng(1).integers(0, 255, (192, 192), np.uint8)
    stream = bytes(openjpeg.encode_array(pixels, photometric_interpretation=2))
    assert len(stream) * 900 > pixels.size
    (ROOT / "services/preprocess/tests/it/large.j2k").write_bytes(stream)


def restarts(pixels):
    """What CharLS reads from codestreams with restarts; lossless ones must give the original."""
    cases = {
        "every-line": (pixels, 1, 0),
        "more-than-eight": (pixels, 5, 0),
        "one-restart": (pixels, 59, 0),
        "near": (pixels, 7, 3),
        "eight-bits": (levels(60, 52, 8), 13, 0),
        "colour-by-sample": (np.dstack([levels(24, 20, 8, seed) for seed in (1, 2, 3)]), 5, 0),
    }
    for name, (original, lines, near) in cases.items():
        stream = strips(original, lines, near)
        read = np.asarray(jpeg_ls.decode(np.frombuffer(stream, "u1")))
        if near == 0:
            assert np.array_equal(read.reshape(original.shape), original), name
        also = imagecodecs.jpegls_decode(stream)
        assert np.array_equal(also.reshape(original.shape), read.reshape(original.shape)), name
        (FIXTURES / f"restarts-{name}.jls").write_bytes(stream)
        (FIXTURES / f"restarts-{name}.u16").write_bytes(read.reshape(original.shape).astype("<u2").tobytes())


def seeds(folder):
    SEEDS.mkdir(parents=True, exist_ok=True)
    grey, deep = levels(12, 16, 8), levels(12, 16, 12)
    colour = np.dstack([levels(12, 16, 8, seed) for seed in (1, 2, 3)])

    def keep(name, stream):
        (SEEDS / name).write_bytes(bytes(stream))

    def jpeg(picture, **options):
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "JPEG", **options)
        return out.getvalue()

    keep("grey8.jpg", jpeg(grey, quality=80))
    keep("colour8.jpg", jpeg(colour, quality=80))
    keep("colour8-progressive.jpg", jpeg(colour, quality=80, progressive=True))
    keep("grey8-restarts.jpg", jpeg(grey, quality=80, restart_marker_blocks=1))
    keep("deep12.jpg", imagecodecs.jpeg8_encode(deep, bitspersample=12))
    keep("deep12-lossless.ljpg", imagecodecs.ljpeg_encode(deep, bitspersample=12))
    keep("colour8-lossless.ljpg", imagecodecs.jpeg8_encode(colour, lossless=True))
    keep("grey8.jls", imagecodecs.jpegls_encode(grey))
    keep("deep12.jls", imagecodecs.jpegls_encode(deep))
    keep("deep12-near.jls", imagecodecs.jpegls_encode(deep, level=3))
    keep("deep12-restarts.jls", strips(deep, 3))
    for mode in (0, 1, 2):
        planes = np.ascontiguousarray(colour.transpose(2, 0, 1)) if mode == 0 else colour
        keep(f"colour8-{mode}.jls", jpeg_ls.encode_array(planes, interleave_mode=mode))
    # OpenJPEG halves five times, and takes no picture that is smaller than that.
    grey, deep = levels(32, 40, 8), levels(32, 40, 12)
    colour = np.dstack([levels(32, 40, 8, seed) for seed in (1, 2, 3)])
    keep("grey8.j2k", openjpeg.encode_array(grey, photometric_interpretation=2))
    keep("deep12.j2k", openjpeg.encode_array(deep, bits_stored=12, photometric_interpretation=2))
    keep("deep12-lossy.j2k", openjpeg.encode_array(deep, bits_stored=12, photometric_interpretation=2, compression_ratios=[4.0, 2.0]))
    keep("colour8-rct.j2k", openjpeg.encode_array(colour, photometric_interpretation=1, use_mct=True))
    keep("deep12.j2c", htj2k(folder, deep, 12))
    keep("deep12-blocks.j2c", htj2k(folder, deep, 12, "-block_size", "{4,4}", "-num_decomps", "2", "-prog_order", "RPCL"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        fixtures(pathlib.Path(name))
        seeds(pathlib.Path(name))
    large()
    print(f"pydicom {pydicom.__version__}, imagecodecs {imagecodecs.__version__}")
