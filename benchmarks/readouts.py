"""Encoders on real videos: actions and depth, beside controls that see less.

python benchmarks/readouts.py --encoders runs/demo/layerlock runs/demo/mae --actions splits.csv --scenes rgbd \
    --output_dir runs/readouts

Every encoder is asked for classes of each data set in the list of actions, all frames squeezed to squares, once with
its clips and once with their middle frame alone; and for depth between scenes and within them. Weights drawn anew, for
the first encoder, are a control. Each run is one of `layerlock readout`; those that are done are not done again. In
the end `layerlock compare` makes a table and a picture of them.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm


COMMON = {"warmup_steps": 20, "learning_rates": [3e-4, 1e-3, 3e-3]}
SQUARES = {"ignores_aspect": True, "resize_factor": 1.0, "augment": False}
CLASSIFICATION = {"task": "classification", "num_examples": 9600, "batch_size": 32, **SQUARES}
DEPTH = {"task": "depth", "dataset": "rgbd", "num_examples": 1600, "batch_size": 8}


def runs(options) -> dict[str, dict]:
    """The settings of `layerlock readout`, by the folder of each run."""
    encoders = [(Path(path).name, {"model": path}) for path in options.encoders]
    encoders.append(("random", {"model": options.encoders[0], "random_weights": True}))
    found = {}
    for encoder, model in encoders:
        for name in options.datasets:
            data = {"data": f"{options.actions}?dataset={name}", "dataset_name": name}
            found[f"{name}/{encoder}"] = model | CLASSIFICATION | data
            found[f"{name}/{encoder}, one frame"] = model | CLASSIFICATION | data | {"is_still": True}
        for name, split in (("across", options.across), ("within", options.within)):
            data = {"data": f"{options.scenes}?{split}", "dataset_name": f"depth {name} scenes"}
            found[f"depth-{name}/{encoder}"] = model | DEPTH | data
    return found


def flags(settings: dict) -> list[str]:
    given = []
    for name, value in settings.items():
        given += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return given


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", required=True)
    parser.add_argument("--actions", required=True, help="A list with the columns path, label, split and dataset.")
    parser.add_argument("--datasets", nargs="+", default=["ut_interaction", "skateboardml"])
    parser.add_argument("--scenes", required=True, help="A folder of RGB-D recordings.")
    parser.add_argument("--across", default="train=redkitchen&test=fr1_xyz")
    parser.add_argument(
        "--within", default="train=redkitchen:0-269,fr1_xyz:0-389&test=redkitchen:290-349,fr1_xyz:410-499"
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    options = parser.parse_args()
    results = []
    for name, settings in tqdm(runs(options).items()):
        folder = options.output_dir / name
        results.append(folder / "results.json")
        if not results[-1].exists():
            folder.mkdir(parents=True, exist_ok=True)
            settings = COMMON | settings | {"output_dir": folder}
            if not settings.get("augment", True):
                settings["feature_cache"] = folder / "features"
            with (folder / "log").open("w") as log:
                subprocess.run(
                    [sys.executable, "-m", "layerlock_hf.cli.readout", *flags(settings)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    check=True,
                )
    subprocess.run(
        [sys.executable, "-m", "layerlock_hf.cli.compare", *results, "--output", options.output_dir], check=True
    )


if __name__ == "__main__":
    main()
