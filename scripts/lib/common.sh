# shellcheck shell=bash disable=SC2034 # the scripts that source this use the variables
# What every script here shares: where things are, how a step is announced, how a failure reads.
#
# A step that has nothing to do prints nothing. What a step's commands print goes to the log; the terminal
# gets one line a step, and the tail of the log when one fails.

repository=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/colo-agent
log=$cache/setup.log
log_tail_lines=20
log_bytes_max=1000000

# The terminal, also for what runs inside a step.
exec 3>&1

say() {
  printf '%s\n' "$*" >&3
}

# Ends the script with one sentence that says what to do.
fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# step TEXT COMMAND...: announces TEXT, runs COMMAND with its output in the log, ends the script if it fails.
step() {
  local text=$1 status=0 log_begin
  shift
  say "$text"
  log_begin=$(($(stat --format=%s "$log" 2>/dev/null || echo 0) + 1))
  printf '\n== %s: %s\n' "$(date --iso-8601=seconds)" "$text" >>"$log"
  # A child of its own, so that `set -e` holds inside COMMAND too.
  set +e
  (
    set -e
    "$@"
  ) >>"$log" 2>&1
  status=$?
  set -e
  if ((status != 0)); then
    tail --bytes="+$log_begin" "$log" | tail --lines="$log_tail_lines" | sed 's/^/  | /' >&2
    fail "$text: failed with status $status; the whole output is in $log."
  fi
}

# One script at a time works on the cache; the lock goes with the process, however it ends.
take_lock() {
  mkdir -p "$cache" || fail "cannot make the folder $cache: set XDG_CACHE_HOME to one that can be written."
  exec 9>"$cache/setup.lock"
  if ! flock --nonblock 9; then
    say "waiting for another setup to finish"
    flock 9
  fi
  if [[ -e $log ]] && (($(stat --format=%s "$log") > log_bytes_max)); then
    mv "$log" "$log.old"
  fi
}

# stale FILE SOURCE...: true if FILE is missing or one of the sources is newer.
stale() {
  local file=$1 source
  shift
  [[ -e $file ]] || return 0
  for source in "$@"; do
    [[ $source -nt $file ]] && return 0
  done
  return 1
}
