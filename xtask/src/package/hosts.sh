# Runs in two hosts with systemd, which have a directory in common: a mesh from the package, by two commands.
set -eu
host=$(hostname)

fail() {
    echo "$host: $*"
    systemctl status --no-pager --lines 20 murmesh-agent murmesh-server || true
    # The other host need not wait.
    if [ "$host" = murmesh00 ]; then echo false >/mnt/join; else echo >/mnt/end; fi
    exit 1
}

gone() {
    dpkg --purge murmesh
    for path in /usr/bin/murmesh /etc/murmesh /var/lib/murmesh /run/murmesh /sys/fs/bpf/murmesh \
        /etc/systemd/system/multi-user.target.wants/murmesh-agent.service \
        /etc/systemd/system/multi-user.target.wants/murmesh-server.service; do
        [ ! -e "$path" ] || fail "$path is left after a purge"
    done
    ! pgrep murmesh || fail "a daemon is left after a purge"
    ! getent passwd murmesh || fail "the user is left after a purge"
}

if [ "$host" = murmesh00 ]; then
    begin=$(date +%s%N)
    dpkg --install /mnt/first.deb
    murmesh init >/tmp/join || fail "init"
    systemd-run --quiet --unit=hello socat tcp-l:8181,bind=0,fork,reuseaddr exec:'/bin/echo hello'
    cat /tmp/join >/mnt/join
    echo "$begin" >/mnt/begin
    systemctl is-enabled murmesh-server murmesh-agent || fail "a unit is not enabled"
    read -r _ </mnt/end
    # It stays closed without the agent, but not without the package.
    murmesh service set hello --host murmesh00 --port 8181 --mode strict --force || fail "strict"
    murmesh down || fail "down"
    gone
    exit
fi

dpkg --install /mnt/first.deb
read -r line </mnt/join
$line || fail "$line"
until murmesh services | grep -q 8181; do :; done
until [ "$(nc murmesh00 8181)" = hello ] && murmesh status -o json | grep -Eq '"streams_total": [1-9]'; do :; done
read -r begin </mnt/begin
echo "from the package at hand to the first encrypted connection: $((($(date +%s%N) - begin) / 1000000)) ms," \
    "two steps on each host: install it, and one command"

murmesh status || fail "status"
systemctl is-enabled murmesh-agent || fail "the unit is not enabled"
systemctl show --property Before --value murmesh-agent | grep -qw network-pre.target || fail "it may start after the network"
systemctl kill --signal=KILL murmesh-agent
until [ "$(systemctl show --property NRestarts --value murmesh-agent)" = 1 ] && murmesh status >/dev/null; do :; done
process=$(systemctl show --property MainPID --value murmesh-agent)
murmesh up || fail "up again"
dpkg --install /mnt/second.deb
until [ "$(systemctl show --property MainPID --value murmesh-agent)" != "$process" ] && murmesh status >/dev/null; do :; done
[ "$(systemctl show --property NRestarts --value murmesh-agent)" = 1 ] || fail "the agent was restarted, and not reloaded"
murmesh down || fail "down"
! systemctl is-active murmesh-agent || fail "it runs after down"
! systemctl is-enabled murmesh-agent || fail "it is enabled after down"
[ ! -e /sys/fs/bpf/murmesh ] || fail "pins are left after down"
murmesh up || fail "up after down"
gone
echo >/mnt/end
