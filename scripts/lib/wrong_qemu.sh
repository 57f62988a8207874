# shellcheck shell=bash disable=SC2154 # variables of common.sh
# QEMUs that cannot do COLO, unpacked into the cache: the tests run the agent on them. Debian 12's own and
# that of its backports; src/lab/assets.ts knows the same layout. Needs common.sh, debian.sh and qemu.sh.
#
#   NAME  what Debian calls the suite; a second one after a comma is preferred

declare -A wrong_qemu_suites=([7.2]="bookworm" [10.0]="bookworm,bookworm-backports")

wrong_qemu_folder() {
  printf '%s\n' "$cache/qemu-$1"
}

wrong_qemu_is_there() {
  [[ $(cat "$(wrong_qemu_folder "$1")/.version" 2>/dev/null) == "$1".* ]]
}

unpack_wrong_qemu() {
  local name=$1 folder new version
  folder=$(wrong_qemu_folder "$name")
  rm -rf "$folder".new.*
  new=$(mktemp -d "$folder.new.XXXXXX")
  chmod 755 "$new"
  unpack_suite "${wrong_qemu_suites[$name]}" "$new" qemu-system-x86 qemu-system-data
  # Debian 12's own loader and C library lie in /lib, those of later ones in /usr/lib.
  [[ -L $new/lib ]] || cp -a -n "$new/lib/." "$new/usr/lib/"
  rm -rf "$new"/usr/share/{doc,man,locale,info} "${new:?}/var"
  version=$(run_qemu "$new" qemu-system-x86_64 --version |
    sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p')
  if [[ $version != "$name".* ]]; then
    echo "Debian ${wrong_qemu_suites[$name]} has QEMU ${version:-(none that starts)} here, not $name:" \
      "the tests on QEMUs that do not work need that one."
    return 1
  fi
  printf '%s\n' "$version" >"$new/.version"
  rm -rf "$folder"
  mv -T "$new" "$folder"
}
