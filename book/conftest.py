"""How pytest runs the notebooks of this folder."""

import os

os.environ["TQDM_DISABLE"] = "1"
os.environ.pop("MPLBACKEND", None)
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def pytest_itemcollected(item):
    """Let a busy machine take a minute to deliver an output: nbval's own limit is 5 s and has no option."""
    if hasattr(item, "output_timeout"):
        item.output_timeout = 60
