# shellcheck shell=bash disable=SC2154 # variables of common.sh
# A QEMU that can do COLO, unpacked into the cache: Debian 12 and 13 ship versions whose COLO does not work.
# It starts through its own dynamic loader, so nothing of it is installed. src/lab/assets.ts knows the same
# layout. Needs common.sh and debian.sh.

qemu_suite=testing
qemu_version_min=11.1
qemu_folder=$cache/qemu

# run_qemu FOLDER PROGRAM ARGUMENT...
run_qemu() {
  local folder=$1 program=$2
  shift 2
  local libraries=$folder/usr/lib/x86_64-linux-gnu
  QEMU_MODULE_DIR=$libraries/qemu "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" \
    "$folder/usr/bin/$program" "$@"
}

qemu_version_is_enough() {
  [[ -n $1 ]] && dpkg --compare-versions "$1" ge "$qemu_version_min"
}

qemu_is_there() {
  qemu_version_is_enough "$(cat "$qemu_folder/.version" 2>/dev/null)"
}

unpack_qemu() {
  local new version
  rm -rf "$cache"/qemu.new.*
  new=$(mktemp -d "$cache/qemu.new.XXXXXX")
  chmod 755 "$new"
  unpack_suite "$qemu_suite" "$new" qemu-system-x86 qemu-system-data qemu-utils
  rm -rf "$new"/usr/share/{doc,man,locale,info} "${new:?}/var"

  version=$(run_qemu "$new" qemu-system-x86_64 --version |
    sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p')
  if ! qemu_version_is_enough "$version"; then
    echo "Debian $qemu_suite has QEMU ${version:-(none that starts)} here," \
      "but COLO needs $qemu_version_min or later: point apt at a mirror that is more recent."
    return 1
  fi
  run_qemu "$new" qemu-img --version
  printf '%s\n' "$version" >"$new/.version"

  rm -rf "$qemu_folder"
  mv -T "$new" "$qemu_folder"
}
