"""Seconds to the first batch, and memory over an epoch, of a million small image files.

    python benchmarks/data_start.py DEST [--count 1200000] [--batches 200] [--kind folder]

Makes `count` tiny PNG files in 1,000 class folders, then shards of 10,000, in the new folder
DEST (as many inodes as files; ``df -i`` shows what is left), reads batches of 128, and deletes
them. Prints a line of JSON for each kind. Opening and reading are measured in a process of
their own; its memory is what the kernel counts as resident, without the pages of files
(RssAnon).
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, SHARD, SIDE = 1000, 10_000, 8


def png(number: int) -> bytes:
    """Return a small image file."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def make_folders(dest: Path, count: int) -> None:
    """Write `count` training images and a test image for every class."""
    images = [png(number) for number in range(16)]
    for label in range(CLASSES):
        for split, share in (("train", -(-count // CLASSES)), ("val", 1)):
            folder = dest / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for index in range(share):
                name = folder / f"n{label:08d}_{index}.png"
                name.write_bytes(images[index % 16])


def make_shards(dest: Path, count: int) -> None:
    """Write the same as shards."""
    images = [png(number) for number in range(16)]
    dest.mkdir(parents=True)
    for split, total in (("train", count), ("val", CLASSES)):
        for first in range(0, total, SHARD):
            with tarfile.open(dest / f"set-{split}-{first // SHARD:05d}.tar", "w") as tar:
                for number in range(first, min(first + SHARD, total)):
                    label = b"%d" % (number % CLASSES)
                    for kind, data in (("png", images[number % 16]), ("cls", label)):
                        info = tarfile.TarInfo(f"{number:08d}.{kind}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))


def anonymous() -> float:
    """Return this process's memory in MB, without the pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith("RssAnon")]
    return int(value) / 1024


def measure(dataset: str, folder: Path, batches: int, workers: int) -> dict[str, float]:
    """Open `dataset` and read some batches."""
    from qtool.data import load_dataset
    from qtool.data.batches import Batches

    before, began, spent = anonymous(), time.perf_counter(), time.process_time()
    data = load_dataset(dataset, folder, SIDE)
    opened, spent = time.perf_counter(), time.process_time() - spent
    epoch = Batches(data.train, 128, 0, ("resized_crop", "flip"), workers)
    drawn, batches = epoch.epoch(0), min(batches, len(epoch) - 1)
    next(drawn)
    first, held = time.perf_counter(), anonymous()
    middle = 0.0
    for index in range(batches):
        next(drawn)
        middle = anonymous() if index == batches // 2 else middle
    done = time.perf_counter()
    return {
        "images": len(data.train), "batches": batches, "workers": workers,
        "seconds_to_open": round(opened - began, 2),
        "cpu_seconds_to_open": round(spent, 2),
        "seconds_to_first_batch": round(first - began, 2),
        "ms_per_batch": round((done - first) / batches * 1e3, 2),
        "opened_mb": round(held - before, 1),
        "growth_mb_first_half": round(middle - held, 1),
        "growth_mb_second_half": round(anonymous() - middle, 1),
    }  # fmt: skip


KINDS = {"folder": ("imagefolder", make_folders), "shards": ("webdataset", make_shards)}


def main() -> None:
    """Make, measure, print and delete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dest", type=Path)
    parser.add_argument("--count", type=int, default=1_200_000)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args()
    args.dest.mkdir(parents=True)
    free = os.statvfs(args.dest).f_favail
    if "folder" in args.kind and free < 2 * args.count:
        parser.error(f"{args.dest} has {free:,} inodes left for {args.count:,} files")
    try:
        for kind in args.kind:
            dataset, make = KINDS[kind]
            began = time.perf_counter()
            make(args.dest / kind, args.count)
            made = round(time.perf_counter() - began, 1)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rest = (dataset, args.dest / kind, args.batches, args.workers)
                found = pool.apply(measure, rest)
            print(json.dumps({"kind": kind, "seconds_to_make": made, **found}), flush=True)
    finally:
        shutil.rmtree(args.dest)


if __name__ == "__main__":
    main()
