"""The benchmark scripts run at a tiny size, and the results that ship were made with their settings."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_swiss_roll_runs_at_a_tiny_size(tmp_path, capsys):
    out = tmp_path / "results" / "tiny.json"
    script("swiss_roll").main(["--seeds", "1", "--draws", "2", "--points", "60", "--num-steps", "3", "--out", str(out)])
    result = json.loads(out.read_text(encoding="utf8"))
    assert set(result["rows"]) == {"floor"} | {
        f"{who}, {name}"
        for who in ("network", "exact")
        for name in ("dpmpp_2m, 20", "ddpm, 40, posterior", "ddpm, 40, upper")
    }
    assert result["draws"] == 2 and result["rows"]["floor"]["ratio"] == 1.0
    assert (
        result["rows"]["network, dpmpp_2m, 20"]["ratio"] > result["rows"]["exact, dpmpp_2m, 20"]["ratio"]
    )  # untrained
    assert "times the floor" in capsys.readouterr().out


def test_stored_swiss_roll_was_made_with_the_settings_of_the_script():
    stored = json.loads((ROOT / "companion" / "results" / "swiss_roll.json").read_text(encoding="utf8"))
    assert stored["settings"] == {**script("swiss_roll").SETTINGS, "points": 3000}
    assert stored["seeds"] == [0, 1, 2] and stored["draws"] >= 12
    assert max(stored["training_seconds"]) <= 25


def test_stored_swiss_roll_keeps_its_promises():
    rows = json.loads((ROOT / "companion" / "results" / "swiss_roll.json").read_text(encoding="utf8"))["rows"]
    assert rows["network, dpmpp_2m, 20"]["ratio"] <= 1.1
    assert rows["network, ddpm, 40, upper"]["mean"] <= 1.1 * rows["exact, ddpm, 40, upper"]["mean"]
