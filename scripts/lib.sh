# Shared by the scripts in this folder; bash, sourced, never run. Whoever sources it stands in the repository's root
# afterwards and stops at the first error.
# shellcheck shell=bash

set -euo pipefail

# Where the caller stands: paths on a script's command line are relative to it.
# shellcheck disable=SC2034
caller=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# Debian keeps mosquitto in /usr/sbin, which is not on a plain user's path.
PATH=$PATH:/usr/sbin:/sbin

# One place for what is built, whatever ~/.cargo/config.toml says, so that every script finds the binaries. Relative
# paths are the repository's, as cargo reads them from here.
case ${CARGO_TARGET_DIR:=target} in /*) ;; *) CARGO_TARGET_DIR=$root/$CARGO_TARGET_DIR ;; esac
export CARGO_TARGET_DIR

# Read by the scripts that source this file.
# shellcheck disable=SC2034
{
    cache=${XDG_CACHE_HOME:-${HOME:-$CARGO_TARGET_DIR}/.cache}/temperd
    requirements=$root/tests/python/requirements.txt
    venv=$CARGO_TARGET_DIR/venv
    venv_python=$venv/bin/python
    small_model=models/SmolLM2-135M-Instruct.Q4_1.gguf
}

# Says what is done now.
say() { printf '==> %s\n' "$*"; }

# die REASON [REMEDY]: both go to stderr, nothing else is done.
die() {
    printf 'error: %s\n' "$1" >&2
    [[ -z ${2:-} ]] || printf '       %s\n' "$2" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Prints the comment that stands at the head of a script, which is its help.
help_of() { sed -n '2,/^[^#]/ { s/^# \{0,1\}//p }' "$1"; }

# have_package NAME: is it installed? NAME may be a dpkg pattern.
have_package() {
    have dpkg-query || return 1
    # The format is dpkg's, not the shell's.
    # shellcheck disable=SC2016
    dpkg-query --show --showformat='${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

# as_root LINE: runs a line of shell as root, through sudo where we are not; says the line when there is no way to.
as_root() {
    if ((EUID == 0)); then
        bash -c "$1"
    elif have sudo && { [[ -t 0 ]] || sudo --non-interactive true 2>/dev/null; }; then
        say "sudo bash -c '$1'"
        sudo bash -c "$1"
    else
        die "this needs root, and there is no sudo that works without a terminal" "run as root, then start again: $1"
    fi
}

# wait_for_line SECONDS PID FILE PATTERN…: waits until the file that process PID writes has a line that matches one of
# the patterns (bash's own, not regular expressions), and leaves it in $line. Fails when the process ends without one,
# or the time is up. Nothing polls the file: tail is told by the kernel.
wait_for_line() {
    local seconds=$1 pid=$2 file=$3 pattern reader found=1
    shift 3
    # The process may not have opened it yet.
    : >>"$file"
    exec {reader}< <(exec timeout "$seconds" tail --lines=+1 --follow --pid="$pid" -- "$file" 2>/dev/null)
    local tail=$!
    while IFS= read -r line <&"$reader"; do
        for pattern in "$@"; do
            # The right side is a pattern on purpose.
            # shellcheck disable=SC2053
            if [[ $line == $pattern ]]; then
                found=0
                break 2
            fi
        done
    done
    exec {reader}<&-
    kill "$tail" 2>/dev/null || true
    return "$found"
}

# stop_group SECONDS PID: ends the process group that PID leads, and waits until no process of it is left. Fails where
# it had to be killed.
stop_group() {
    local tenths=$(($1 * 10)) pid=$2
    kill -TERM "$pid" 2>/dev/null || true
    while kill -0 -- "-$pid" 2>/dev/null; do
        if ((tenths-- == 0)); then
            kill -KILL -- "-$pid" 2>/dev/null || true
            return 1
        fi
        sleep 0.1
    done
}
