# For scripts that run where terraform runs: root ADDRESS HOST_KEY COMMAND runs it as root there.
known=$(mktemp -d)
trap 'rm -rf "$known"' EXIT

root() {
    checking=accept-new file=$HOME/.ssh/known_hosts
    if [ "$2" != - ]; then
        checking=yes file=$known/$1
        echo "* $2" >"$file"
    fi
    command=$3
    # Quoted for the shell that sshd starts.
    [ "$SSH_USER" = root ] || command="sudo -n sh -c '$(printf '%s' "$command" | sed "s/'/'\\\\''/g")'"
    ssh -o BatchMode=yes -o StrictHostKeyChecking="$checking" -o UserKnownHostsFile="$file" -o LogLevel=ERROR \
        -i "$KEY_FILE" -p "$SSH_PORT" "$SSH_USER@$1" "$command"
}
