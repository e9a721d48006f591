#!/bin/bash
# Two machines of four GPUs each; `sbatch train.sh pairs.tsv`. A job that is not done by its limit is
# put back into the queue with a checkpoint, and resumed.
#SBATCH --job-name=dragoman
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -e

# A task for each GPU; each task has to see all of them, so no --gpus-per-task.
# --kill-on-bad-exit: where one task fails, the others end at once.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    dragoman fit "$1" --out model --resume auto
