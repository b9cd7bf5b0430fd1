#!/bin/bash
# Hugging Face Jobs: one machine of 1, 2, 4 or 8 GPUs for as long as you pay (`hf jobs hardware`). Checkpoints go to a
# bucket of yours, and a job that is started again goes on from there. After `hf auth login`, with CODE a git URL:
#
# CODE=https://github.com/YOU/layerlock_hf BUCKET=YOU/layerlock FLAVOR=h200x8 TIMEOUT=3d scripts/launch/hf_jobs.sh \
#     --config 4ds-g-layerlock --train_data YOU/videos --output_dir /bucket/4ds-g \
#     --per_device_train_batch_size 32
#
# OPTIONS=--dry-run prints the job and starts none.
set -euo pipefail
# shellcheck disable=SC2016,SC2086
exec hf jobs run ${OPTIONS:---detach} --flavor "$FLAVOR" --timeout "$TIMEOUT" --attempts "${ATTEMPTS:-3}" \
    --secrets HF_TOKEN --volume "hf://buckets/$BUCKET:/bucket" -- "${IMAGE:-python:3.12}" \
    bash -c '
        set -e
        git clone --depth 1 "$0" code && cd code && pip install -q -c constraints.txt -e ".[train]"
        bash scripts/ensure_ffmpeg.sh
        gpus=$(nvidia-smi --list-gpus | wc -l)
        [ "$gpus" -gt 1 ] && launch="8gpus.yaml --num_processes $gpus" || launch=1gpu.yaml
        exec accelerate launch --config_file scripts/launch/$launch scripts/pretrain.py --resume_from_checkpoint auto "$@"
    ' "$CODE" "$@"
