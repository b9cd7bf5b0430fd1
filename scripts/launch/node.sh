#!/bin/bash
# Machines without a scheduler: keeps this machine's part of a run going. After a crash, its own or that of a process on
# another machine, it starts the command again, which goes on from the newest complete checkpoint. On every machine, RANK
# being 0, 1, ... and HOST the address of the first:
#
# scripts/launch/node.sh layerlock pretrain --accelerate_config nodes_ddp --num_machines 8 --num_processes 64 \
#     --machine_rank RANK --main_process_ip HOST --main_process_port 29500 \
#     --resume_from_checkpoint auto --config 4ds-g-layerlock --train_data VIDEOS --output_dir OUT
#
# A machine that was lost needs this started again, by systemd (Restart=on-failure) for instance; the others wait for it.
# SIGTERM saves and ends the run.
set -u
MAX_RESTARTS=${MAX_RESTARTS:-10} # of all causes: wrong arguments are among them
# A store that survives a restart hands out addresses of dead workers (pytorch#135712)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Seconds that a step and a checkpoint may take after SIGTERM: the agent would kill after 30
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}

stopped=
trap 'stopped=yes; kill -TERM "$launch"' TERM INT
for restart in $(seq 0 "$MAX_RESTARTS"); do
    "$@" &
    launch=$!
    while true; do # `wait` returns for every trapped signal too
        wait "$launch"
        code=$?
        kill -0 "$launch" 2>/dev/null || break
    done
    [ $code -ne 0 ] && [ -z "$stopped" ] || exit $code
    echo "attempt $restart ended with $code" >&2
    sleep 3 # for the others to notice, and let go of the port
    [ -z "$stopped" ] || exit $code
done
exit $code
