# Runs in the BuildKit image as `sh -c … orchestra-builder FOLDER CONFIGURATION`: a daemon that builds reach by the socket
# `buildkitd.sock` in FOLDER, until it is asked to end.
set -eu
trap 'exit 0' TERM
folder=$1 configuration=$2
helper=
etc=/etc
if [ "$(id -u)" != 0 ]; then
	helper=${ROOTLESSKIT:-rootlesskit}
	etc=${XDG_CONFIG_HOME:-$HOME/.config}
fi
if [ -n "$configuration" ]; then
	mkdir -p "$etc/buildkit"
	printf %s "$configuration" >"$etc/buildkit/buildkitd.toml"
fi
rm -f "$folder/buildkitd.sock"
# Flags are words, as in `buildctl-daemonless.sh`.
$helper "${BUILDKITD:-buildkitd}" ${BUILDKITD_FLAGS:-} "--addr=unix://$folder/buildkitd.sock" >&2 &
daemon=$!
ended=
trap 'ended=1; kill "$daemon"' TERM
# Its end ends this shell's waiting too.
until [ -S "$folder/buildkitd.sock" ]; do
	kill -0 "$daemon" 2>/dev/null || break
	sleep 0.05
done
[ ! -S "$folder/buildkitd.sock" ] || echo ready
code=0
wait "$daemon" || code=$?
# A signal that has a trap interrupts `wait`.
while kill -0 "$daemon" 2>/dev/null; do
	code=0
	wait "$daemon" || code=$?
done
[ -z "$ended" ] || code=0
exit "$code"
