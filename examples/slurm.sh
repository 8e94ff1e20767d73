#!/bin/bash
# One driver (task 0) and seven workers, one GPU each, on the file system that the nodes share: sbatch examples/slurm.sh
# A worker that is preempted or killed costs what it had not finished; --requeue brings it back.
#SBATCH --job-name=loratune
#SBATCH --array=0-7
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -eu

MODEL=${MODEL:?the base model: a folder or a hub name}
DATA=${DATA:?the rows: a file or a folder}
OUT=${OUT:-runs/slurm-${SLURM_ARRAY_JOB_ID:-0}}

if [ "${SLURM_ARRAY_TASK_ID:-0}" -eq 0 ]; then
    exec loratune tune --model "$MODEL" --data "$DATA" --devices workers --out "$OUT" --resume
fi
exec loratune worker "$OUT" --wait 1h
