"""A sweep of readouts on a frozen encoder, from its settings to the files that it leaves."""

import contextlib
import copy
import os
import platform
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import set_seed

from ..hub.client import PushFailed, ask, check_repo_id, connect
from ..hub.evaluation_files import eval_results_name, eval_results_yaml
from ..hub.pushing import push_file
from ..recipes.settings import flags_of
from ..utils.outputs import check_output
from ..utils.processes import check_shared_folder, start_processes
from ..utils.version import VERSION
from .arguments import SIZED, ClipArguments, EncoderArguments, ReadoutSettings, SharingArguments, parse
from .encoders import load_encoder
from .feature_sources import features_and_clips, fill, probe, sources_of
from .protocol import sweep_points
from .readouts import READOUTS
from .report import draw, save_model
from .results import build_results, write_results
from .splits import BAD_VIDEOS, SETS
from .sweep import METRICS, Sweep


RESULTS = "results.json"
REPORTS = (METRICS, BAD_VIDEOS)
GENERAL = ("table", "folder", "rgbd")  # kinds of data sets rather than data sets
# What the settings of `results.json` leave out: which encoder and videos, and what changes no result
ABOUT_SOURCES = ("model", "random_weights", "data", "test_data", "dataset", "dataset_name")
INCIDENTAL = (
    "output_dir",
    "num_workers",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "micro_batch_size",
    "max_parallel_readouts",
    "feature_cache",
    "decode_timeout",
    "max_bad_fraction",
    "probes",
)
# What changes nothing without --augment
AUGMENTATION = ("flip_probability", "jitter_strength", "jitter_probability", "gray_probability")
# Seconds that processes wait for each other: long enough for one that has more features to make than the others
TIMEOUT_S = 3600


def train_readouts(
    model: str | Path,
    task: str,
    data: str | Path,
    output_dir: str | Path,
    config: str | Path | None = None,
    **settings,
) -> dict | None:
    """Train readouts on a frozen encoder, at all depths and learning rates in one pass, and test them, as
    `layerlock readout` does.

    Examples:
        >>> results = train_readouts("runs/mine", "classification", "labels.csv", "runs/readout")  # doctest: +SKIP
        >>> results["best"]["metrics"]["top1"]["value"]  # doctest: +SKIP

    Args:
        model: folder or Hub id of an encoder: ours, or any ViT of Transformers.
        task: "classification" or "depth".
        data: where the dataset is.
        output_dir: folder for results, pictures and the model with the best readout.
        config: a recipe, by its name (`layerlock recipes` lists them) or its path.
        settings: what differs from the recipe, by the names of the flags of `layerlock readout`.

    Returns:
        The content of `results.json` on the main process, None on others.

    Raises:
        ValueError: naming the setting that is unknown, wrong, or contradicts another.
        BadData: if too many videos cannot be used.
    """
    given = {"config": config, "model": model, "task": task, "data": data, "output_dir": output_dir}
    return run(flags_of({**given, **settings}))


def run(arguments: list[str]) -> dict | None:
    """`train_readouts` by its flags."""
    settings = parse(arguments)
    with kernels_are_deterministic():
        evaluation = build(settings)
        fill(evaluation.stores, evaluation.encoder, evaluation.task, settings.sweep)
        samples = evaluation.sweep.run()
        probes = probe_features(evaluation) if settings.clips.probes else None
        if not PartialState().is_main_process:
            return None
        results = results_of(evaluation, samples, probes, shlex.join(["layerlock", "readout", *arguments]))
        write(results, evaluation)
    if settings.sharing.push_results is not None:
        share(results, settings.sharing, Path(settings.clips.output_dir))
    return results


@dataclass(frozen=True)
class Evaluation:
    """What a sweep is made of.

    Attributes:
        settings: of the user.
        encoder: that is read.
        config: of the readouts.
        sets: what is trained on and tested.
        task: what is learned.
        sweep: trains and tests the readouts.
        read_features: from clips.
        stores: features that are kept in files.
        recorded: the settings that `results.json` holds.
    """

    settings: ReadoutSettings
    encoder: nn.Module
    config: object
    sets: object
    task: object
    sweep: Sweep
    read_features: object
    stores: tuple
    recorded: dict


