# Runs where terraform runs: takes what authority.sh made for the server NAME from one host to another.
. "$(dirname "$0")/ssh.sh"

root "$FROM" "$FROM_KEY" "tar --create --directory /etc/murmesh-etcd/handed-over/$NAME ." |
    root "$TO" "$TO_KEY" 'mkdir -p -m 700 /etc/murmesh-etcd && tar --extract --directory /etc/murmesh-etcd'
