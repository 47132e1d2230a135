# Boots systemd as process 1 of the namespaces that this runs in, on an overlay of this machine. Arguments: an empty
# directory, a directory that is shared with other hosts, and the name of the host: when it has booted it says so to the
# pipe booted.NAME there.
set -eu
place=$1 shared=$2 name=$3
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

mount -t proc proc "$root/proc"
# What is there is of the whole machine.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t bpf bpf "$root/sys/fs/bpf"
mount -t tmpfs -o mode=755 none "$root/run"
mount -t tmpfs none "$root/tmp"
mount -t tmpfs -o mode=755 none "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done

for unit in systemd-udevd.service systemd-modules-load.service systemd-sysctl.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
cat >"$root/etc/systemd/system/booted.service" <<UNIT
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo >/mnt/booted.$name'
UNIT
cd "$root"
exec env --ignore-environment container=murmesh PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    chroot "$root" /lib/systemd/systemd --unit=booted.service --log-target=null --show-status=no
