#!/bin/bash
# Training on N nodes with DeepSpeed: the same `tokenmill train` once on every node, which starts the ranks of its node
# (`train.ranks` in the recipe: one a GPU) and tells them of the others by NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT.
#
#   sbatch --nodes=4 --gpus-per-node=8 deploy/slurm/train.sh RECIPE [key.path=value ...]
#
# The plan has to be there (`tokenmill plan`). Five minutes before the time is up Slurm sends SIGTERM to every node's
# launcher: the ranks agree on a step, save a checkpoint and end, and the job goes back into the queue and resumes.
# Other launchers (mpirun, pdsh, Kubernetes' indexed jobs) do the same with the four variables.
#SBATCH --job-name=tokenmill-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -euo pipefail

recipe=${1:?"usage: sbatch deploy/slurm/train.sh RECIPE [key.path=value ...]"}
shift

step=0
drained=0
# shellcheck disable=SC2329  # called by the trap
drain() {
    drained=1
    [ "$step" -eq 0 ] || kill -TERM "$step" 2> /dev/null || true  # srun hands it on to every node
}
trap drain TERM

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${nodes[0]}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export NNODES=${#nodes[@]}

code=143  # as if the signal had ended it: nothing was begun
if [ "$drained" -eq 0 ]; then
    # SLURM_NODEID is known on the node alone, so each one names itself there.
    # shellcheck disable=SC2016
    srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec tokenmill train "$@"' train "$recipe" "$@" &
    step=$!
    [ "$drained" -eq 0 ] || drain  # the signal came between the two lines above
    code=0
    wait "$step" || code=$?
    if [ "$drained" -eq 1 ]; then  # a trapped signal ends `wait` before the step has ended
        code=0
        wait "$step" || code=$?
    fi
fi
if [ "$drained" -eq 1 ]; then  # also after 0: saved, or just finished, which the next start sees at once
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
