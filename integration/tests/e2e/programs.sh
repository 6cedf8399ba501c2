# Runs in n1: starts a program, moves it from node to node while it works, and compares its output with that of a run
# without moves; again, if the program ends before it was moved as often as is wanted, which is up to the machine.
# Usage: programs.sh MOVES COMMAND [CHILD] ; the command reads /root/work/* and writes $out. With CHILD the command's
# child of that name is moved instead of itself.
moves_wanted=$1
command=$2
child=$3
runs_max=10
dir=$(mktemp -d /root/run.XXXXXX)
cd "$dir" || exit 1

out=$dir/native
export out
eval "$command" >"$dir/native.stdout" 2>"$dir/native.stderr" || { echo "native run: $?"; cat "$dir/native.stderr"; exit 1; }
find "$dir/native"* -type f -name '*.shm' -delete 2>/dev/null

alive() { case $(sed 's/.*) //; s/ .*//' "/proc/$job/stat" 2>/dev/null) in ''|Z|X) return 1;; esac; }

# The process to be moved, once it executes what it is to execute.
find_job() {
    job=$pid
    while alive && cmp -s "/proc/$job/cmdline" /proc/$$/cmdline; do sleep 0.02; done
    while [ -n "$child" ] && ! job=$(pgrep -P "$pid" -x "$child"); do
        job=$pid
        alive || return
        sleep 0.02
    done
}

# The places to go to, the next one first.
targets='n2 n3 home'
take_turns() { targets="${targets#* } ${targets%% *}"; }

out=$dir/moved
export out
moves=0
failed=0
runs=0
while [ "$moves" -lt "$moves_wanted" ] && [ "$failed" = 0 ] && [ "$runs" -lt "$runs_max" ]; do
    runs=$((runs + 1))
    rm -rf "$dir/moved"*
    [ "${targets%% *}" != home ] || take_turns
    eval "exec $command" >"$dir/moved.stdout" 2>"$dir/moved.stderr" &
    pid=$!
    find_job
    while alive && [ "$moves" -lt "$moves_wanted" ] && [ "$failed" = 0 ]; do
        if omfs migrate "$job" "${targets%% *}" >>"$dir/migrate.log" 2>&1; then
            moves=$((moves + 1))
            take_turns
        elif alive; then
            failed=$((failed + 1))
        fi
        sleep 0.1
    done
    wait "$pid"
    status=$?
    [ "$status" = 0 ] || break
    cmp "$dir/native.stdout" "$dir/moved.stdout" || exit 1
    cmp "$dir/native.stderr" "$dir/moved.stderr" || { cat "$dir/moved.stderr"; exit 1; }
    [ ! -e "$dir/native" ] || cmp "$dir/native" "$dir/moved" || exit 1
done
echo "status=$status moves=$moves failed=$failed runs=$runs"
[ "$failed" = 0 ] || tail -n 3 "$dir/migrate.log"
[ "$status" = 0 ] || { cat "$dir/moved.stderr"; exit 1; }
rm -r "$dir"
