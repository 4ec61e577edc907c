"""How pytest runs the notebooks of this folder."""

import os

os.environ["TQDM_DISABLE"] = os.environ["COMPANION_STATIC"] = "1"  # no progress bars, no widgets
os.environ.pop("MPLBACKEND", None)
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # each worker its share of the cores: threads that wait for a core spin
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


def pytest_itemcollected(item):
    """Let a busy machine take a minute to deliver an output: nbval's own limit is 5 s and has no option."""
    if hasattr(item, "output_timeout"):
        item.output_timeout = 60
