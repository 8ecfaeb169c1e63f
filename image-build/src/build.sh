# Runs in the BuildKit image as `sh -c … orchestra-build BUILDCTL STAGES CONTEXT DOCKERFILE STREAMED CONFIGURATION INLINE
# LIMIT BUILT PLATFORMS SHARED ARGUMENT… [--then ARGUMENT…]…`, in the directory that the inputs stand in. BUILDCTL and STAGES
# are programs of ours, `buildctl.sh` and `stages.awk`. What a user wrote comes in as positional parameters only, and is
# always quoted.
set -eu
trap 'exit 143' TERM
# Of what a former attempt wrote, nothing counts from here on.
echo '{"orchestra":"start"}' >&2

buildctl=$1 stages=$2 context=$3 dockerfile=$4 streamed=$5 configuration=$6 inline=$7
limit=$8 built=$9 platforms=${10} shared=${11}
shift 11
here=$(pwd -P)
# Nobody else is in this container, and no context contains it.
own=$(mktemp -d)
secrets=/.orchestra-secrets

fail() {
	echo "error: $*" >&2
	exit 1
}

# What only this build may read does not outlive it: its container may be kept.
clean() {
	for kept in "$secrets" /root/.docker/config.json /home/user/.docker/config.json "${HOME:-/root}/.aws"; do
		rm -rf "$kept" 2>/dev/null && continue
		# An unprivileged user can remove nothing from a directory of root's.
		find "$kept" -type f -exec sh -c ': >"$1"' - {} \; 2>/dev/null || :
	done
}
trap clean EXIT

if [ -n "$configuration" ]; then
	etc=/etc
	[ "$(id -u)" = 0 ] || etc=${XDG_CONFIG_HOME:-$HOME/.config}
	mkdir -p "$etc/buildkit"
	printf %s "$configuration" >"$etc/buildkit/buildkitd.toml"
fi
if [ -d "$secrets/.s3" ]; then
	export HOME="${HOME:-/root}"
	mkdir -p "$HOME/.aws"
	(
		umask 077
		printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' \
			"$(cat "$secrets/.s3/id")" "$(cat "$secrets/.s3/key")" >"$HOME/.aws/credentials"
	)
fi

if [ -n "$streamed" ]; then
	# An engine makes the working directory root's.
	if ! [ -w . ]; then
		here=$own/context
		mkdir "$here"
		cd "$here"
	fi
	mkdir -p "./$context"
	# A shell that waits hears a signal at once; in the background the input is another one unless it is named.
	exec 3<&0
	tar -xpf - -C "./$context" <&3 &
	if ! wait $!; then
		echo 'ERROR: the tar of the context could not be unpacked' >&2
		exit 1
	fi
	exec 3<&-
fi

# A symbolic link must not make the container's own files, credentials among them, a part of the image.
# The builder may be a user who can not enter where a link leads.
inside() {
	real=$(realpath "$1" 2>/dev/null) || return 1
	case $real/ in "$here"/*) ;; *) return 1 ;; esac
}

if [ -n "$inline" ]; then
	mkdir "$own/dockerfile"
	printf %s "$inline" >"$own/dockerfile/Dockerfile"
	directory=$own/dockerfile dockerfile=$own/dockerfile/Dockerfile
fi
# A context that BuildKit fetches has its Dockerfile in it.
if [ -n "$context" ]; then
	context=./$context
	[ -d "$context" ] || exit 91
	if [ -n "$inline" ]; then
		:
	elif [ -f "$context/$dockerfile" ]; then
		dockerfile=$context/$dockerfile
	elif [ -f "./$dockerfile" ]; then
		dockerfile=./$dockerfile
	else
		exit 92
	fi
	inside "$context" || exit 93
	context=$real
	if [ -z "$inline" ]; then
		inside "${dockerfile%/*}" || exit 93
		directory=$real
	fi
	set -- "$@" "--then" "--local=context=$context" "--local=dockerfile=$directory" "--opt=filename=${dockerfile##*/}"
elif [ -n "$inline" ]; then
	set -- "$@" --then "--local=dockerfile=$directory" --opt=dockerfilekey=dockerfile --opt=filename=Dockerfile
