# Makes, on the first server, what the servers of a cluster share: authority.sh NAME=ADDRESS…
# For each server a certificate for etcd, with its key, and for all of them the key that seals the secrets of the mesh.
command -v openssl >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet openssl
place=/etc/murmesh-etcd
umask 077
mkdir -p "$place/handed-over"
cd "$place"
[ -e seal.key ] || openssl rand -hex 32 >seal.key
if [ ! -e ca.key ]; then
    openssl ecparam -genkey -name prime256v1 -noout -out ca.key
    openssl req -x509 -new -key ca.key -days 3650 -subj "/CN=etcd of murmesh" -out ca.crt
fi
for server; do
    name=${server%%=*} address=${server#*=}
    bundle=handed-over/$name
    mkdir -p "$bundle"
    cp ca.crt seal.key "$bundle"
    openssl ecparam -genkey -name prime256v1 -noout -out "$bundle/member.key"
    # A member is also a client of the others.
    printf 'subjectAltName = IP:%s, IP:127.0.0.1\nextendedKeyUsage = serverAuth, clientAuth\n' "$address" >"$bundle/extensions"
    openssl req -new -key "$bundle/member.key" -subj "/CN=$name" |
        openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -extfile "$bundle/extensions" \
            -out "$bundle/member.crt"
    rm "$bundle/extensions"
done
first=${1%%=*}
cp "handed-over/$first"/* .
