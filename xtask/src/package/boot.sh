# Installs the package in a host with systemd, and two units: a service that is there before the agent, and a network
# that comes up as those of distributions do, and has not started before somebody outside has tried to connect.
# Argument: a token to join with.
dpkg --install /mnt/murmesh.deb
address=$(ip -4 -oneline address show dev eth0 | awk '{print $4}')
cat >/etc/systemd/system/hello.service <<UNIT
[Unit]
DefaultDependencies=no
Before=murmesh-agent.service

[Service]
ExecStart=/usr/bin/socat tcp-l:8181,fork,reuseaddr exec:'/bin/echo hello'
ExecStartPost=/bin/sh -c 'until ss --listening --no-header --tcp sport = 8181 | grep -q .; do :; done'

[Install]
WantedBy=multi-user.target
UNIT
cat >/etc/systemd/system/network.service <<UNIT
[Unit]
DefaultDependencies=no
After=network-pre.target
Before=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/ip address add $address dev eth0
ExecStart=/bin/ip link set eth0 up
ExecStart=/bin/sh -c 'echo >/mnt/up; read -r _ </mnt/tried'

[Install]
WantedBy=multi-user.target
UNIT
systemctl enable network.service
systemctl enable --now hello.service
murmesh up --join "$0"
