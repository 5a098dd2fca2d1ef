#!/bin/bash
# A grid on the nodes of a Slurm allocation: sbatch clusters/slurm.sh GRID [OPTIONS OF metrix-bench run]
#
# Starts ray on the first node, joins the other nodes to it, runs the grid, and ends everything. A ray that dies is
# restarted; at the time limit the job is requeued and continues. See clusters/slurm.md.
# Tried on Slurm 22.05 without GPUs, on one host; never on GPUs or several hosts.

#SBATCH --job-name=metrix-bench
#SBATCH --output=metrix-bench-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --no-kill

set -u
grid=${1:?sbatch clusters/slurm.sh GRID [OPTIONS], such as smoke --out /shared/runs/smoke}
bin=${VENV:-$SLURM_SUBMIT_DIR/.venv}/bin  # the same path on every node
[[ -x $bin/ray ]] || { echo "$bin/ray does not exist: run make setup, or set VENV"; exit 2; }

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.metrix-bench-token-$SLURM_JOB_ID
export RAY_USAGE_STATS_ENABLED=0 RAY_memory_monitor_refresh_ms=0  # ray's memory monitor would end the grid
export port=$((20000 + SLURM_JOB_ID % 10000)) bin
rm -f "$RAY_AUTH_TOKEN_PATH"
(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")

address_of() {  # the IPv4 address that Slurm uses for a node, or the one of $INTERFACE on it
    if [[ -n ${INTERFACE:-} ]]; then
        srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" ip -4 -o addr show "$INTERFACE" | awk '{sub("/.*", "", $4); print $4; exit}'
    else
        getent ahostsv4 "$(scontrol show node "$1" -o | grep -oP 'NodeAddr=\K\S+')" | awk '{print $1; exit}'
    fi
}

keep() {  # run ray on one node and restart it whenever it ends: keep NODE head|worker
    local address pid
    address=$(address_of "$1")
    trap 'kill "$pid" 2> /dev/null; wait "$pid"; exit' TERM
    while true; do
        # shellcheck disable=SC2016  # the node expands the variables
        srun --overlap --no-kill --nodes=1 --ntasks=1 --nodelist="$1" --cpu-bind=none --quiet bash -c '
            if [[ $1 == head ]]; then role=(--head --port="$port" --include-dashboard=false); else role=(--address="$head"); fi
            exec "$bin/ray" start "${role[@]}" --node-ip-address="$2" --num-cpus="$SLURM_CPUS_ON_NODE" \
                --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --object-store-memory=100000000 \
                --temp-dir="/tmp/ray-$SLURM_JOB_ID" --disable-usage-stats --block' \
            - "$2" "$address" > /dev/null &
        pid=$!
        wait "$pid"
        echo "ray on $1 ended with exit code $?; restarting it"
        sleep 5
    done
}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(address_of "${nodes[0]}"):$port
export head
kept=() driver='' again=''

finish() {
    trap '' USR1 TERM EXIT
    (( ${#kept[@]} )) && kill "${kept[@]}" 2> /dev/null && wait "${kept[@]}"
    srun --overlap --quiet rm -rf "/tmp/ray-$SLURM_JOB_ID"
    rm -f "$RAY_AUTH_TOKEN_PATH"
}
# shellcheck disable=SC2317  # a trap calls it
stop() {  # cleanly: running trials keep their last epoch
    [[ -n $driver ]] && kill -TERM "$driver" 2> /dev/null
}
trap finish EXIT
trap 'again=yes; echo "the time limit is near"; stop' USR1
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"; stop' TERM  # little time is left, so the token goes first

keep "${nodes[0]}" head & kept+=($!)
for node in "${nodes[@]:1}"; do keep "$node" worker & kept+=($!); done

"$bin/python" - "$head" "${#nodes[@]}" <<'EOF' || exit 1
import contextlib, sys, time
import ray

address, wanted = sys.argv[1], int(sys.argv[2])
there, until = 0, time.monotonic() + 600
while there < wanted and time.monotonic() < until:
    with contextlib.suppress(ConnectionError, RuntimeError, ValueError):
        ray.is_initialized() or ray.init(address, log_to_driver=False, logging_level="CRITICAL")
        there = sum(node["Alive"] for node in ray.nodes())
    time.sleep(2)
print(f"{there} of {wanted} nodes have joined", flush=True)
sys.exit(there == 0)
EOF

"$bin/metrix-bench" run "$grid" "${@:2}" --address "$head" &
driver=$!
until wait "$driver"; code=$?; ! kill -0 "$driver" 2> /dev/null; do :; done  # a signal also ends a wait

finish
if [[ -n $again ]]; then
    echo "requeueing the job; it continues where it stopped"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60
fi
exit "$code"
