# Takes away all that the module brought to this host.
export DEBIAN_FRONTEND=noninteractive
if command -v murmesh >/dev/null; then
    murmesh down --server
fi
if [ -e /etc/systemd/system/murmesh-etcd.service ]; then
    systemctl disable --quiet --now murmesh-etcd.service
    rm -f /etc/systemd/system/murmesh-etcd.service
    ! [ -e /etc/murmesh-etcd/installed ] || {
        apt-get purge --yes --quiet etcd-server
        systemctl unmask --quiet etcd.service
    }
    userdel murmesh-etcd
fi
rm -rf /etc/murmesh-etcd /var/lib/murmesh-etcd
if [ -e /dev/mapper/murmesh ]; then
    device=$(cryptsetup status murmesh | sed -n 's/^ *device: *//p')
    umount /var/lib/murmesh
    cryptsetup close murmesh
    # Without its keys nothing on it can be read again.
    cryptsetup erase --batch-mode "$device"
    wipefs --quiet --all "$device"
    sed -i '/^murmesh /d' /etc/crypttab
    [ -s /etc/crypttab ] || rm /etc/crypttab
    sed -i '\|^/dev/mapper/murmesh |d' /etc/fstab
    rm -f /etc/murmesh-volume.key
fi
! dpkg-query --show murmesh >/dev/null 2>&1 || dpkg --purge murmesh
rm -rf /etc/murmesh /var/lib/murmesh
systemctl daemon-reload
