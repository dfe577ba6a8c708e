# Shared by the sbatch scripts, which source it inside a job. It sources sbatch/cluster.env first, if that exists.
#
#   $launcher        command prefix that starts `python` once per allocated GPU, or on nodes without GPUs
#                    PROCESSES_PER_NODE times (default 1); engine/ranks.py connects the processes
#   run COMMAND...   run the command and exit with its exit code. If it was stopped after saving, or the job was
#                    preempted, requeue the job, at most MAX_RESTARTS (20) times.
#
# `--signal=USR1@180` sends USR1 to the processes, not to this script: they save and exit with 75. This script traps no
# signals, so `scancel` ends it.

if [ -f sbatch/cluster.env ]; then
    source sbatch/cluster.env
elif [ -f .venv/bin/activate ]; then
    source .venv/bin/activate
fi
command -v torchrun >/dev/null || { echo "error: torchrun not found: activate your Python in sbatch/cluster.env" >&2; exit 2; }

processes=${SLURM_GPUS_ON_NODE:-0}
[ "$processes" != 0 ] || processes=${PROCESSES_PER_NODE:-1}
# The first two conflict with --cpus-per-task. The rest is inherited if this job was submitted from inside a Slurm job.
unset SLURM_CPUS_PER_GPU SLURM_TRES_PER_TASK "${!SLURM_STEP_@}" "${!SLURM_PTY_@}"
launcher="srun --nodes=$SLURM_JOB_NUM_NODES --ntasks=$((SLURM_JOB_NUM_NODES * processes)) --ntasks-per-node=$processes"
launcher+=" --cpus-per-task=$((SLURM_CPUS_ON_NODE / processes))"
# If a process ends, the remaining ones have 25 seconds to save and end; --kill-on-bad-exit would kill them at once.
launcher+=" --kill-on-bad-exit=0 --wait=25 python"
export SLURM_EXPORT_ENV=ALL # pass this environment to srun's tasks even if the job was submitted with --export=NONE
export PYTHONUNBUFFERED=1 # write the log without delay

# In an array job, SLURM_JOB_ID can refer to all tasks.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

run() {
    echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST: $*"
    "$@"
    local status=$?
    case $status in
        0) ;;
        75 | 138) requeue ;; # 75: stopped and saved; 138: USR1 arrived before there was anything to save
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
