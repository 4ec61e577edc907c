"""Turn a jupytext percent script into an executed notebook, and back.

    python scripts/notebook.py --to-py book/05-full-ddpm.ipynb > twin.py
    python scripts/notebook.py twin.py book/05-full-ddpm.ipynb
    python scripts/notebook.py --players book/*.ipynb

The notebook is run from top to bottom in its own folder and is not written if a cell fails. Only the notebook is
kept in the repository: the twin is for editing. Running the same twin again changes nothing but measured numbers.
The third line gives every stored player the style and script that the package has now, and runs nothing.
"""

import argparse
import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT = ("tags", "mystnb")  # cell metadata that is ours


def clean(notebook):
    """Leave in the metadata only what the book needs, with ids that do not change from run to run."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:03d}"
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in KEPT if key in cell.metadata})
    return notebook


def to_notebook(twin, path, timeout):
    """Execute `twin` in the folder of `path` and store it there with its outputs."""
    os.environ.pop("MPLBACKEND", None)
    os.environ["TQDM_DISABLE"] = os.environ["COMPANION_STATIC"] = "1"  # no progress bars, no widgets
    notebook = clean(jupytext.read(twin, fmt="py:percent"))
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=timeout,
        coalesce_streams=True,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    nbformat.write(clean(notebook), path)


def to_py(path):
    """Return `path` as a percent script, with the tags and figure settings of its cells."""
    notebook = clean(nbformat.read(path, as_version=4))
    notebook.metadata["jupytext"] = {
        "notebook_metadata_filter": "-all",
        "cell_metadata_filter": ",".join([*KEPT, "-all"]),
    }
    return jupytext.writes(notebook, fmt="py:percent")


def renew_players(path):
    """Give the players in the outputs of `path` the style and script that they would have if they were made now."""
    from companion.players import _base

    def renewed(match):
        kind = "live.js" if 'data-kind="live"' in match[0] else "player.js"
        text = re.sub(
            r"<style>.*?</style>", lambda _: f"<style>{_base.source('player.css')}</style>", match[0], flags=re.S
        )
        return re.sub(r"<script>.*?</script>", lambda _: f"<script>{_base.source(kind)}</script>", text, flags=re.S)

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            page = output.get("data", {}).get("text/html", "")
            if "companion-player" in page:
                output["data"]["text/html"] = re.sub(
                    r"<figure class=\"companion-player\".*?</figure>", renewed, page, flags=re.S
                )
    nbformat.write(notebook, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to-py", metavar="NOTEBOOK", type=Path, help="print a notebook as a percent script")
    parser.add_argument(
        "--players", metavar="NOTEBOOK", type=Path, nargs="+", help="renew the scripts of stored players"
    )
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one cell")
    parser.add_argument("twin", nargs="?", type=Path)
    parser.add_argument("notebook", nargs="?", type=Path)
    args = parser.parse_args()
    if args.to_py:
        sys.stdout.write(to_py(args.to_py))
    elif args.players:
        for path in args.players:
            renew_players(path)
    elif args.twin and args.notebook:
        try:
            to_notebook(args.twin, args.notebook, args.timeout)
        except CellExecutionError as error:
            sys.exit(f"{args.notebook} was not written, because a cell failed:\n{error}")
    else:
        parser.error("give a script and the notebook to write, --to-py NOTEBOOK, or --players NOTEBOOK")


if __name__ == "__main__":
    main()
