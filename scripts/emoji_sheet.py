"""Render the emoji that the package ships: python scripts/emoji_sheet.py FOLDER.

FOLDER is the npm package @iconify-json/fluent-emoji-flat (npm pack, or npm install). Writes one PNG with every emoji
that has no skin tone, 32x32 on white, and their names and categories. Needs CairoSVG (pip install cairosvg).
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import cairosvg
from PIL import Image

OUT = Path(__file__).parent.parent / "companion" / "data"
SKIN_TONES = ("-light", "-medium", "-dark")  # -medium-light and -medium-dark end like these
SIZE, COLUMNS = 32, 40


def main() -> None:
    """Render the icons in alphabetical order, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with icons.json, metadata.json and package.json")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write (default: the package)")
    options = parser.parse_args()
    icons, metadata, package = (
        json.loads((options.folder / f"{name}.json").read_text()) for name in ("icons", "metadata", "package")
    )
    category = {name: key for key, members in metadata["categories"].items() for name in members}
    names = sorted(name for name in icons["icons"] if not name.endswith(SKIN_TONES))
    sheet = Image.new("RGB", (COLUMNS * SIZE, -(-len(names) // COLUMNS) * SIZE), "white")
    for k, name in enumerate(names):
        sheet.paste(render(icons["icons"][name]), (k % COLUMNS * SIZE, k // COLUMNS * SIZE))
    sheet.save(options.out / "emoji.png", optimize=True)
    about = {
        "source": f"{package['name']} {package['version']}, MIT",
        "emoji": {name: category[name] for name in names},
    }
    (options.out / "emoji.json").write_text(json.dumps(about, indent=0) + "\n")
    print(f"{len(names)} emoji")


def render(icon: dict) -> Image.Image:
    """Draw one icon on white."""
    width, height = icon.get("width", 32), icon.get("height", 32)
    box = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{icon["body"]}</svg>'
    png = cairosvg.svg2png(svg.encode(), output_width=SIZE, output_height=SIZE, background_color="white")
    return Image.open(io.BytesIO(png)).convert("RGB")


if __name__ == "__main__":
    main()
