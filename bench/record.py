"""Rows of results: appended to a CSV file, each with the date, the commit, the device and the versions."""

import csv
import fcntl
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def circumstances() -> dict[str, str]:
    """When, on what and with what something was measured."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads"
    )
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {
        "date": date.today().isoformat(),
        "commit": found.stdout.strip() or "unknown",
        "device": device,
    } | versions


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row; new columns widen the file, old rows stay. Several processes may do so at once."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a+", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        rows: list[dict[str, Any]] = [*csv.DictReader(file), row]
        columns = list(dict.fromkeys([name for each in rows for name in each]))
        file.truncate(0)
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
