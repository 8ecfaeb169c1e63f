# Stands for `buildctl` in `buildctl-daemonless.sh`, as `sh OWN/buildctl --addr=ADDRESS debug workers`, which asks whether the
# daemon answers, and as `… build ARGUMENT…`. $ORCHESTRA_BUILDCTL is the real one.
set -eu
own=${0%/*}
real=$ORCHESTRA_BUILDCTL
address=$1 what=$2
shift 2

# The daemon that `buildctl-daemonless.sh` started; a process that has ended stays until it is waited for.
daemon() {
	pid=$(cat /tmp/buildctl-daemonless.*/pid 2>/dev/null) || return 0
	case $(sed -n 's/^State:[^A-Z]*\([A-Z]\).*/\1/p' "/proc/$pid/status" 2>/dev/null) in '' | Z | X) return 1 ;; esac
}

# It is started with the signal ignored, and does not hear the one that comes before it has a handler.
end_daemon() {
	[ ! -e "$own/ended" ] || kill "$(cat /tmp/buildctl-daemonless.*/pid 2>/dev/null)" 2>/dev/null || :
}

if [ "$what" = debug ]; then
	[ ! -e "$own/late" ] || exit 1
	# BuildKit before 0.13 does not know it. The daemon needs longer than this answer.
	"$real" build --help 2>&1 | grep -q rawjson && : >"$own/rawjson"
	# It listens when its workers are ready. 2 minutes are twenty times what a slow host was seen to need.
	left=2400
	until [ -S "${address#--addr=unix://}" ]; do
		left=$((left - 1))
		[ $((left % 10)) != 0 ] || end_daemon
		if [ $left = 0 ] || { [ $((left % 5)) = 0 ] && ! daemon; }; then
			: >"$own/late"
			exit 1
		fi
		sleep 0.05
	done
	exit 0
fi
[ ! -e "$own/ended" ] || exit 143

progress=plain
[ ! -e "$own/rawjson" ] || progress=rawjson

# A platform whose programs have to run, and can't.
if [ -s "$own/platforms" ]; then
	known=$("$real" "$address" debug workers --format \
		'{{range .}}{{range .Platforms}} {{.OS}}/{{.Architecture}}{{if .Variant}}/{{.Variant}}{{end}} {{end}}{{end}}')
	for platform in $(cat "$own/platforms"); do
		emulator=${platform#linux/}
		case $emulator in
		amd64*) emulator=x86_64 ;; arm64*) emulator=aarch64 ;; arm/*) emulator=arm ;;
		386) emulator=i386 ;; loong64) emulator=loongarch64 ;;
		esac
		case "$known" in *" $platform "* | *" ${platform%/*} "*) continue ;; esac
		! command -v "buildkit-qemu-$emulator" >/dev/null || continue
		echo "error: the Dockerfile has RUN steps for $platform, whose programs can't run here: no emulator is registered with binfmt_misc" >&2
		exit 94
	done
fi

digest() { # KEY FILE
	sed -n "s/.*\"$1\": *\"\\(sha256:[0-9a-f]*\\)\".*/\\1/p" "$2" | head -n 1
}

# A blob of the daemon's store. To ask the daemon takes longer than to look where its store is.
blob() { # DIGEST
	for root in /var/lib/buildkit /var/lib/buildkit/rootless "${HOME:-/root}/.local/share/buildkit"; do
		for file in "$root"/runc-*/content/blobs/sha256/"${1#sha256:}"; do
			[ ! -f "$file" ] || {
				cat "$file"
				return
			}
		done
	done
	"$real" "$address" debug get "$1" 2>/dev/null || echo null
}

# One line: a line feed within a JSON string is escaped. To read a file from here would cost an engine 0.1 s.
tell() { # ABOUT DIGEST, with JSON as input
	printf '{"orchestra":"%s","digest":"%s","metadata":' "$1" "$2" >&2
	tr -d '\n' >&2
	echo '}' >&2
}

# Part 0 is common with what stands behind the last `--then`; the others are each a build of their own, the main one last.
parts=0
for argument; do [ "$argument" != --then ] || parts=$((parts + 1)); done

part() { # NUMBER ARGUMENT…
	wanted=$1
	shift
	count=$# at=0
	for argument; do
		if [ "$argument" = --then ]; then
			at=$((at + 1))
		elif [ $at = 0 ] || [ $at = "$wanted" ] || [ $at = "$parts" ]; then
			set -- "$@" "$argument"
		fi
	done
	shift "$count"
	code=0
	"$real" "$address" build "--progress=$progress" "--metadata-file=$own/metadata" "$@" || code=$?
	[ "$code" != 0 ] || return 0
	# Who was asked to end has a daemon that was too. What started it may outlive it by a moment.
	if [ ! -e "$own/ended" ] && ! { daemon && timeout 10 "$real" "$address" debug workers >/dev/null 2>&1; }; then
		# Whose last line is an error has it told at once; what stands before is told with it.
		tail -n 60 /tmp/buildctl-daemonless.*/log >&2 || :
		echo "error: BuildKit's daemon ended during the build" >&2
	fi
	exit "$code"
}

number=1
while [ $number -lt $parts ]; do
	rm -f "$own/metadata"
	part $number "$@"
	number=$((number + 1))
	[ $number = $parts ] || echo null | tell target "$(digest containerimage.digest "$own/metadata")"
done

if [ -s "$own/metadata" ]; then
	image=$(digest containerimage.digest "$own/metadata")
	if [ -n "$image" ]; then
		blob "$image" >"$own/manifest"
		tell manifest "$image" <"$own/manifest"
		if grep -q '"manifests"' "$own/manifest"; then
			for of in $(tr -d ' \t\n' <"$own/manifest" | grep -o '"digest":"sha256:[0-9a-f]*"' | head -n 64); do
				of=${of#'"digest":"'}
				blob "${of%'"'}" | tell manifest "${of%'"'}"
			done
		fi
	fi
	if [ -s "$own/config" ]; then
		blob "$(digest containerimage.config.digest "$own/metadata")" >"$(cat "$own/config")"
	fi
fi
if [ -s "$own/limit" ]; then
	"$real" "$address" prune --all "--keep-storage=$(cat "$own/limit")" >/dev/null ||
		echo '"the layers on the cache volume could not be pruned to their size limit"' | tell warning ""
fi
# The last that counts.
[ ! -s "$own/metadata" ] || tell metadata "" <"$own/metadata"
