"""Run chapters as they run where there is a GPU, on a device that stands for one (tests/second_device.py).

    make second-device                      all chapters, about 20 minutes of one core
    make second-device CHAPTERS="05 09"     some

The chapters find this device where they ask for CUDA. It computes on the CPU and fails where tensors of two devices
meet, so that every assertion of a chapter is tried as well. Nothing is written.
"""

import argparse
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ["TQDM_DISABLE"] = os.environ["COMPANION_STATIC"] = "1"  # no progress bars, no widgets
os.environ["MPLBACKEND"], os.environ["PYTHONWARNINGS"] = "agg", "ignore"


def run(path: Path) -> str:
    """Execute a chapter in this process and return how much of it ran on the device; a cell that fails raises."""
    import nbformat

    sys.path.insert(0, str(ROOT / "tests"))
    import second_device

    second_device.register()
    space, began = {"__name__": "__main__"}, time.perf_counter()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and "remove-cell" not in cell.metadata.get("tags", []):
            code = cell.source.replace("torch.cuda.is_available()", "True").replace('"cuda"', f'"{second_device.NAME}"')
            exec(compile(code, f"{path.name}, {cell.id}", "exec"), space)
    return f"{second_device.Away.calls:,} operations, {time.perf_counter() - began:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chapters", nargs="*", help="numbers of chapters; all, if none are given")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)  # one notebook, in this process
    options = parser.parse_args()
    if options.here:
        try:
            print(run(options.here), file=sys.stderr)
        except Exception:
            sys.exit(traceback.format_exc())
        return
    paths = sorted((ROOT / "book").glob("[0-9]*.ipynb"))
    chosen = [p for p in paths if not options.chapters or p.name.split("-")[0] in options.chapters]
    failed = len(chosen) == 0 or len(chosen) < len(options.chapters)
    for path in chosen:
        done = subprocess.run(
            [sys.executable, __file__, "--here", path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        print(f"{path.name}: {done.stderr.strip()}", flush=True)
        failed |= done.returncode != 0
    sys.exit("some chapters failed, or were not found" if failed else 0)


if __name__ == "__main__":
    main()
