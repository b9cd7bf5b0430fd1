"""What a run of pretraining has left in its folder."""

import json


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_steps(folder):
    return [row for row in read_lines(folder / "metrics.jsonl") if "learning_rate" in row]


def contents(folder):
    """Every file below a folder with what it holds."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
