# Makes the disk of a machine, an overlay of this one's, and boots it from there, again whenever it asks for that.
# Arguments: an empty directory, a directory that is shared with other hosts, the name of the host, and the script that
# boots. When it has booted, that is said to the pipe booted.NAME in the shared directory.
set -eu
place=$1 shared=$2 name=$3 boot=$4
root=$place/root

mount --make-rprivate /
mount -t tmpfs none "$place"
mkdir "$place/upper" "$place/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" "$root"
mount --bind "$shared" "$root/mnt"
cp /etc/hosts "$root/etc/hosts"
echo "$name" >"$root/etc/hostname"
# With it nothing that a package starts or stops is; images of containers have it.
rm -f "$root/usr/sbin/policy-rc.d"

# What this machine starts when it boots, and what needs devices.
rm -rf "$root"/etc/systemd/system/*.wants
for unit in getty.target systemd-logind.service systemd-udevd.service systemd-modules-load.service \
    systemd-sysctl.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
cat >"$root/etc/systemd/system/booted.service" <<UNIT
[Unit]
Wants=multi-user.target
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo >/mnt/booted.$name'
UNIT

while
    status=0
    setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --uts --ipc --cgroup \
        sh -c "$boot" boot "$root" || status=$?
    # SIGHUP is what process 1 of a namespace gets for reboot(2) (reboot_pid_ns in the kernel).
    [ "$status" = 129 ]
do
    # As a kernel finds it.
    ip address flush dev eth0
    ip link set eth0 down
done
exit "$status"
