#!/bin/sh
# The same traffic counted by nstat-async and by nethogs: files of known size between two
# network namespaces. Run as root on Linux; needs nethogs, curl, wget and iproute2.
#
#   sh benchmarks/beside_nethogs.sh [PYTHON]
set -eu

python=${1:-python3}
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
client=nstat-client-$$
server=nstat-server-$$

cleanup() {
    trap - EXIT
    [ -z "${web:-}" ] || kill "$web" 2>/dev/null || true
    ip netns del "$client" 2>/dev/null || true
    ip netns del "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

ip netns add "$client"
ip netns add "$server"
ip link add nstat-a netns "$client" type veth peer name nstat-b netns "$server"
ip -n "$client" addr add 192.0.2.1/24 dev nstat-a
ip -n "$server" addr add 192.0.2.2/24 dev nstat-b
ip -n "$client" link set nstat-a up
ip -n "$server" link set nstat-b up

head -c 20000000 /dev/zero >"$work/large"
head -c 5000000 /dev/zero >"$work/medium"
head -c 300000 /dev/zero >"$work/small"
ip netns exec "$server" "$python" -m http.server -b 192.0.2.2 -d "$work" 8000 >/dev/null 2>&1 &
web=$!
sleep 1

ip netns exec "$client" timeout 28 nethogs -t -v 2 -d 1 nstat-a >"$work/nethogs" 2>/dev/null &
theirs=$!
PYTHONPATH=$here ip netns exec "$client" "$python" -m nstat_async processes --json --duration 24 >"$work/ours" &
ours=$!
sleep 2
url=http://192.0.2.2:8000
ip netns exec "$client" curl -s --limit-rate 1500k -o /dev/null $url/large &
large=$!
ip netns exec "$client" wget -q --limit-rate=500k -O /dev/null $url/medium &
medium=$!
for _ in 1 2 3 4 5 6 7 8 9 10; do
    ip netns exec "$client" curl -s -o /dev/null $url/small
    sleep 0.3
done
wait "$large" "$medium" "$ours"
wait "$theirs" || true

echo "curl is pid $large: 20000000 bytes; wget is pid $medium: 5000000; ten short curl: 3000000"
echo "--- nstat-async"
cat "$work/ours"
echo "--- nethogs (name/pid/uid, bytes sent, bytes received: the last figure of each)"
awk -F '\t' 'NF == 3 { last[$1] = $2 "\t" $3 } END { for (name in last) print name "\t" last[name] }' "$work/nethogs"
