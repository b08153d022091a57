"""Has GDCM and DCMTK decode the corpora too, and says where they and reference.jsonl differ. By hand, as it takes both:

    apt-get install dcmtk
    venv/bin/pip install pydicom==3.0.2 numpy==2.4.6 python-gdcm==3.2.6
    venv/bin/python second_reference.py CACHE

GDCM decodes as a plug-in of pydicom; DCMTK's programs write a copy without compression, which pydicom reads. So only what is
compressed is decoded anew. Lossless frames must be equal; lossy ones may differ as `corpus.rs` lets them.
"""
import base64
import collections
import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import pydicom

import reference

# As LOSSY_DIFFERENCE_MAX of corpus.rs.
LOSSY_DIFFERENCE_MAX = 3.0
JPEG = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70)}
JPEG_LS = {f"1.2.840.10008.1.2.4.{n}" for n in (80, 81)}
JPEG_2000 = {f"1.2.840.10008.1.2.4.{n}" for n in (90, 91)}
RLE = {"1.2.840.10008.1.2.5"}
GDCM = JPEG | JPEG_LS | JPEG_2000
DCMTK = dict.fromkeys(JPEG, "dcmdjpeg") | dict.fromkeys(JPEG_LS, "dcmdjpls") | dict.fromkeys(RLE, "dcmdrle")
PIXEL_ARRAY = reference.pixel_array


def by_gdcm(path, _syntax):
    reference.pixel_array = lambda ds, raw: PIXEL_ARRAY(ds, raw=raw, decoding_plugin="gdcm")
    try:
        return reference.describe(path)
    finally:
        reference.pixel_array = PIXEL_ARRAY


def by_dcmtk(path, syntax):
    with tempfile.TemporaryDirectory() as folder:
        plain = pathlib.Path(folder) / "plain.dcm"
        ended = subprocess.run([DCMTK[syntax], path, plain], capture_output=True)
        if ended.returncode != 0 or not plain.exists():
            return {"fails": f"{DCMTK[syntax]} {ended.returncode}"}
        # Sampled, if the original is.
        lossy = reference.LOSSY
        if syntax in lossy:
            reference.LOSSY = lossy | {"1.2.840.10008.1.2.1"}
        try:
            return reference.describe(plain)
        finally:
            reference.LOSSY = lossy


def differs(found, expected):
    """Why two frames are not the same; nothing if they are."""
    if found["values"] != expected["values"]:
        return f"{found['values']} values instead of {expected['values']}"
    if "sha256" in expected:
        return None if found["sha256"] == expected["sha256"] else "another digest"
    ours, theirs = (np.frombuffer(base64.b64decode(one["samples"]), "<f4") for one in (found, expected))
    worst, scale = np.abs(ours - theirs).max(), max(255.0, np.abs(theirs).max()) / 255.0
    return None if worst <= LOSSY_DIFFERENCE_MAX * scale else f"differs by {worst:.1f} at a sampled value"


def main(root):
    warnings.simplefilter("ignore")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    root, here = pathlib.Path(root), pathlib.Path(__file__).parent
    lines = [json.loads(line) for line in open(here / "reference.jsonl")]
    for name, of, decode in (("GDCM", GDCM, by_gdcm), ("DCMTK", set(DCMTK), by_dcmtk)):
        counts = collections.Counter()
        for line in lines:
            if line.get("syntax") not in of or "frames" not in line:
                continue
            found = decode(root / line["file"], line["syntax"])
            if "fails" in found:
                counts["does not decode"] += 1
                print(f"{name}: {line['file']}: {found['fails']}")
                continue
            pairs = zip(found["frames"], line["frames"], strict=True)
            why = next((why for why in (differs(*pair) for pair in pairs) if why), None)
            counts["differs" if why else "the same"] += 1
            if why:
                print(f"{name}: {line['file']}: {why}")
        print(name, dict(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
