#!/bin/busybox sh
# The first process of the guest: lays the host's files out, read-only below a layer in memory, and makes them the root.
# The root must be switched, not changed: otherwise modules are not found and namespaces of users cannot be made.
export PATH=/bin
busybox mkdir /proc
busybox mount -t proc proc /proc
busybox --install /bin
mkdir -p /dev /host /layer /root
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module" || echo "the module $module is not loaded"
done </modules/order
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host
mount -t tmpfs layer /layer
mkdir /layer/changes /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/changes,workdir=/layer/work overlay /root
cd /root
mount -t proc proc proc
mount -t sysfs sys sys
mount -t devtmpfs dev dev
mkdir -p dev/shm
mount -t tmpfs shared dev/shm
mount -t cgroup2 cgroups sys/fs/cgroup
mount -t bpf programs sys/fs/bpf
mount -t tmpfs run run
mkdir -p run/guest
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 guest run/guest
release=$(uname -r)
mkdir -p "usr/lib/modules/$release"
mount --bind "/host$(cat /modules/directory)" "usr/lib/modules/$release"
exec switch_root /root /bin/sh /run/guest/tests.sh
