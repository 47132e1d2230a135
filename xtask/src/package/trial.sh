# What the package does to a machine: this machine's files under an overlay, in a mount namespace of its own, from which
# nothing gets out. Arguments: an empty directory, the package, and the same package as a later version.
set -eu
place=$1 first=$2 second=$3

fail() {
    echo "the package: $*" >&2
    exit 1
}

inside() {
    chroot "$place/root" env DEBIAN_FRONTEND=noninteractive "$@"
}

# What is there and was not, beside what dpkg and man write about every package.
added() {
    (
        cd "$place/upper"
        find . \( -path ./var/lib/dpkg -o -path ./var/cache -o -path ./var/log -o -path ./run/systemd \
            -o -path ./run/adduser \) -prune \
            -o ! -type d ! -path './etc/passwd*' ! -path './etc/group*' ! -path './etc/shadow*' \
            ! -path './etc/gshadow*' ! -path './etc/sub[ug]id*' ! -path ./etc/.pwd.lock -print
        find . -type d | while read -r directory; do
            [ -d "/$directory" ] || echo "$directory/"
        done
    )
}

# The accounts, in whatever order.
accounts() {
    for file in passwd group shadow gshadow; do sort "$place/root/etc/$file"; done
}

mount -t tmpfs none "$place"
mkdir "$place/upper" "$place/work" "$place/root" "$place/packages"
mount -t overlay overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" "$place/root"
for directory in proc sys dev; do
    mount --rbind "/$directory" "$place/root/$directory"
done
mkdir -p "$place/root/mnt"
mount --bind "$place/packages" "$place/root/mnt"
cp "$first" "$place/packages/first.deb"
cp "$second" "$place/packages/second.deb"

before=$(added) accounts_before=$(accounts)
[ ! -e "$place/root/usr/bin/murmesh" ] || fail "murmesh is installed on this machine: the trial needs one without it"

inside dpkg --install /mnt/first.deb
inside murmesh --version
inside man --where murmesh murmesh-agent murmesh-service-set >/dev/null || fail "manual pages are missing"
said=$(inside systemd-analyze verify /lib/systemd/system/murmesh-agent.service \
    /lib/systemd/system/murmesh-server.service 2>&1) || fail "a unit is wrong: $said"
[ -z "$said" ] || fail "systemd-analyze verify says: $said"
inside getent passwd murmesh >/dev/null || fail "there is no user murmesh"
# Tenths; docs/security.md says what they are.
for unit in agent:24 server:14; do
    inside systemd-analyze security --offline=true --no-pager --threshold="${unit#*:}" \
        "/lib/systemd/system/murmesh-${unit%:*}.service" | tail -n 1 || fail "${unit%:*} is more exposed than it was"
done
inside systemctl --quiet enable murmesh-agent.service murmesh-server.service

echo '# kept' >>"$place/root/etc/murmesh/murmesh.toml"
mkdir -p "$place/root/var/lib/murmesh" "$place/root/run/murmesh"
echo state >"$place/root/var/lib/murmesh/state"

inside dpkg --install /mnt/second.deb
[ "$(inside dpkg-query --show --showformat='${Version}' murmesh)" = "${second_version:?}" ] || fail "no upgrade"
grep -q '^# kept' "$place/root/etc/murmesh/murmesh.toml" || fail "an upgrade lost the configuration"
[ -e "$place/root/var/lib/murmesh/state" ] || fail "an upgrade lost the state"

inside dpkg --remove murmesh
[ ! -e "$place/root/usr/bin/murmesh" ] || fail "it is still there after its removal"
grep -q '^# kept' "$place/root/etc/murmesh/murmesh.toml" || fail "the removal lost the configuration"
[ -e "$place/root/var/lib/murmesh/state" ] || fail "the removal lost the state"

inside dpkg --purge murmesh
after=$(added)
[ "$before" = "$after" ] || fail "after its purge this is left: $after"
[ "$accounts_before" = "$(accounts)" ] || fail "after its purge the accounts are not what they were"
