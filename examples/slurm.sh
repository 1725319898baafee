#!/bin/sh
# The jobs of a reproduction as an array of Slurm, then those that these make possible, and at last what gathers them:
#
#   sh examples/slurm.sh runs/reproduce-gpu --scale gpu --only A B
#
# Given again, whatever became of the first, it submits what is left. SBATCH_PARTITION, SBATCH_GRES and the like say
# where to: Slurm reads them.
set -eu
export OUT="$1" SELF="$0"
shift
export ASKED="$*"
mkdir -p "$OUT"
export JOBS="$OUT/jobs.txt"
stepscope reproduce "$@" --out "$OUT" --list > "$JOBS.new"
if [ "${FOLLOWS:-}" ] && { [ ! -s "$JOBS.new" ] || cmp -s "$JOBS.new" "$JOBS"; }; then
    exec stepscope reproduce "$@" --out "$OUT" # all is done, or what is left has failed
fi
mv "$JOBS.new" "$JOBS"
count=$(wc -l < "$JOBS")
[ "$count" -gt 0 ] || exit 0
array=$(sbatch --parsable --array="1-$((count))" --wrap 'eval "$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$JOBS")"')
sbatch --dependency="afterany:${array%%;*}" --wrap 'FOLLOWS=1 sh "$SELF" "$OUT" $ASKED'
