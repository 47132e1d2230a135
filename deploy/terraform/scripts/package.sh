# Installs the package, or upgrades to it: package.sh FILE
export DEBIAN_FRONTEND=noninteractive
dpkg --force-confold --install "$1" || apt-get install --yes --quiet --fix-broken
dpkg-query --show murmesh
rm "$1"
