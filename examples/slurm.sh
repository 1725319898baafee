#!/bin/sh
# The jobs of a reproduction as an array of Slurm, then what gathers them:
#
#   sh examples/slurm.sh runs/reproduce-gpu --scale gpu --only A B
#
# Given again, whatever became of the first, it submits what is left. SBATCH_PARTITION, SBATCH_GRES and the like say
# where to: Slurm reads them.
set -eu
out=$1
shift
mkdir -p "$out"
stepscope reproduce "$@" --out "$out" --list > "$out/jobs.txt"
count=$(wc -l < "$out/jobs.txt")
[ "$count" -gt 0 ] || exit 0
export JOBS="$out/jobs.txt"
array=$(sbatch --parsable --array="1-$((count))" --wrap 'eval "$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$JOBS")"')
export GATHER="$*"
export OUT="$out"
sbatch --dependency="afterany:${array%%;*}" --wrap 'stepscope reproduce $GATHER --out "$OUT"'
