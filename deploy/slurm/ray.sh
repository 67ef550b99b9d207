#!/bin/bash
# A recipe's data stages on N nodes of a Slurm cluster: a Ray head on the first, a Ray worker on every other one, the
# driver beside the head. Nodes need one file system with this environment, or the container your site wraps srun in.
#
#   sbatch --nodes=4 deploy/slurm/ray.sh RECIPE [STAGE] [key.path=value ...]
#
# Three minutes before its time is up (or when it is preempted), Slurm sends SIGTERM to this script. It hands it to the
# driver, which commits what is in flight (execution.drain_s), and puts the job back into the queue, where it resumes.
#
# Whoever reaches a Ray port runs code as you, and nodes are reached by every user of the cluster: each job makes a token
# that Ray then asks for. It travels in the environment of its processes and stands in no file and no command line.
#SBATCH --job-name=tokenmill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
set -euo pipefail

recipe=${1:?"usage: sbatch deploy/slurm/ray.sh RECIPE [STAGE] [key.path=value ...]"}
stage=${2:-run}
shift $(($# < 2 ? $# : 2))

driver=0
drained=0
# shellcheck disable=SC2329  # called by the trap
drain() {
    drained=1
    [ "$driver" -eq 0 ] || kill -TERM "$driver" 2> /dev/null || true
}
trap drain TERM  # first of all: the signal may come while the head is waited for

# Two jobs of one user on one node must not meet: ports and folders follow the job's number.
port=$((20000 + SLURM_JOB_ID % 20000))
folder=${TMPDIR:-/tmp}/tokenmill-$SLURM_JOB_ID
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
export RAY_ADDRESS=$address:$port
export OMP_NUM_THREADS=1
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

start_ray() {  # node, arguments of ray start
    local node=$1
    shift
    srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap --export=ALL \
        ray start --block --disable-usage-stats --num-cpus="${SLURM_CPUS_ON_NODE:?}" "$@" &
}

start_ray "$head" --head --node-ip-address="$address" --port="$port" --temp-dir="$folder" --include-dashboard=false
for _ in $(seq 120); do
    [ "$drained" -eq 0 ] || break
    ray health-check --address "$RAY_ADDRESS" > /dev/null 2>&1 && break
    sleep 1
done

code=143  # as if the signal had ended it: nothing was begun
if [ "$drained" -eq 0 ]; then
    for node in "${nodes[@]:1}"; do
        start_ray "$node" --address="$RAY_ADDRESS"
    done
    tokenmill "$stage" "$recipe" "$@" execution.address="$RAY_ADDRESS" &
    driver=$!
    [ "$drained" -eq 0 ] || drain  # the signal came between the two lines above
    code=0
    wait "$driver" || code=$?
    if [ "$drained" -eq 1 ]; then  # a trapped signal ends `wait` before the driver has ended
        code=0
        wait "$driver" || code=$?
    fi
fi

pkill -TERM -P $$ srun 2> /dev/null || true
if [ "$drained" -eq 1 ]; then # training that has saved ends with 0; what is finished already ends at once
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
