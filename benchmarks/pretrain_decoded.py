"""`layerlock pretrain` on videos that fit into memory: each is decoded once, not anew for every clip.

python benchmarks/pretrain_decoded.py --config demo --train_data VIDEOS --output_dir OUT

Takes the settings of `layerlock pretrain`, does the same steps to the bit, and leaves the model and its log. Use
`--dataloader_num_workers 0`: there is nothing left to decode.
"""

import sys

from layerlock_hf.pretraining.arguments import parse
from layerlock_hf.pretraining.build import build
from layerlock_hf.utils.processes import run_and_exit
from timed_runs import DecodedClips, decode_all


def main(arguments: list[str]):
    trainer = build(parse(arguments))
    clips = trainer.train_dataset
    trainer.train_dataset = DecodedClips(clips, decode_all(clips.videos))
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    if trainer.was_preempted:
        raise SystemExit(128 + trainer.stop_signal)
    trainer.save_model()


if __name__ == "__main__":
    run_and_exit(lambda: main(sys.argv[1:]))
