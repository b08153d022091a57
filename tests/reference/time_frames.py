"""Times pydicom (with pylibjpeg, its openjpeg, libjpeg and rle plugins, and pyjpegls), numpy and Pillow from a file to the frame
that a model takes, in turns with `medfleet bench frames` on the same file: theirs, ours, theirs, ours.

Both are told how long they take once everything is loaded: each turn is a process that does the file once before it is
measured. The frames are compared too: `--frames DIR` has ours, as `medfleet frames` writes them.

    python3 -m venv /some/folder/outside/the/repository
    /some/folder/outside/the/repository/bin/pip install numpy==2.4.6 pillow==13.0.0 pydicom==3.0.2 pylibjpeg==2.1.0 \\
        pylibjpeg-libjpeg==2.5.0 pylibjpeg-openjpeg==2.6.0 pylibjpeg-rle==2.2.0 pyjpegls==1.5.1
    /some/folder/outside/the/repository/bin/python tests/reference/time_frames.py --medfleet target/debug/medfleet DIR/film-*.dcm
"""

import argparse
import importlib.metadata
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

SIDE = 896
CT_WINDOWS = ((-1024.0, 1024.0), (-135.0, 215.0), (0.0, 80.0))


def one(path):
    """The frame of one file, by the rules of docs/imaging.md, as a person would write it with numpy and Pillow."""
    import numpy as np
    import pydicom
    from PIL import Image
    from pydicom.pixels import apply_modality_lut, apply_windowing

    file = pydicom.dcmread(path)
    values = apply_modality_lut(file.pixel_array, file)
    if file.Modality == "CT":
        channels = [np.clip((values - low) / (high - low), 0, 1) * 255 for low, high in CT_WINDOWS]
        levels = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    else:
        shown = apply_windowing(values, file)
        # It keeps the range of the stored values, which is the output's.
        levels = np.rint(shown * (255 / ((1 << file.BitsStored) - 1))).astype(np.uint8)
        if file.PhotometricInterpretation == "MONOCHROME1":
            levels = 255 - levels
    rows, columns = levels.shape[:2]
    side = max(rows, columns)
    square = np.zeros((side, side, *levels.shape[2:]), np.uint8)
    top, left = (side - rows) // 2, (side - columns) // 2
    square[top : top + rows, left : left + columns] = levels
    return Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def files(path):
    return sorted(path.iterdir()) if path.is_dir() else [path]


def turn(path, runs):
    """In a process of its own: this one. Seconds of each run, and the most memory."""
    import pydicom

    # Values that a standard would refuse are read by medfleet too, where they do not matter.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    study = files(path)
    for file in study:
        one(file)
    wall, processor = [], time.process_time()
    for _ in range(runs):
        begun = time.perf_counter()
        for file in study:
            one(file)
        wall.append(time.perf_counter() - begun)
    processor = (time.process_time() - processor) / runs
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"wall": wall, "processor": processor, "peak": peak}))


def theirs(path, runs):
    command = [sys.executable, __file__, "--turn", str(runs), str(path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return statistics.median(found["wall"]), found["processor"], found["peak"]


def ours(medfleet, path, runs):
    command = [medfleet, "bench", "frames", "--json", "--runs", str(runs), str(path)]
    case = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["cases"][0]
    if "refused" in case:
        return None
    peak = case["memory_bytes_peak"] + case["decoders_bytes_peak"]
    return case["wall"]["median_ms"] / 1000, case["processor_ms"] / 1000, peak


def difference(medfleet, path):
    """The largest difference of a level between both frames of a file."""
    import numpy as np
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([medfleet, "frames", str(path), "--out", folder], check=True, capture_output=True)
        frame = np.asarray(Image.open(next(pathlib.Path(folder).glob("*.png"))), np.int16)
    return int(np.abs(np.asarray(one(path), np.int16) - frame).max())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=pathlib.Path)
    parser.add_argument("--medfleet", default="target/debug/medfleet")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="of each turn")
    parser.add_argument("--turn", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        return turn(arguments.paths[0], arguments.turn)
    names = ("pydicom", "pylibjpeg-openjpeg", "pylibjpeg-libjpeg", "pylibjpeg-rle", "pyjpegls", "numpy", "pillow")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))
    print("| file | ours, wall | pydicom, wall | ours, processor | pydicom, processor | ours, memory | pydicom, memory | largest difference |")
    print("|---|---|---|---|---|---|---|---|")
    for path in arguments.paths:
        pairs = []
        for _ in range(arguments.turns):
            pairs.append((theirs(path, arguments.runs), ours(arguments.medfleet, path, arguments.runs)))
        if pairs[0][1] is None:
            print(f"| {path.name} | refused |")
            continue
        cells = []
        for figure, show in ((0, "{:.0f} ms"), (1, "{:.0f} ms"), (2, "{:.0f} MiB")):
            scale = 1000 if figure < 2 else 1 / (1 << 20)
            for who in (1, 0):
                cells.append(show.format(statistics.median(pair[who][figure] for pair in pairs) * scale))
        differs = "" if path.is_dir() else difference(arguments.medfleet, path)
        print(f"| {path.name} | {' | '.join(cells)} | {differs} |", flush=True)


if __name__ == "__main__":
    main()
