"""scripts/pretrain.py on videos that fit into memory: each is decoded once, not anew for every clip.

python benchmarks/pretrain_decoded.py --config scripts/recipes/demo.yaml --train_data VIDEOS --output_dir OUT

Takes the settings of pretrain.py, does the same steps to the bit, and leaves the model and its log. Use
`--dataloader_num_workers 0`: there is nothing left to decode.
"""

import sys

from layerlock_hf.utils.processes import run_and_exit
from timed_runs import DecodedClips, build, decode_all


def main(arguments: list[str]):
    trainer, checkpoint, _ = build(arguments)
    clips = trainer.train_dataset
    trainer.train_dataset = DecodedClips(clips, decode_all(clips.videos))
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.was_preempted:
        raise SystemExit(128 + trainer.stop_signal)
    trainer.save_model()


if __name__ == "__main__":
    run_and_exit(lambda: main(sys.argv[1:]))
