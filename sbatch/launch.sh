# What the sbatch scripts share; they source it inside a job.
#
#   $launcher        the words that start a module in every process that Slurm has granted: torchrun, by way of
#                    engine.launch, once on each node
#   run COMMAND...   runs it; when Slurm warns of the time limit or of a preemption (USR1), passes the signal on, waits
#                    until everything is saved, and requeues the job, MAX_RESTARTS (20) times at most
#
# Exit codes: the command's own; 75 where it was stopped and saved. sbatch/cluster.env, if it is there, is sourced first.

child= warned=
trap '[ "$warned" ] || { warned=yes; [ -z "$child" ] || kill -USR1 "$child"; }' USR1
trap : TERM # Slurm sends it to what srun has started as well; wait for that

if [ -f sbatch/cluster.env ]; then
    source sbatch/cluster.env
elif [ -f .venv/bin/activate ]; then
    source .venv/bin/activate
fi
command -v torchrun >/dev/null || { echo "error: no torchrun: activate your Python in sbatch/cluster.env" >&2; exit 2; }

nodes=$SLURM_JOB_NUM_NODES
processes=${SLURM_GPUS_ON_NODE:-0}
if [ "$processes" = 0 ]; then # on the CPU
    processes=${PROCESSES_PER_NODE:-1}
    unset SLURM_CPUS_PER_GPU # srun would ask for GPUs
fi
rendezvous=--standalone
if [ "$nodes" -gt 1 ]; then
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # The first from there that is free here, on the first node; below the ports that systems give out by themselves.
    port=$(python - $((10000 + SLURM_JOB_ID % 20000)) <<'PYTHON'
import socket, sys
for port in range(int(sys.argv[1]), 32768):
    try:
        socket.socket().bind(("", port))
    except OSError:
        continue
    print(port)
    break
PYTHON
)
    rendezvous="--rdzv_backend=c10d --rdzv_endpoint=$first:$port --rdzv_id=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
fi
export SLURM_EXPORT_ENV=ALL # srun's tasks need this environment, also of a job that was sent with --export=NONE
launcher="srun --nodes=$nodes --ntasks=$nodes --ntasks-per-node=1 --kill-on-bad-exit=1 python -m engine.launch"
launcher+=" --nnodes=$nodes --nproc_per_node=$processes $rendezvous"
export PYTHONUNBUFFERED=1 # the log shows what happens when it happens
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150 # seconds that torchrun leaves for saving; less than --signal gives
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer takes it over

# In an array SLURM_JOB_ID may stand for all of its tasks.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

run() {
    local status
    echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST: $*"
    [ -z "$warned" ] || requeue
    "$@" &
    child=$!
    [ -z "$warned" ] || kill -USR1 "$child"
    while wait "$child"; kill -0 "$child" 2>/dev/null; do :; done # a signal ends `wait`, not the child
    wait "$child"
    status=$?
    [ "$status" = 0 ] || [ -z "$warned$(preempted)" ] || requeue
    exit "$status"
}

preempted() { # without a warning, but with time to save
    scontrol show job "$job" | grep -o 'PreemptTime=[0-9].*'
}

requeue() {
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_RESTARTS:-20}" ]; then
        echo "error: job $job: not requeued, for it was ${MAX_RESTARTS:-20} times (MAX_RESTARTS); go on with --resume" >&2
    elif scontrol requeue "$job"; then
        echo "job $job: requeued"
    else
        echo "error: job $job: could not be requeued; go on with --resume" >&2
    fi
    exit 75
}
