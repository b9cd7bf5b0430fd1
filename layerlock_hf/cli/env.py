"""What LayerLock finds on this machine, and what is missing, with the commands that install it.

layerlock env
"""

import argparse
import importlib
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version

import torch

from ..utils.cores import count_cores
from ..utils.memory import free_memory
from ..utils.version import VERSION
from . import programs  # noqa: F401  (how programs end)


# What only some settings and programs need, and how it is installed
OPTIONAL = {
    "tensorboard": ("curves in TensorBoard (report_to)", 'pip install "layerlock_hf[train]"'),
    "scikit-learn": ("probes of layerlock analyze", 'pip install "layerlock_hf[analysis]"'),
    "onnxruntime": ("layerlock export --to onnx", 'pip install "layerlock_hf[onnx]"'),
    "gradio": ("layerlock app", 'pip install "layerlock_hf[app]"'),
    "mteb": ("MVEB, a benchmark of video embeddings", 'pip install "layerlock_hf[mteb]"'),
    "triton": ("torch.compile on GPUs", "part of PyTorch for CUDA"),
}
GIB = 2**30


def version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def required() -> list[str]:
    """Names of the packages that this one needs."""
    lines = [line for line in requires("layerlock_hf") or [] if "extra ==" not in line]
    return [re.match(r"[\w.-]+", line)[0] for line in lines]


def decoders() -> list[tuple[str, str, str | None]]:
    """Name, what it is, and what mends it, of everything that reads videos."""
    rows = []
    try:
        av = importlib.import_module("av")
        codecs = ", ".join(f"{name} {'.'.join(map(str, numbers))}" for name, numbers in av.library_versions.items())
        rows.append(("PyAV", f"{av.__version__} ({codecs})", None))
    except ImportError as error:
        rows.append(("PyAV", f"cannot be imported: {error}", "pip install av"))
    try:
        torchcodec = importlib.import_module("torchcodec.decoders")
        rows.append(("torchcodec", f"{version_of('torchcodec')} ({torchcodec.__name__})", None))
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        mend = "apt-get install ffmpeg (or conda install ffmpeg), and torchcodec as its README pairs it with torch"
        rows.append(("torchcodec", f"cannot be loaded: {reason}", mend))
    path = shutil.which("ffmpeg")
    rows.append(("ffmpeg", path or "not on the path", None if path else "apt-get install ffmpeg"))
    return rows


def devices() -> list[str]:
    lines = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        lines.append(f"cuda:{index} {found.name}, {found.total_memory / GIB:.0f} GiB")
    if not lines:
        built = "PyTorch is built for CPUs" if torch.version.cuda is None else "PyTorch finds none"
        lines.append(f"no GPU: {built}")
    return lines


def main(arguments: list[str]):
    parser = programs.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    missing = []
    print(f"layerlock_hf {VERSION}, Python {platform.python_version()}, {platform.platform()}")
    print(f"{count_cores()} cores, {free_memory(torch.device('cpu')) / GIB:.1f} GiB of memory free")
    for line in devices():
        print(f"  {line}")
    print("\nPackages:")
    for name in required():
        found = version_of(name)
        print(f"  {name:16} {found or 'missing'}")
        missing += [] if found else [f"pip install {name}"]
    for name, (purpose, how) in OPTIONAL.items():
        print(f"  {name:16} {version_of(name) or f'not installed: for {purpose} ({how})'}")
    print("\nVideo:")
    for name, text, mend in decoders():
        print(f"  {name:16} {text}")
        missing += [mend] if mend else []
    print("\nAll that is required is there." if not missing else "\nMissing packages; install them with:")
    for command in missing:
        print(f"  {command}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
