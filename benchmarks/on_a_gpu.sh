#!/usr/bin/env bash
# What an hour of one GPU is used for, the most valuable first.
#
#     bash benchmarks/on_a_gpu.sh [--dry-run] [OUT]        OUT: where files go (default: runs/on-a-gpu)
#
# A part that is done is not repeated, and no part takes more than 8 minutes: one that needs longer is interrupted, saves
# where it is, and goes on when its turn comes again. So the same command continues after any interruption, also with 15
# minutes today and 15 tomorrow. OUT/keep holds small files alone; everything else may be thrown away.
#
# PYTHON        the interpreter with torch and this package (default: python)
# SECONDS_LEFT  for the whole call (default: 3600); a part that may not fit is not begun
set -u

DRY=
if [ "${1:-}" = --dry-run ]; then
    DRY=1
    shift
fi
OUT=${1:-runs/on-a-gpu}
PYTHON=${PYTHON:-python}
LEFT=${SECONDS_LEFT:-3600}
PART=450 # seconds for a part, and half a minute to save in
MOST=6   # times that a part is continued in one call

cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
KEEP="$OUT/keep"
STARTED=$(date +%s)

# part NAME COMMAND...: do it, unless it is done. Returns 0 when it is done, 1 when it failed or did not begin, 75 when it
# is to be continued.
part() {
    local name=$1 code
    shift
    if [ -n "$DRY" ]; then
        echo "$name: $*"
        return 0
    fi
    if [ -e "$OUT/$name.done" ]; then
        echo "$name: done before"
        return 0
    fi
    if [ $(($(date +%s) - STARTED + PART + 30)) -gt "$LEFT" ]; then
        echo "$name: not begun, less than $((PART + 30)) of the $LEFT seconds are left"
        return 1
    fi
    echo "$name: begun at $(date +%T), log: $OUT/$name.log"
    timeout --signal=INT --kill-after=30 "$PART" "$@" >>"$OUT/$name.log" 2>&1
    code=$?
    case $code in
    0)
        touch "$OUT/$name.done"
        echo "$name: done"
        ;;
    124 | 130 | 137)
        echo "$name: interrupted after $PART seconds, goes on later"
        return 75
        ;;
    *)
        echo "$name: failed with exit code $code: $(tail -n 1 "$OUT/$name.log")"
        return 1
        ;;
    esac
}

# long NAME COMMAND...: a part that may need several turns
long() {
    local turn
    for turn in $(seq "$MOST"); do
        part "$@"
        [ $? -eq 75 ] || return
    done
}

if [ -z "$DRY" ]; then
    if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "no GPU: $PYTHON has a torch that sees none" >&2
        exit 2
    fi
    mkdir -p "$KEEP" || exit 2
fi

# paper FIGURE: in the paper's own size; every run goes on from its last checkpoint. In float32 a step would take up to eight
# times as long. A second process works while the first one evaluates or begins a run; more of them would take turns.
paper() {
    long "paper-$1" "$PYTHON" -m sngd reproduce "$1" --profile paper --precision bfloat16 --compile --jobs 2 \
        --out "$OUT/paper/$1"
}

# 1. Is it right there? Nothing else is worth measuring before.
part tests "$PYTHON" -m pytest -m cuda -n8 -q -p no:cacheprovider -p no:benchmark --continue-on-collection-errors
# 2. The paper's Figure 4, by which C6 is judged in the paper's size. It should take an H100 about 8 minutes.
paper fig4
# 3. What a GPU gains by runs that are trained as one, and by steps as CUDA graphs.
part gains "$PYTHON" benchmarks/gpu.py --json "$KEEP/gpu.json"
# 4. What a step costs, and what copying as many bytes does.
part bench "$PYTHON" -m sngd bench step --device cuda --seconds 1 --json "$KEEP/bench.json"
# 5. The paper's Figure 3, which takes hours.
paper fig3

# What there is to keep: measurements and pictures of the figures, the ends of the logs, the device.
if [ -z "$DRY" ]; then
    for figure in "$OUT"/paper/*; do
        [ -d "$figure" ] || continue
        mkdir -p "$KEEP/${figure#"$OUT"/}"
        find "$figure" -maxdepth 1 -type f -size -1024k -exec cp {} "$KEEP/${figure#"$OUT"/}/" \; 2>/dev/null
    done
    for log in "$OUT"/*.log; do
        [ -e "$log" ] && tail -n 50 "$log" >"$KEEP/$(basename "$log")"
    done
    "$PYTHON" -m torch.utils.collect_env >"$KEEP/environment.txt" 2>/dev/null
    du -sh "$KEEP"
fi
