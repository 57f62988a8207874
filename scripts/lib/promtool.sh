# shellcheck shell=bash disable=SC2154 # variables of common.sh
# promtool checks the alert rules. Its package would also install and start a Prometheus server, so only the
# one program is unpacked. Needs common.sh and debian.sh.

promtool_folder=$cache/promtool

promtool_is_there() {
  command -v promtool >/dev/null || [[ -x $promtool_folder/usr/bin/promtool ]]
}

unpack_promtool() {
  unpack_program "$promtool_folder" prometheus usr/bin/promtool
}
