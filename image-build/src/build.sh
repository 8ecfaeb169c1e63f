# Runs in the BuildKit image as `sh -c … orchestra-build CONTEXT DOCKERFILE STREAMED CONFIGURATION INLINE ARGUMENT…`, in
# the directory that the inputs stand in. What a user wrote comes in as positional parameters only, and is always quoted.
set -eu
trap 'exit 143' TERM
# Of what a former attempt wrote, nothing counts from here on.
echo '{"orchestra":"start"}' >&2

context=./$1 dockerfile=$2 streamed=$3 configuration=$4 inline=$5
shift 5
here=$(pwd -P)
# Nobody else is in this container, and no context contains it.
own=$(mktemp -d)
if [ -n "$configuration" ]; then
	etc=/etc
	[ "$(id -u)" = 0 ] || etc=${XDG_CONFIG_HOME:-$HOME/.config}
	mkdir -p "$etc/buildkit"
	printf %s "$configuration" >"$etc/buildkit/buildkitd.toml"
fi
if [ -n "$streamed" ]; then
	# An engine makes the working directory root's.
	if ! [ -w . ]; then
		here=$own/context
		mkdir "$here"
		cd "$here"
	fi
	mkdir -p "$context"
	# A shell that waits hears a signal at once; in the background the input is another one unless it is named.
	exec 3<&0
	tar -xpf - -C "$context" <&3 &
	if ! wait $!; then
		echo 'ERROR: the tar of the context could not be unpacked' >&2
		exit 1
	fi
	exec 3<&-
fi
[ -d "$context" ] || exit 91
if [ -n "$inline" ]; then
	mkdir "$own/dockerfile"
	printf %s "$inline" >"$own/dockerfile/Dockerfile"
	dockerfile=./Dockerfile
elif [ -f "$context/$dockerfile" ]; then
	dockerfile=$context/$dockerfile
elif [ -f "./$dockerfile" ]; then
	dockerfile=./$dockerfile
else
	exit 92
fi

# A symbolic link must not make the container's own files, credentials among them, a part of the image.
# The builder may be a user who can not enter where a link leads.
context=$(realpath "$context" 2>/dev/null) || exit 93
case $context/ in "$here"/*) ;; *) exit 93 ;; esac
if [ -n "$inline" ]; then
	directory=$own/dockerfile
else
	directory=$(realpath "${dockerfile%/*}" 2>/dev/null) || exit 93
	case $directory/ in "$here"/*) ;; *) exit 93 ;; esac
fi
for argument; do
	# Nothing that a user wrote can begin so: values are arguments of their own, behind a key.
	case $argument in --local=*)
		path=${argument#--local=*=}
		inside=$(realpath "$path" 2>/dev/null) && [ -d "$path" ] || inside=
		case $inside/ in "$here"/*) ;; *)
			echo "ERROR: the build context $path is not a directory of the build's inputs" >&2
			exit 1
			;;
		esac
		;;
	esac
done

# BuildKit before 0.13 does not know it.
progress=plain
if buildctl build --help 2>&1 | grep -q rawjson; then
	progress=rawjson
fi

# As process 1 this shell is sent the signal, and the others are in its process group. The daemon's wrapper has to
# outlive it (it inherits that the signal is ignored), since it ends the daemon when `buildctl` has been.
trap '' TERM
buildctl-daemonless.sh build "--progress=$progress" \
	"--local=context=$context" "--local=dockerfile=$directory" "--opt=filename=${dockerfile##*/}" \
	"--metadata-file=$own/metadata.json" "$@" &
trap 'trap "" TERM; kill -s TERM 0' TERM
code=0
wait $! || code=$?
# A signal that has a trap interrupts `wait`.
while kill -0 $! 2>/dev/null; do
	code=0
	wait $! || code=$?
done
if [ "$code" = 0 ] && [ -s "$own/metadata.json" ]; then
	# One line: a line feed within a JSON string is escaped. To read the file from here would cost an engine 0.1 s.
	printf '{"orchestra":"metadata","metadata":' >&2
	tr -d '\n' <"$own/metadata.json" >&2
	echo '}' >&2
fi
exit "$code"
