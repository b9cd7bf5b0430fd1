import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent
VERSION = re.search(r'^VERSION = "([^"]+)"', (ROOT / "layerlock_hf/utils/version.py").read_text(), re.M).group(1)
README = ROOT / "README.md"

TRAIN = ["tensorboard"]
ANALYSIS = ["scikit-learn", "scipy"]
ONNX = ["onnx", "onnxruntime", "onnxscript"]
APP = ["gradio>=6.31,<7"]
MTEB = ["mteb[video]>=2.26"]
TEST = [*ANALYSIS, *ONNX, "faiss-cpu", "pytest", "pytest-timeout", "pytest-xdist", "torchmetrics"]
DOCS = ["mkdocs<2", "mkdocs-material", "mkdocstrings[python]"]
DEV = [*TRAIN, *TEST, *DOCS, *APP, "selenium", "ruff", "codespell", "pre-commit"]
DEV += [f"{one}; python_version >= '3.11'" for one in MTEB]  # which mteb needs

setup(
    name="layerlock_hf",
    version=VERSION,
    description="LayerLock and its relatives: self-supervised pretraining of video ViTs with progressive freezing",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["layerlock_hf", "layerlock_hf.*"]),
    package_data={
        "layerlock_hf": [
            *("recipes/**/*.yaml", "cli/launch/*.yaml", "hub/*_template.md", "hub/LICENSE"),
            *("reporting/page.html", "reporting/page.css", "reporting/page.js"),
        ]
    },
    # Not an entry point: that would import the package, which takes seconds, before it could answer
    scripts=["scripts/layerlock"],
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        "transformers>=5.19,<6",
        "accelerate>=1.13",  # 1.12 resumes sharded optimizers of FSDP2 wrongly, without a word
        "datasets>=5",
        "fsspec[http]",
        "huggingface-hub>=1.31,<3",
        "safetensors",
        "torchcodec>=0.12",
        "av>=17",
        "jinja2",
        "matplotlib",
        "numpy",
        "pillow",
        "psutil",
        "pyyaml",
        "tqdm",
    ],
    extras_require={
        "train": TRAIN,
        "analysis": ANALYSIS,
        "onnx": ONNX,
        "app": APP,
        "mteb": MTEB,
        "docs": DOCS,
        "dev": DEV,
    },
)
