# Looks whether the host can be used, and makes the encrypted volume if a device is named: host.sh DEVICE
device=$1

fail() {
    echo "this host cannot be used: $*" >&2
    exit 1
}

[ -d /run/systemd/system ] || fail "systemd does not run"
[ -f /sys/fs/cgroup/cgroup.controllers ] || [ -d /sys/fs/cgroup/unified ] || fail "it has no cgroup v2"
[ -n "$device" ] || exit 0

# Before anything is made or installed.
modprobe --quiet dm-crypt 2>/dev/null || true
grep -q device-mapper /proc/misc ||
    fail "its kernel has no device mapper (dm-crypt), which an encrypted volume needs; leave out luks_device"

# The key stays on the disk of the system: what is protected is the other disk, when it is pulled, sold or sent in.
key=/etc/murmesh-volume.key
command -v cryptsetup >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet cryptsetup
[ -b "$device" ] || fail "$device is no block device"
if ! cryptsetup isLuks "$device"; then
    found=$(blkid -p "$device" || true)
    [ -z "$found" ] || fail "something is on $device, and nothing is overwritten: $found"
    [ ! -e /var/lib/murmesh ] || fail "/var/lib/murmesh is there already"
    (umask 077 && head --bytes 64 /dev/urandom >"$key")
    # Such a key is not guessed: there is nothing to slow down.
    cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --label murmesh \
        --key-file "$key" "$device"
fi
[ "$(blkid -p -s LABEL -o value "$device")" = murmesh ] || fail "$device is an encrypted volume of somebody else"
[ -e /dev/mapper/murmesh ] || cryptsetup open --key-file "$key" "$device" murmesh
blkid -p /dev/mapper/murmesh >/dev/null || mkfs.ext4 -q /dev/mapper/murmesh
identifier=$(cryptsetup luksUUID "$device")
grep -qs '^murmesh ' /etc/crypttab || echo "murmesh UUID=$identifier $key luks" >>/etc/crypttab
grep -q '^/dev/mapper/murmesh ' /etc/fstab || echo '/dev/mapper/murmesh /var/lib/murmesh ext4 defaults 0 2' >>/etc/fstab
mkdir -p -m 700 /var/lib/murmesh
mountpoint -q /var/lib/murmesh || mount /var/lib/murmesh
systemctl daemon-reload
