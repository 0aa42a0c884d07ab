#!/usr/bin/env bash
# Trains with several processes, one for each GPU of this machine:
#     tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# On several machines, started on each: NNODES (how many there are), NODE_RANK (0 on the first),
# MASTER_ADDR (the first one's address). PORT tells apart several jobs of one machine.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "Usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi

exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$2" \
    "$(dirname "$0")/train.py" "$1" --launcher pytorch "${@:3}"
