# Runs the tests that /run/guest/tests lists, one after the other, and tells on the second serial line how each ended:
# its name, its exit status and its time in hundredths of a second. What it said is in /run/guest/said/NAME.
exec >/dev/ttyS1
busybox stty raw -echo </dev/ttyS1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games
export HOME=/root RUST_LIB_BACKTRACE=0
. /run/guest/settings
ip link set lo up
ulimit -n 20000
hundredths() { read -r up _ </proc/uptime; echo "${up%.*}${up#*.}"; }
while read -r name; do
    echo "begins $name"
    begun=$(hundredths)
    timeout --kill-after 10 "$LIMIT" "$PROGRAM" --exact "$name" --nocapture </dev/null >/run/said 2>&1
    status=$?
    taken=$(($(hundredths) - begun))
    cp /run/said "/run/guest/said/$name"
    echo "ended $name $status $taken"
done </run/guest/tests
echo "complete"
busybox poweroff -f
