# shellcheck shell=bash disable=SC2154 # variables of common.sh
# etcd is one of the arbiters that the tests ask. Its package would also start a server on the usual ports,
# so only the one program is unpacked. Needs common.sh and debian.sh.

etcd_folder=$cache/etcd

etcd_is_there() {
  command -v etcd >/dev/null || [[ -x $etcd_folder/usr/bin/etcd ]]
}

unpack_etcd() {
  unpack_program "$etcd_folder" etcd-server usr/bin/etcd
}
