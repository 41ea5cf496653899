"""Does memory stay flat as the corpus grows? Prepares 10 MB and 1 GB, then draws 200 batches.

    python tests/benchmarks/bench_text_memory.py [--megabytes 10 1000] [--tokenizer char]

Half of each corpus is one .txt file, half JSONL records. Every figure comes from a process of its
own: ru_maxrss is the peak of everything resident, "anonymous" the sampled peak of RssAnon (what
cannot be taken back from the process), "file" that of RssFile (mapped pages, libraries included).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CHILD = """
import json, resource, sys, threading, time
from pathlib import Path
import numpy as np
from cambrian.data.config import TextData
from cambrian.data.text import prepare_text
from cambrian.data.windows import Windows

peaks, done = {"RssAnon": 0, "RssFile": 0}, threading.Event()

def watch():
    status = Path("/proc/self/status")
    while status.exists() and not done.wait(0.02):
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]))

watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
store = prepare_text(TextData(source=(sys.argv[1],), tokenizer=sys.argv[2]), datasets={})
prepared = time.perf_counter() - start
windows = Windows(store.train, length=256, batch_size=16, seed=0)
start = time.perf_counter()
total = sum(int(windows.batch(i)["input_ids"].sum()) for i in range(200))
drawn = time.perf_counter() - start
done.set()
watcher.join()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "hit": store.summary["cache_hit"], "tokens": sum(store.summary["tokens"].values()),
    "prepare_s": prepared, "batches_s": drawn, "peak_mb": peak / 1024,
    "anonymous_mb": peaks["RssAnon"] / 1024, "file_mb": peaks["RssFile"] / 1024,
}))
"""


def lines(megabytes: float, seed: int) -> Iterator[str]:
    """English-like sentences: 50,000 made-up words, their frequencies after Zipf's law."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    weights = np.linspace(2, 0.2, 26) / np.linspace(2, 0.2, 26).sum()
    words = ["".join(rng.choice(letters, rng.integers(1, 11), p=weights)) for _ in range(50_000)]
    ranks = 1 / np.arange(1, 50_001)
    size = 0
    while size < megabytes * 1e6:
        drawn = rng.choice(50_000, 100_000, p=ranks / ranks.sum())
        for start in range(0, len(drawn), 12):
            line = " ".join(words[i] for i in drawn[start : start + 12]).capitalize() + "."
            size += len(line) + 1
            yield line


def write_corpus(folder: Path, megabytes: float) -> None:
    """Fill a folder with one long text and one file of records of about 1 KB."""
    folder.mkdir()
    with (folder / "text.txt").open("w") as file:
        file.writelines(line + "\n" for line in lines(megabytes / 2, 0))
    with (folder / "records.jsonl").open("w") as file:
        record: list[str] = []
        for line in lines(megabytes / 2, 1):
            record.append(line)
            if len(record) == 12:
                file.write(json.dumps({"text": "\n".join(record)}) + "\n")
                record.clear()


def main() -> None:
    """Print one row a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10, 1000])
    parser.add_argument("--tokenizer", default="char")
    options = parser.parse_args()
    print("text MB  run     tokens         prepare s  batches s  peak MB  anonymous MB  file MB")
    with tempfile.TemporaryDirectory() as name:
        for megabytes in options.megabytes:
            folder = Path(name, f"{megabytes:g}")
            write_corpus(folder, megabytes)
            time.sleep(2.5)  # files this young are read again
            for run in ("first", "second"):
                child = subprocess.run(
                    [sys.executable, "-c", CHILD, str(folder), options.tokenizer],
                    env={**os.environ, "XDG_CACHE_HOME": str(Path(name, "cache"))},
                    stdout=subprocess.PIPE,
                    check=True,
                )
                r = json.loads(child.stdout)
                assert r["hit"] == (run == "second")
                print(
                    f"{megabytes:<7g}  {run:<6}  {r['tokens']:<15,}{r['prepare_s']:<11.2f}"
                    f"{r['batches_s']:<11.2f}{r['peak_mb']:<9.0f}{r['anonymous_mb']:<14.0f}"
                    f"{r['file_mb']:.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
