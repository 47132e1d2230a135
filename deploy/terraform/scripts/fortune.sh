# The service of the guide.
missing=
command -v socat >/dev/null || missing=socat
[ -x /usr/games/fortune ] || missing="$missing fortune-mod fortunes-min"
# shellcheck disable=SC2086 # one word for each package
[ -z "$missing" ] || DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends $missing
cat >/etc/systemd/system/fortune.service <<UNIT
[Unit]
Description=A fortune for whoever connects to port 8181

[Service]
ExecStart=/usr/bin/socat tcp-l:8181,bind=0,fork,reuseaddr exec:/usr/games/fortune
DynamicUser=yes
Restart=on-failure

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --quiet --now fortune.service
