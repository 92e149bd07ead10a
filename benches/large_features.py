#!/usr/bin/env python3
"""How fast feature files larger than memory are read, and how much memory that takes.

    python3 benches/large_features.py [--engine target/release/bm3-engine] [--device cpu] [--sizes 1,4,40]

For each size in GB and each number type the script makes a sparse `.npy` file, which takes no disk but
is read through the page cache like any other. It measures two jobs beside `cat FILE >/dev/null`, each
after a `cat` that fills the cache as far as it goes:

- check: `bm3-engine inspect FILE`, which reads every number;
- train: one epoch of 20,000 interactions with frozen features (`--feature-storage` as given), from
  the program's start to its end, including one read of the whole table.

GB/s refer to the file's size. The peak of resident memory is the kernel's own count, which includes
the file pages mapped at the time; `of that anonymous` excludes them. Needs only the standard library.
"""

import argparse
import pathlib
import subprocess
import tempfile
import time

WIDTH = 4096
TYPES = {"f16": ("<f2", 2), "f32": ("<f4", 4), "f64": ("<f8", 8)}


def write(folder, gigabytes, name):
    """Makes a data folder with `gigabytes` of features, all zeros; returns the feature file."""
    descr, size = TYPES[name]
    items = int(gigabytes * 1e9) // (WIDTH * size)
    fields = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({items}, {WIDTH}), }}"
    with (folder / "image_feat.npy").open("wb") as file:
        file.write(b"\x93NUMPY\x01\x00\x76\x00" + f"{fields:<117}\n".encode())
        file.truncate(128 + items * WIDTH * size)
    users, pairs = 2000, 20_000
    with (folder / "large.inter").open("w") as file:
        file.write("userID\titemID\tx_label\n")
        for pair in range(pairs):
            # A multiplier with no factor in common with the number of rows spreads items over the table.
            item = items - 1 if pair == 0 else pair * 7_919_993 % items
            file.write(f"{pair % users}\t{item}\t{0 if pair % 10 < 8 else pair % 10 - 7}\n")
    return folder / "image_feat.npy"


def measure(command):
    """Seconds, peak resident bytes and peak anonymous bytes of a process."""
    begin = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = anonymous = 0
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        figures = dict(line.split(":", 1) for line in status.splitlines() if line.startswith(("VmHWM", "RssAnon")))
        if "VmHWM" in figures:
            peak = max(peak, int(figures["VmHWM"].split()[0]) << 10)
            anonymous = max(anonymous, int(figures["RssAnon"].split()[0]) << 10)
        time.sleep(0.002)
    talk = process.communicate()[1].decode()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\nended with {process.returncode}:\n{talk}")
    return time.perf_counter() - begin, peak, anonymous


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="target/release/bm3-engine")
    parser.add_argument("--device", default="cpu", help="cpu, or the number of a GPU")
    parser.add_argument("--storage", default="auto", help="of features on a GPU: auto, resident or stream")
    parser.add_argument("--sizes", default="1,4,40", help="in GB")
    parser.add_argument("--types", default="f16,f32,f64")
    arguments = parser.parse_args()
    print("| file | job | seconds | GB/s | of `cat` | peak resident, MB | of that anonymous, MB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for size in map(float, arguments.sizes.split(",")):
        for name in arguments.types.split(","):
            with tempfile.TemporaryDirectory() as folder:
                file = write(pathlib.Path(folder), size, name)
                cat = ["sh", "-c", f"cat '{file}'"]
                measure(cat)
                jobs = {
                    "cat": cat,
                    "check": [arguments.engine, "inspect", file],
                    "train": [arguments.engine, "train", "--data", folder, "--freeze-features", "--epochs", "1",
                              "--device", arguments.device, "--feature-storage", arguments.storage,
                              "--embedding-size", "16", "--quiet", "--out", f"{folder}/run"],
                }
                base = None
                for job, command in jobs.items():
                    seconds, peak, anonymous = measure(command)
                    base = base or seconds
                    print(f"| {size:g} GB {name} | {job} | {seconds:.2f} | {size / seconds:.2f} | {base / seconds:.2f} "
                          f"| {peak / 1e6:.0f} | {anonymous / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
