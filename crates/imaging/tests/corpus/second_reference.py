"""Writes second_reference.jsonl: whether GDCM and DCMTK make of the corpora what reference.jsonl says.

    apt-get install dcmtk
    venv/bin/pip install pydicom==3.0.2 numpy==2.4.6 python-gdcm==3.2.6
    venv/bin/python second_reference.py corpora

after reference.py, by hand: it compares one stored answer with others and never runs what is tested.
GDCM decodes as a plug-in of pydicom; DCMTK's programs write a copy without compression, which pydicom reads. So only what is
compressed is decoded anew. Lossless frames must be equal; lossy ones may differ as `corpus.rs` lets them.
"""
import base64
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


def judged(found, line):
    """What another decoder says of the line, in the words of the page."""
    if "fails" in found:
        return "does not decode"
    pairs = zip(found["frames"], line["frames"], strict=True)
    why = next((why for why in (differs(*pair) for pair in pairs) if why), None)
    return f"differs: {why}" if why else "same"


def main(root):
    warnings.simplefilter("ignore")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    root, here = pathlib.Path(root), pathlib.Path(__file__).parent
    peers = (("gdcm", GDCM, by_gdcm), ("dcmtk", set(DCMTK), by_dcmtk))
    with open(here / "second_reference.jsonl", "w") as out:
        for line in map(json.loads, open(here / "reference.jsonl")):
            if "frames" not in line:
                continue
            asked = [(name, decode) for name, of, decode in peers if line["syntax"] in of]
            said = {name: judged(decode(root / line["file"], line["syntax"]), line) for name, decode in asked}
            if said:
                print(json.dumps({"file": line["file"], **said}), file=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
