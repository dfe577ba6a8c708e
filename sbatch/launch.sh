# What the sbatch scripts share; they source it inside a job.
#
#   $launcher        words that start `python` in every process that Slurm has granted: one per GPU, or PROCESSES_PER_NODE
#                    (1) on nodes without; engine/ranks.py joins them
#   run COMMAND...   runs it, and requeues the job, MAX_RESTARTS (20) times at most, if it was stopped and has saved
#
# `--signal=USR1@180` sends USR1 to the processes themselves: they save and end with 75. This script traps nothing, so it
# ends with a job that is cancelled. Exit code: the command's. sbatch/cluster.env, if it exists, is sourced first.

if [ -f sbatch/cluster.env ]; then
    source sbatch/cluster.env
elif [ -f .venv/bin/activate ]; then
    source .venv/bin/activate
fi
command -v torchrun >/dev/null || { echo "error: no torchrun: activate your Python in sbatch/cluster.env" >&2; exit 2; }

processes=${SLURM_GPUS_ON_NODE:-0}
[ "$processes" != 0 ] || processes=${PROCESSES_PER_NODE:-1}
# The first two contradict --cpus-per-task; the others are of a terminal inside Slurm that has submitted this job.
unset SLURM_CPUS_PER_GPU SLURM_TRES_PER_TASK "${!SLURM_STEP_@}" "${!SLURM_PTY_@}"
launcher="srun --nodes=$SLURM_JOB_NUM_NODES --ntasks=$((SLURM_JOB_NUM_NODES * processes)) --ntasks-per-node=$processes"
launcher+=" --cpus-per-task=$((SLURM_CPUS_ON_NODE / processes))"
# If a process ends, the others have 25 seconds to end by themselves: with --kill-on-bad-exit they would have none to save.
launcher+=" --kill-on-bad-exit=0 --wait=25 python"
export SLURM_EXPORT_ENV=ALL # srun's tasks need this environment, also of a job that was sent with --export=NONE
export PYTHONUNBUFFERED=1 # the log shows what happens when it happens

# In an array SLURM_JOB_ID may stand for all of its tasks.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

run() {
    echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST: $*"
    "$@"
    local status=$?
    case $status in
        0) ;;
        75 | 138) requeue ;; # saved; by USR1 before there was anything to save
        *) if scontrol show job "$job" | grep -q 'PreemptTime=[0-9]'; then requeue; fi ;;
    esac
    exit "$status"
}

requeue() {
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_RESTARTS:-20}" ]; then
        echo "error: job $job: not requeued: already requeued $SLURM_RESTART_COUNT times (MAX_RESTARTS); continue with --resume" >&2
    else
        scontrol requeue "$job" && echo "job $job: requeued"
    fi
}
