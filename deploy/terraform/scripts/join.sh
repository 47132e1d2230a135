# Runs where terraform runs: lets the host NAME join with a new token, which is no argument anywhere.
. "$(dirname "$0")/ssh.sh"

token=$(root "$FROM" "$FROM_KEY" 'murmesh token create' </dev/null)
printf '%s\n' "$token" |
    root "$TO" "$TO_KEY" "read -r MURMESH_JOIN && export MURMESH_JOIN && murmesh up --node $NAME"