else
	set -- "$@" --then "--opt=filename=$dockerfile"
fi

# The arguments in `buildctl`'s own words: those of each part follow `--then`, the last part is common to all.
# Nothing that a user wrote can begin so: values are arguments of their own, behind a key.
count=$#
for argument; do
	case $argument in
	--local=named-*)
		path=${argument#--local=*=}
		inside "$path" && [ -d "$path" ] || fail "the build context $path is not a directory of the build's inputs"
		set -- "$@" "$argument"
		;;
	--layout=*)
		# NUMBER=NAME=PATH
		rest=${argument#--layout=}
		number=${rest%%=*} rest=${rest#*=}
		name=${rest%%=*} path=${rest#*=}
		inside "$path" || fail "$path is not in the build's inputs"
		if [ -f "$path" ]; then
			mkdir -p "$own/layout-$number"
			tar -xf "$path" -C "$own/layout-$number" || fail "$path is no archive of an image"
			path=$own/layout-$number
		fi
		[ -f "$path/index.json" ] || fail "${rest#*=} is neither an OCI layout nor an archive of one: it has no index.json"
		digest=$(tr -d ' \t\n' <"$path/index.json" | grep -o '"digest":"sha256:[0-9a-f]*"' | sort -u) || digest=
		[ "$(echo "$digest" | wc -l)" = 1 ] && [ -n "$digest" ] || fail "${rest#*=} does not hold one image"
		digest=${digest#'"digest":"'}
		set -- "$@" "--oci-layout=layout-$number=$path" --opt "context:$name=oci-layout://layout-$number@${digest%'"'}"
		;;
	--config=*) printf %s "${argument#--config=}" >"$own/config" ;;
	*) set -- "$@" "$argument" ;;
	esac
done
shift "$count"

if [ -n "$platforms" ] && [ -n "$context" ] && awk -v "targets=$built" "$stages" "$dockerfile" | grep -q run; then
	printf '%s\n' "$platforms" >"$own/platforms"
fi
[ -z "$limit" ] || printf %s "$limit" >"$own/limit"
printf %s "$buildctl" >"$own/buildctl"

# As process 1 this shell is sent the signal, and the others are in its process group. The daemon's wrapper has to
# outlive it (it inherits that the signal is ignored), since it ends the daemon when `buildctl` has been.
real=${BUILDCTL:-buildctl}
export ORCHESTRA_BUILDCTL="$real"
ended=
code=0
trap 'ended=1; : >"$own/ended"; trap "" TERM; kill -s TERM 0' TERM
finish() { # PROCESS
	# It may have come before there was a process to hear it.
	[ -z "$ended" ] || kill -s TERM 0
	code=0
	wait "$1" || code=$?
	# A signal that has a trap interrupts `wait`.
	while kill -0 "$1" 2>/dev/null; do
		code=0
		wait "$1" || code=$?
	done
}
# One that hangs does not answer either; and one that is busy may be late once.
answers() {
	for _ in 1 2; do
		timeout 10 "$real" "--addr=unix://$shared" debug workers >/dev/null 2>&1 &
		finish $!
		[ "$code" != 0 ] || return 0
		[ -z "$ended" ] || exit 143
	done
	return 1
}

if [ -n "$shared" ]; then
	# BuildKit before 0.13 does not know it. It is asked while the daemon is, as by who starts one.
	("$real" build --help 2>&1 | grep -q rawjson && : >"$own/rawjson") &
	known=$!
	if answers; then
		finish "$known"
		[ -z "$ended" ] || exit 143
		(trap '' TERM && exec sh "$own/buildctl" "--addr=unix://$shared" build "$@") &
		finish $!
		first=$code
		if [ "$first" = 0 ] || [ -n "$ended" ] || answers; then exit "$first"; fi
		echo '{"orchestra":"start"}' >&2
	fi
fi
[ -z "$ended" ] || exit 143
# It waits for the daemon itself; the other program's tries are counted no more.
(
	trap '' TERM
	export BUILDCTL="sh $own/buildctl" BUILDCTL_CONNECT_RETRIES_MAX=0
	exec buildctl-daemonless.sh build "$@"
) &
finish $!
exit "$code"
