# shellcheck shell=bash disable=SC2154 # variables of common.sh
# promtool checks the alert rules. Its package would also install and start a Prometheus server, so only the one
# program is unpacked. Needs common.sh and debian.sh.

promtool_folder=$cache/promtool

promtool_is_there() {
  command -v promtool >/dev/null || [[ -x $promtool_folder/usr/bin/promtool ]]
}

unpack_promtool() {
  local new
  rm -rf "$cache"/promtool.new.*
  new=$(mktemp -d "$cache/promtool.new.XXXXXX")
  chmod 755 "$new"
  (
    cd "$new" || exit
    # The lists may be missing or too old for what the mirror holds now.
    apt_quiet download prometheus || {
      apt_quiet update
      apt_quiet download prometheus
    }
    dpkg-deb --fsys-tarfile prometheus_*.deb | tar --extract ./usr/bin/promtool
    rm prometheus_*.deb
  )
  "$new/usr/bin/promtool" --version
  rm -rf "$promtool_folder"
  mv -T "$new" "$promtool_folder"
}
