# Starts the member of the etcd cluster on this server: etcd.sh NAME ADDRESS NAME=ADDRESS…
name=$1 address=$2
shift 2
place=/etc/murmesh-etcd

if ! command -v etcd >/dev/null; then
    # The unit of the package would start a cluster of its own.
    systemctl mask --quiet etcd.service
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends etcd-server
    touch "$place/installed"
fi
bracketed() { case $1 in *:*) echo "[$1]" ;; *) echo "$1" ;; esac; }
url=https://$(bracketed "$address")
members='' endpoints=$url:2379
for server; do
    other=https://$(bracketed "${server#*=}")
    members="$members${members:+,}${server%%=*}=$other:2380"
    [ "$other" = "$url" ] || endpoints="$endpoints,$other:2379"
done

id murmesh-etcd >/dev/null 2>&1 ||
    useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin murmesh-etcd
chmod 755 "$place"
install -d -m 700 -o murmesh-etcd -g murmesh-etcd "$place/member"
install -m 600 -o murmesh-etcd -g murmesh-etcd "$place/ca.crt" "$place/member.crt" "$place/member.key" "$place/member"
cat >/etc/systemd/system/murmesh-etcd.service <<UNIT
[Unit]
Description=Member of the etcd cluster of a mesh
Wants=network-online.target
After=network-online.target
Before=murmesh-server.service

[Service]
Type=notify
User=murmesh-etcd
StateDirectory=murmesh-etcd
StateDirectoryMode=0700
ExecStart=/usr/bin/etcd --name $name --logger zap --data-dir /var/lib/murmesh-etcd/$name \\
    --listen-client-urls $url:2379 --advertise-client-urls $url:2379 \\
    --listen-peer-urls $url:2380 --initial-advertise-peer-urls $url:2380 --initial-cluster $members \\
    --cert-file $place/member/member.crt --key-file $place/member/member.key \\
    --client-cert-auth --trusted-ca-file $place/member/ca.crt \\
    --peer-cert-file $place/member/member.crt --peer-key-file $place/member/member.key \\
    --peer-client-cert-auth --peer-trusted-ca-file $place/member/ca.crt \\
    --auto-compaction-retention 1h --max-txn-ops 1024
Restart=on-failure
TimeoutStartSec=infinity
LimitNOFILE=65536
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
# It is up when most of its peers are.
systemctl enable --quiet murmesh-etcd.service
systemctl start --no-block murmesh-etcd.service

# What the server reads must be its own. On an upgrade the package asks nothing about a file that was changed.
own="-o murmesh -g murmesh"
install -d -m 700 $own /etc/murmesh/etcd
install -m 600 $own "$place/ca.crt" "$place/member.crt" "$place/member.key" /etc/murmesh/etcd
install -d -m 700 $own /var/lib/murmesh
[ -e /var/lib/murmesh/seal.key ] || install -m 600 $own "$place/seal.key" /var/lib/murmesh/seal.key
quoted=$(echo "$endpoints" | sed 's/,/", "/g')
cat >/etc/murmesh/murmesh.toml <<CONFIGURATION
# Written by terraform. The manual pages murmesh-server(1) and murmesh-agent(1) have every option.
[server]
node = "$name"
store = "etcd"
etcd-endpoints = ["$quoted"]
etcd-ca = "/etc/murmesh/etcd/ca.crt"
etcd-certificate = "/etc/murmesh/etcd/member.crt"
etcd-key = "/etc/murmesh/etcd/member.key"

[agent]
# etcd must not wait for the mesh that waits for it.
exempt = [2379, 2380]
CONFIGURATION