def build(settings: ReadoutSettings) -> Evaluation:
    """Check the settings, load the encoder and the data, and make the readouts.

    Raises:
        ValueError: saying what the user has to fix.
    """
    encoder_args, args, sweep_args, sharing = settings
    args.check_paths()
    if sharing.push_results is not None:  # before hours of work
        check_repo_id(sharing.push_results, "push_results")
        check_repo_id(sharing.results_dataset, "results_dataset")
        api = connect(None)
        ask(f"push_results: {sharing.push_results}", "looking it up", lambda: api.model_info(sharing.push_results))
    use_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    start_processes(use_cpu, None, TIMEOUT_S)
    output, state = Path(args.output_dir), PartialState(cpu=use_cpu)
    if state.is_main_process:
        check_output(output, REPORTS)
        if args.feature_cache is not None:
            check_output(Path(args.feature_cache), (), "feature_cache")
    check_shared_folder(output)
    encoder = load(encoder_args, sweep_args.seed).to(state.device)
    config = readout_config(encoder, encoder_args)
    sets = SETS[args.task](args, sweep_args, config)
    task = sets.task(READOUTS[encoder_args.readout])
    points = sweep_points(sweep_args, config.num_hidden_layers)
    depths = sorted({point.depth for point in points})
    if state.is_main_process:
        num_weights = sum(parameter.numel() for parameter in task.build_readout().parameters())
        print(
            f"{len(points)} readouts of {num_weights:,} parameters at depths {depths} of "
            f"{config.num_hidden_layers}, {sweep_args.num_steps} steps"
        )
    recorded = settings_of(encoder_args, args, sweep_args, config)
    sources = sources_of(encoder, sets, args)
    read_features, training, test, stores = features_and_clips(encoder, sets, args, sweep_args, depths, sources)
    # Which readouts share a checkpoint depends on how many are trained at once
    identity = recorded | sources | {"max_parallel_readouts": sweep_args.max_parallel_readouts}
    sweep = Sweep(task, read_features, points, sweep_args, training, test, output, identity, sets.baselines)
    return Evaluation(settings, encoder, config, sets, task, sweep, read_features, stores, recorded)


@contextlib.contextmanager
def kernels_are_deterministic() -> Iterator[None]:
    """On a GPU, where not all kernels add up in the same order every time."""
    was, only_warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=only_warned)


def probe_features(evaluation: Evaluation) -> list[dict] | None:
    """What mean features tell without any training."""
    sweep = evaluation.sweep
    depths = sorted({point.depth for points in sweep.rounds for point in points})
    return probe(
        evaluation.sets,
        evaluation.task,
        sweep.training,
        sweep.test,
        evaluation.read_features,
        depths,
        evaluation.settings.clips,
        evaluation.settings.sweep,
    )


def results_of(evaluation: Evaluation, samples, probes: list[dict] | None, command: str) -> dict:
    """What `results.json` holds."""
    encoder_args, args, *_ = evaluation.settings
    sweep, sets = evaluation.sweep, evaluation.sets
    about = {
        "dataset": name_of(args),
        "model": encoder_args.model + " (random weights)" * encoder_args.random_weights,
        "command": command,
        "settings": evaluation.recorded,
        "versions": {
            "layerlock_hf": VERSION,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "num_train": sets.num_train,
        "seconds": sweep.seconds,
    }
    return build_results(
        args.task,
        samples,
        sets.test_set(sweep.errors),
        evaluation.config.num_hidden_layers,
        sweep.baseline_samples,
        about,
        probes=probes,
    )


def write(results: dict, evaluation: Evaluation):
    """Results, pictures, and the encoder with the best readout."""
    args, output = evaluation.settings.clips, Path(evaluation.settings.clips.output_dir)
    write_results(results, output / RESULTS)
    draw(results, evaluation.sweep, evaluation.encoder, evaluation.config, evaluation.sets, output)
    save_model(results, evaluation.sweep, evaluation.encoder, evaluation.config, evaluation.sets, args)


def share(results: dict, sharing: SharingArguments, output: Path):
    """Push the best result to the page of a model.

    Raises:
        PushFailed: if the Hub refuses or does not answer.
    """
    name = eval_results_name(sharing.results_dataset, sharing.results_task)
    content = eval_results_yaml(results, sharing.results_dataset, sharing.results_task)
    try:
        push_file(sharing.push_results, name, content, f"Results on {sharing.results_dataset}")
    except PushFailed as error:
        raise PushFailed(f"{error}. The results are in {output / RESULTS}; the same command pushes them") from error


def name_of(args: ClipArguments) -> str:
    """What results call the data set."""
    if args.dataset_name is not None:
        return args.dataset_name
    path, *options = args.data.split("?", 1)
    name = "?".join([Path(path).resolve().name if args.dataset in GENERAL else args.dataset, *options])
    return name if args.test_data is None else f"{name}, tested on {args.test_data}"


def settings_of(encoder_args: EncoderArguments, args: ClipArguments, sweep_args, config) -> dict:
    """What the numbers depend on, for `results.json`: defaults that depend on the encoder as they were used."""
    settings = asdict(encoder_args) | asdict(args) | asdict(sweep_args)
    settings |= {name: getattr(config, name) for name in ("image_size", "num_frames")}
    settings |= {name: getattr(config, name) for name, kinds in SIZED.items() if encoder_args.readout in kinds}
    left_out = INCIDENTAL + ABOUT_SOURCES + (() if args.augment else AUGMENTATION)
    return {name: value for name, value in settings.items() if name not in left_out}


def load(args: EncoderArguments, seed: int) -> nn.Module:
    set_seed(seed)  # for weights that are drawn
    try:
        return load_encoder(args.model, args.random_weights, args.image_size, args.num_frames)
    except (ValueError, StrictDataclassError) as error:  # which is no ValueError
        raise ValueError(f"model: {error}") from error


def readout_config(encoder: nn.Module, args: EncoderArguments):
    """Of the readouts: the encoder's, with the sizes asked for."""
    config = copy.deepcopy(encoder.config)
    sizes = ("readout_hidden_size", "readout_num_attention_heads")
    config.update({name: getattr(args, name) for name in sizes if getattr(args, name) is not None})
    try:
        config.check_readout()
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error
    return config
