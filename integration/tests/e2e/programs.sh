# Runs in n1: starts a program, moves it from node to node while it works, and compares its output with that of a run
# without moves. Usage: programs.sh MOVES COMMAND [CHILD] ; the command reads /root/work/* and writes $out. With CHILD the
# command's child of that name is moved instead of itself.
moves_wanted=$1
command=$2
child=$3
dir=$(mktemp -d /root/run.XXXXXX)
cd "$dir" || exit 1

out=$dir/native
export out
eval "$command" >"$dir/native.stdout" 2>"$dir/native.stderr" || { echo "native run: $?"; cat "$dir/native.stderr"; exit 1; }
find "$dir/native"* -type f -name '*.shm' -delete 2>/dev/null

out=$dir/moved
export out
eval "exec $command" >"$dir/moved.stdout" 2>"$dir/moved.stderr" &
pid=$!
job=$pid
tries=0
while [ -n "$child" ] && ! job=$(pgrep -P "$pid" -x "$child") && [ "$tries" -lt 100 ]; do
    tries=$((tries + 1))
    sleep 0.05
done
sleep 0.2
alive() { case $(sed 's/.*) //; s/ .*//' "/proc/$job/stat" 2>/dev/null) in ''|Z|X) return 1;; esac; }
moves=0
failed=0
while alive && [ "$moves" -lt "$moves_wanted" ] && [ "$failed" -lt 5 ]; do
    for target in n2 n3 home; do
        alive || break
        if omfs migrate "$job" "$target" >>"$dir/migrate.log" 2>&1; then moves=$((moves + 1)); elif alive; then failed=$((failed + 1)); fi
        sleep 0.1
    done
done
wait "$pid"
echo "status=$? moves=$moves failed=$failed"
[ "$failed" = 0 ] || tail -n 3 "$dir/migrate.log"
cmp "$dir/native.stdout" "$dir/moved.stdout" || exit 1
cmp "$dir/native.stderr" "$dir/moved.stderr" || { cat "$dir/moved.stderr"; exit 1; }
[ ! -e "$dir/native" ] || cmp "$dir/native" "$dir/moved" || exit 1
rm -r "$dir"
