"""Makes tests/golden/slides: one synthetic slide as DICOM and TIFF pyramids, and the patches that Python cuts out of it.

    python3 -m venv venv
    venv/bin/pip install pydicom==3.0.2 numpy==2.4.6 Pillow==13.0.0 tifffile==2026.3.3 imagecodecs==2026.3.6
    venv/bin/python slides.py

The slide has 2304 × 1920 pixels of 1 micrometre and a level of 4 micrometres. patch-N.png is patch N of the grid of 896,
row by row, of those that the mask of the coarse level says have tissue; patches.json has their numbers.
"""
import io
import json
import pathlib

import imagecodecs
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit
import tifffile

GOLDEN = pathlib.Path(__file__).parent / "golden" / "slides"
WIDTH, HEIGHT, TILE, PATCH, SIDE = 2304, 1920, 256, 896, 32
SATURATION, VALUE, TISSUE = 0.08, 0.1, 0.25


def slide():
    """Glass, with two pieces of tissue in blocks of 32 pixels; the piece at the lower right is small."""
    y, x = np.mgrid[0:HEIGHT // 32, 0:WIDTH // 32]
    picture = np.full((HEIGHT // 32, WIDTH // 32, 3), 255, np.uint8)
    large = ((x - 20) / 14.0) ** 2 + ((y - 27) / 24.0) ** 2 < 1
    small = (np.abs(x - 50) < 4) & (np.abs(y - 45) < 4)
    picture[large] = np.stack([170 + x, 90 + 2 * y, 140 + x + y // 2], -1)[large]
    picture[small] = (120, 60, 110)
    # Ink of a pen: no colour, no light.
    picture[3:5, 50:64] = 5
    return picture.repeat(32, 0).repeat(32, 1)


def tiles(level):
    height, width = level.shape[:2]
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            tile = np.zeros((TILE, TILE, 3), np.uint8)
            part = level[top:top + TILE, left:left + TILE]
            tile[:part.shape[0], :part.shape[1]] = part
            yield top, left, tile


def jpeg(tile):
    out = io.BytesIO()
    Image.fromarray(tile).save(out, "JPEG", quality=80, subsampling="4:4:4")
    return out.getvalue()


def dicom(name, level, spacing, syntax, sparse, flavour="VOLUME"):
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.6", "2.25.1" + str(sum(name.encode()))
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.20", "2.25.21"
    ds.Modality, ds.ImageType = "SM", ["ORIGINAL", "PRIMARY", flavour, "NONE"]
    ds.Rows = ds.Columns = TILE
    ds.SamplesPerPixel, ds.PlanarConfiguration, ds.PixelRepresentation = 3, 0, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PhotometricInterpretation = {JPEGBaseline8Bit: "YBR_FULL_422", JPEG2000Lossless: "YBR_RCT"}.get(syntax, "RGB")
    ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns = level.shape[:2]
    ds.NumberOfOpticalPaths = ds.TotalPixelMatrixFocalPlanes = 1
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [spacing, spacing]
    shared.PixelMeasuresSequence = [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    kept, places = [], []
    for top, left, tile in tiles(level):
        # Glass was not scanned.
        if sparse and (tile.max(-1) - tile.min(-1)).max() == 0 and tile.min() > 200:
            continue
        position, place = Dataset(), Dataset()
        position.ColumnPositionInTotalImagePixelMatrix = left + 1
        position.RowPositionInTotalImagePixelMatrix = top + 1
        place.PlanePositionSlideSequence = [position]
        places.append(place)
        kept.append(tile)
    if sparse:
        # In no order.
        kept, places = kept[::-1], places[::-1]
        ds.PerFrameFunctionalGroupsSequence = places
    ds.NumberOfFrames = len(kept)
    pack = {JPEGBaseline8Bit: jpeg, JPEG2000Lossless: lambda tile: imagecodecs.jpeg2k_encode(tile, level=0, reversible=True, codecformat="j2k")}
    if syntax in pack:
        ds.PixelData = encapsulate([pack[syntax](tile) for tile in kept])
        ds["PixelData"].is_undefined_length = True
    else:
        ds.PixelData = b"".join(tile.tobytes() for tile in kept)
    ds["PixelData"].VR = "OB"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(GOLDEN / f"{name}.dcm", enforce_file_format=True)


def tiff(name, levels, description=None, **options):
    with tifffile.TiffWriter(GOLDEN / f"{name}.tif") as out:
        for at, level in enumerate(levels):
            placed = dict(tile=(TILE, TILE), description=description if at == 0 else None, metadata=None)
            if description:
                # Tiles that Pillow has packed: tifffile takes levels for chrominance as they are.
                packed = (jpeg(tile) for _, _, tile in tiles(level))
                out.write(packed, shape=level.shape, dtype=np.uint8, photometric="ycbcr", subsampling=(1, 1), compression="jpeg", **placed)
            else:
                out.write(level, photometric="rgb", subfiletype=min(at, 1), **placed, **options)
            if description and at == 0:
                # As Aperio puts its thumbnail; the last ones, label and overview, lie behind the levels.
                out.write(level[::8, ::8].copy(), photometric="rgb", metadata=None, compression="zlib", rowsperstrip=16)
        if description:
            out.write(np.full((60, 40, 3), 99, np.uint8), photometric="rgb", metadata=None, subfiletype=1)


def mixed(state):
    """SplitMix64, as its authors define it."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def patches(fine, coarse):
    largest, smallest = coarse.max(-1).astype(float), coarse.min(-1).astype(float)
    tissue = (largest >= VALUE * 255) & (largest - smallest >= SATURATION * largest)
    columns, rows = WIDTH // PATCH, HEIGHT // PATCH
    scale = coarse.shape[1] / WIDTH
    found = []
    for number in range(columns * rows):
        left, top = number % columns * PATCH, number // columns * PATCH
        x0, x1 = int(np.floor(left * scale)), int(np.ceil((left + PATCH) * scale))
        y0, y1 = int(np.floor(top * scale)), int(np.ceil((top + PATCH) * scale))
        if tissue[y0:y1, x0:x1].mean() >= TISSUE:
            found.append(number)
            patch = Image.fromarray(fine[top:top + PATCH, left:left + PATCH])
            patch.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(GOLDEN / f"patch-{number}.png", optimize=True)
    drawn = sorted(sorted(range(2000), key=lambda number: (mixed(number), number))[:126])
    (GOLDEN / "patches.json").write_text(json.dumps({"numbers": found, "drawn_of_2000": drawn}))


def main():
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for path in GOLDEN.iterdir():
        path.unlink()
    fine = slide()
    coarse = fine[::4, ::4].copy()
    dicom("full-jpeg", fine, 0.001, JPEGBaseline8Bit, False)
    dicom("sparse-deflated", fine, 0.001, DeflatedExplicitVRLittleEndian, True)
    dicom("full-j2k", fine, 0.001, JPEG2000Lossless, False)
    dicom("coarse", coarse, 0.004, DeflatedExplicitVRLittleEndian, False)
    dicom("label", fine[:TILE, :TILE].copy(), 0.004, DeflatedExplicitVRLittleEndian, False, "LABEL")
    aperio = "Aperio Image Library v1\r\n2304x1920 |AppMag = 10|MPP = 1.0|Date = 01/01/20"
    tiff("aperio-jpeg", [fine, coarse], aperio)
    tiff("pyramid-deflate", [fine, coarse], compression="zlib", resolution=(10000, 10000), resolutionunit="CENTIMETER")
    patches(fine, coarse)


if __name__ == "__main__":
    main()
